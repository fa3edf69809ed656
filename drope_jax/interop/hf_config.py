"""A Hugging Face config.json as a `ModelConfig`.

What a class of transformers would compute from a config is either carried over or refused, naming the key. Keys that
the class does not read change nothing there and are left alone here.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from drope_jax.errors import ConfigError
from drope_jax.interop.families import FAMILIES, Family
from drope_jax.interop.keys import Keys
from drope_jax.interop.rope_parameters import read_rope
from drope_jax.model_config import ModelConfig, QKNorm
from drope_jax.positions import Layer, LayerPattern, Positions, RoPE


class Description(NamedTuple):
  """What a config.json says of a model."""

  model: ModelConfig
  context: int  # tokens it was made for (max_position_embeddings)
  beta: float = 1.0  # a factor on the attention logits, which goes into the weights


MOST_LAYERS = 10_000  # ten times those of any released model

# Keys that would make another function of the model, and the values that do not. A missing key is fine.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu", "swish"),
  "mlp_bias": (False,),
  "partial_rotary_factor": (1.0, None),
  "rope_interleaved": (False,),
  "quantization_config": (None,),
  "transformers_weights": (None,),  # files of another name
}
_NO_CODE: dict[str, tuple[Any, ...]] = {"auto_map": (None,)}
_NO_EXPERTS: dict[str, tuple[Any, ...]] = {"num_experts": (None,), "num_local_experts": (None,)}


def read_config(config: dict[str, Any], where: Any, names: Mapping[str, str] | None = None) -> Description:
  """The model that a config.json describes.

  Args:
    config: its content.
    where: its path, for messages.
    names: of its keys in the file that it was made of, likewise.

  Raises:
    ConfigError: naming the key whose value is missing or not supported.
  """
  keys = Keys(config, where, names or {})
  kind = config.get("model_type")
  if not isinstance(kind, str) or kind not in FAMILIES:
    keys.refuse("model_type", f"is {kind!r}; allowed: {', '.join(FAMILIES)}")
  family = FAMILIES[kind]
  architectures = config.get("architectures") or [family.architecture]
  if architectures != [family.architecture]:
    keys.refuse("architectures", f"is {architectures}; allowed with {kind}: {family.architecture}")
  keys.check(_ALLOWED)
  keys.check(_NO_CODE if family.in_transformers else {})
  keys.check({} if family.one_expert else _NO_EXPERTS)
  if family.one_expert and not (keys.given("num_experts") and keys.given("num_experts_per_tok")):
    keys.refuse("num_experts", "and num_experts_per_tok must both be 1: ours have one feed-forward layer")
  keys.check(family.only)
  heads, width = keys.integer("num_attention_heads"), keys.integer("hidden_size")
  head_dim = keys.nullable("head_dim", family.head_dim) or width // heads
  if head_dim < 1:
    keys.refuse("num_attention_heads", f"is {heads}; it must be at most {keys.name('hidden_size')} ({width})")
  context = keys.integer("max_position_embeddings")
  fields: dict[str, Any] = {
    "vocab_size": keys.integer("vocab_size"),
    "d_model": width,
    "num_layers": keys.integer("num_hidden_layers", most=MOST_LAYERS),
    "num_heads": heads,
    "num_kv_heads": keys.nullable("num_key_value_heads", family.num_kv_heads) or heads,
    "head_dim": head_dim,
    "d_ff": keys.integer("intermediate_size"),
    "qkv_bias": keys.boolean("attention_bias", False) if family.bias is None else family.bias,
    "tie_embeddings": keys.boolean("tie_word_embeddings", family.tie_embeddings),
    "norm_eps": keys.number("rms_norm_eps", family.norm_eps),
    "init_std": keys.number("initializer_range", 0.02),
    "qk_norm": None if family.qk_norm is None else QKNorm(family.qk_norm),
  }
  rope = read_rope(config, family.theta, context, head_dim, where, names) if family.rotates else None
  fields["positions"] = _read_layers(keys, family, fields["num_layers"], rope)
  if family.fields is not None:
    fields |= family.fields(keys)
  try:
    model = ModelConfig(**fields)
  except ConfigError as error:
    raise keys.named(error) from error
  return Description(model, context, _read_beta(keys, family, head_dim))


def _read_beta(keys: Keys, family: Family, head_dim: int) -> float:
  """What the attention logits are multiplied by beside 1/sqrt(h)."""
  key, usual = family.logit_scale, head_dim**-0.5
  if key is None:
    return 1.0
  scale = usual if family.folds_logit_scale and not keys.given(key) else keys.number(key, 1.0)
  if math.isclose(scale, usual, rel_tol=1e-6):
    return 1.0
  if not family.folds_logit_scale or not scale > 0:
    allowed = "a positive number" if family.folds_logit_scale else f"1/sqrt(head size), {usual:.6g}"
    keys.refuse(key, f"is {scale}; allowed: {allowed}")
  return scale / usual


def _read_layers(keys: Keys, family: Family, num_layers: int, rope: RoPE | None) -> Positions:
  """Which layers have the rotation and which a window, as the shortest cycle that says so."""
  rotated = [True] * num_layers
  if family.positions_by_layer and keys.given("no_rope_layers"):
    rotated = [bool(flag) for flag in keys.entries("no_rope_layers", num_layers, (0, 1))]
  elif family.positions_by_layer:
    interval = keys.integer("no_rope_layer_interval", 4)
    rotated = [(i + 1) % interval != 0 for i in range(num_layers)]
  window, windowed = _read_windows(keys, family, rotated)
  layers = [Layer(rope if r else None, window if w else None) for r, w in zip(rotated, windowed, strict=True)]
  period = next(p for p in range(1, num_layers + 1) if all(layers[i] == layers[i % p] for i in range(num_layers)))
  if period == 1 and layers[0].window is None:
    return layers[0].positions
  return LayerPattern(tuple(layers[:period]))


def _read_windows(keys: Keys, family: Family, rotated: list[bool]) -> tuple[int | None, list[bool]]:
  """The window, and which layers have it. A class without windows reads none of these keys."""
  everywhere = [True] * len(rotated)
  if family.windows == "none" or (family.windows == "by layer" and not keys.boolean("use_sliding_window", False)):
    return None, everywhere
  window = keys.nullable("sliding_window", family.sliding_window)
  if family.windows == "one" or window is None:
    return window, everywhere
  if keys.given("layer_types"):
    types = keys.entries("layer_types", len(rotated), ("full_attention", "sliding_attention"))
    return window, [name == "sliding_attention" for name in types]
  if family.positions_by_layer:
    return window, [not flag for flag in rotated]
  start = keys.integer("max_window_layers", 28)
  return window, [i >= start for i in range(len(rotated))]
