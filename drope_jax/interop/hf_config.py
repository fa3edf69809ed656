"""Converts a Hugging Face config.json to a `ModelConfig`.

Everything that a class of transformers would compute from a config is either carried over or refused, naming the key.
Keys that the class does not read are ignored here as well.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from drope_jax.errors import ConfigError
from drope_jax.interop.families import DEFAULTS, FAMILIES, Family
from drope_jax.interop.keys import Keys
from drope_jax.interop.rope_parameters import Ropes, read_ropes
from drope_jax.model_config import ModelConfig, QKNorm
from drope_jax.positions import Layer, LayerPattern, Positions

# The names of our activations in transformers, of which the first is written.
ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",)}


class Description(NamedTuple):
  """The model that a config.json describes."""

  model: ModelConfig
  context: int  # training context in tokens (max_position_embeddings)
  beta: float = 1.0  # a factor on the attention logits, to be folded into the weights


MOST_LAYERS = 10_000  # ten times as many as any released model has

# Keys that would change the function of the model, with the values that do not. A missing key is fine.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "mlp_bias": (False,),
  "rope_interleaved": (False,),
  "quantization_config": (None,),
  "transformers_weights": (None,),  # files of another name
}
_WHOLE_HEADS: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (1.0, None)}
_NO_EXPERTS: dict[str, tuple[Any, ...]] = {"num_experts": (None,), "num_local_experts": (None,)}


def read_config(config: dict[str, Any], where: Any, names: Mapping[str, str] | None = None) -> Description:
  """The model that a config.json describes.

  Args:
    config: its content.
    where: its path, for messages.
    names: the keys in the file that it was derived from, likewise.

  Raises:
    ConfigError: naming the key whose value is missing or not supported.
  """
  keys = Keys(config, where, names or {})
  family = family_of(config, where, names)
  keys.check({**_ALLOWED, family.activation_key: ACTIVATIONS[family.constant("activation", 1)]})
  keys.check({} if family.rotates_part else _WHOLE_HEADS)
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
  fields |= {name: family.constant(name, width) for name in DEFAULTS} | _read_numbers(keys, family)
  beta = 1.0
  if family.folds_logit_scale:
    beta = _read_beta(keys, family, head_dim)
  elif family.logit_scale is not None:
    fields["attention_scale"] = _read_scale(keys, family, head_dim)
  ropes = read_ropes(config, family, context, head_dim, where, names)
  fields["positions"] = _read_layers(keys, family, fields["num_layers"], ropes)
  if family.fields is not None:
    fields |= family.fields(keys)
  try:
    model = ModelConfig(**fields)
  except ConfigError as error:
    raise keys.named(error) from error
  return Description(model, context, beta)


# Keys of a config.json that do not affect the function: history, tokens, training and generation.
_REMARKS = (
  "_name_or_path _attn_implementation architectures attention_dropout attn_implementation auto_map bad_words_ids "
  "begin_suppress_tokens bos_token_id cross_attention_hidden_size decoder_start_token_id dtype eos_token_id id2label "
  "initializer_range keys_to_ignore_at_inference label2id license max_length max_sequence_length model_type "
  "output_attentions output_hidden_states pad_token_id pretraining_tp return_dict task_specific_params tokenizer_class "
  "torch_dtype torchscript transformers_version unk_token_id use_cache use_flash_attention"
)
_LLAMA = (
  "attention_bias head_dim hidden_act hidden_size intermediate_size max_position_embeddings mlp_bias "
  "num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings partial_rotary_factor "
  "rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size"
)


def family_of(config: Mapping[str, Any], where: Any, names: Mapping[str, str] | None = None) -> Family:
  """The class of a config.json; arguments as for `read_config`.

  A type with its own code (`auto_map`) but no other keys than a Llama is read as a Llama; the caller must check that
  its arrays are those of a Llama, too.

  Raises:
    ConfigError: if it is not supported.
  """
  keys, kind = Keys(config, where, names or {}), config.get("model_type")
  if isinstance(kind, str) and kind in FAMILIES:
    family = FAMILIES[kind]
    architectures = config.get("architectures") or [family.architecture]
    if architectures != [family.architecture]:
      keys.refuse("architectures", f"is {architectures}; allowed with {kind}: {family.architecture}")
    return family
  if not isinstance(kind, str) or not keys.given("auto_map"):
    keys.refuse("model_type", f"is {kind!r}; allowed: {', '.join(FAMILIES)}")
  own = sorted(config.keys() - {*_REMARKS.split(), *_LLAMA.split()})
  if own:
    said = f"is {kind!r}, whose code (auto_map) is not run; it is no plain Llama, as it has {', '.join(own)}"
    keys.refuse("model_type", f"{said}; allowed: {', '.join(FAMILIES)}")
  return FAMILIES["llama"]


def _read_numbers(keys: Keys, family: Family) -> dict[str, float | None]:
  """The fields for which the class has its own keys; null is only allowed for those that may be None."""

  def read(field: str, key: str, default: float | None) -> float | None:
    absent = keys.null(key) or (default is None and not keys.given(key))
    return None if absent and DEFAULTS[field] is None else keys.number(key, default)

  return {field: read(field, *number) for field, number in family.numbers.items()}


def _read_scale(keys: Keys, family: Family, head_dim: int) -> float | None:
  """The factor on q.k; None if it is the usual one."""
  assert family.logit_scale is not None
  value = keys.number(family.logit_scale, family.logit_scale_default)
  if not value > 0:
    keys.refuse(family.logit_scale, f"is {value}; it must be positive")
  scale = value**family.logit_scale_power
  return None if math.isclose(scale, head_dim**-0.5, rel_tol=1e-6) else scale


def _read_beta(keys: Keys, family: Family, head_dim: int) -> float:
  """The factor on the attention logits in addition to 1/sqrt(h)."""
  assert family.logit_scale is not None
  usual = head_dim**-0.5
  scale = keys.number(family.logit_scale) if keys.given(family.logit_scale) else usual
  if not scale > 0:
    keys.refuse(family.logit_scale, f"is {scale}; allowed: a positive number")
  return 1.0 if math.isclose(scale, usual, rel_tol=1e-6) else scale / usual


def _read_layers(keys: Keys, family: Family, num_layers: int, ropes: Ropes) -> Positions:
  """The rotations and windows of the layers, as the shortest cycle that describes them."""
  rotated = [True] * num_layers
  if family.positions_by_layer and keys.given("no_rope_layers"):
    rotated = [bool(flag) for flag in keys.entries("no_rope_layers", num_layers, (0, 1))]
  elif family.positions_by_layer:
    interval = keys.integer("no_rope_layer_interval", 4)
    rotated = [(i + 1) % interval != 0 for i in range(num_layers)]
  window, windowed = _read_windows(keys, family, rotated)
  layers = [
    Layer((ropes.windowed if w else ropes.full) if r else None, window if w else None)
    for r, w in zip(rotated, windowed, strict=True)
  ]
  period = next(p for p in range(1, num_layers + 1) if all(layers[i] == layers[i % p] for i in range(num_layers)))
  if period == 1 and layers[0].window is None:
    return layers[0].positions
  return LayerPattern(tuple(layers[:period]))


def _read_windows(keys: Keys, family: Family, rotated: list[bool]) -> tuple[int | None, list[bool]]:
  """The window, and which layers have it. Classes without windows ignore these keys."""
  everywhere, nowhere = [True] * len(rotated), [False] * len(rotated)
  off = family.full_every is None and not keys.boolean("use_sliding_window", False)
  if family.windows == "none" or (family.windows == "by layer" and off):
    return None, nowhere
  window = keys.nullable("sliding_window", family.sliding_window)
  if window is None and family.full_every is not None and family.rotations_by_kind:
    # The rotations of its layers would still differ.
    keys.refuse("sliding_window", "is null; it must be an integer of at least 1")
  if window is None:
    return None, nowhere
  if family.windows == "one":
    return window, everywhere
  if keys.given("layer_types"):
    types = keys.entries("layer_types", len(rotated), ("full_attention", "sliding_attention"))
    return window, [name == "sliding_attention" for name in types]
  if family.full_every is not None:
    key, every = family.full_every_key, family.full_every
    every = every if key is None else keys.integer(key, every)
    return window, [(i + 1) % every != 0 for i in range(len(rotated))]
  if family.positions_by_layer:
    return window, [not flag for flag in rotated]
  start = keys.integer("max_window_layers", 28)
  return window, [i >= start for i in range(len(rotated))]
