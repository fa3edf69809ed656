"""A Hugging Face config.json as a `ModelConfig`, and a rotation as its `rope_parameters`.

What a stock class of transformers would compute from a config is either carried over or refused, naming the key. Keys
that the class does not read change nothing there and are left alone here.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from drope_jax.config import ModelConfig, QKNorm
from drope_jax.errors import ConfigError
from drope_jax.interop.families import FAMILIES, Family
from drope_jax.positions import (
  NTK,
  PI,
  DynamicNTK,
  Layer,
  LayerPattern,
  Llama3,
  NTKByParts,
  Positions,
  RoPE,
  YaRN,
)

# With wavelengths of any length divided by this, no angle differs from 0 in float32: a rotation that rotates nothing,
# written as `llama3` because vLLM would build a table of max_position * factor rows for `linear`.
NEUTRAL_FACTOR = 1e30


class Pretrained(NamedTuple):
  """What a config.json says of a model."""

  model: ModelConfig
  context: int  # tokens it was made for (max_position_embeddings)


# Keys that would make another function of the model, and the values that do not. A missing key is fine.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu", "swish"),
  "mlp_bias": (False,),
  "partial_rotary_factor": (1.0, None),
  "rope_interleaved": (False,),
  "quantization_config": (None,),
  "auto_map": (None,),  # code of its own
}
_NO_EXPERTS: dict[str, tuple[Any, ...]] = {"num_experts": (None,), "num_local_experts": (None,)}
_ONE_EXPERT: dict[str, tuple[Any, ...]] = {"num_experts": (1,), "num_experts_per_tok": (1,), "clip_qkv": (None,)}
_LOGIT_SCALE: dict[str, tuple[Any, ...]] = {
  key: (1,) for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling")
}

# Our fields by those of a config.json, for the messages of what checks itself.
_FIELDS = {
  "d_model": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "num_kv_heads": "num_key_value_heads",
  "d_ff": "intermediate_size",
  "norm_eps": "rms_norm_eps",
  "init_std": "initializer_range",
  "theta": "rope_theta",
  "original_context": "original_max_position_embeddings",
}

_SCALING_KEYS = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor", "original_max_position_embeddings"),
  "yarn": (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
  ),
  "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}


class Keys:
  """The values of a config.json, each of the type that is asked for.

  Readers raise ConfigError naming the file, the key as the file calls it, its value and what is allowed.

  Args:
    values: the config, or an object in it.
    where: its path.
    names: keys as the file calls them, where that is not their name at Hugging Face.
    prefix: what stands before the keys of an object in the config.
  """

  def __init__(self, values: Mapping[str, Any], where: Any, names: Mapping[str, str], prefix: str = ""):
    self._values, self._where, self._names, self._prefix = values, where, names, prefix

  def name(self, key: str) -> str:
    return self._names.get(self._prefix + key, self._prefix + key)

  def refuse(self, key: str, said: str) -> NoReturn:
    raise ConfigError(f"{self._where}: {self.name(key)} {said}")

  def given(self, key: str) -> bool:
    """Whether there is a value, other than null."""
    return self._values.get(key) is not None

  def integer(self, key: str, default: int | None = None) -> int:
    """An integer of at least 1; `default` where it is missing."""
    value = self._values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      self._refuse_type(key, value, "an integer of at least 1")
    return value

  def nullable(self, key: str, default: int | None) -> int | None:
    """Likewise, or null; `default` where it is missing."""
    return self.integer(key) if self.given(key) else None if key in self._values else default

  def number(self, key: str, default: float | None = None, minimum: float = -math.inf) -> float:
    """A finite number of at least `minimum`; `default` where it is missing."""
    value = self._values.get(key, default)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < minimum:
      self._refuse_type(key, value, "a number" if minimum == -math.inf else f"a number of at least {minimum:g}")
    return float(value)

  def boolean(self, key: str, default: bool) -> bool:
    """true or false; `default` where it is missing."""
    value = self._values.get(key, default)
    if not isinstance(value, bool):
      self._refuse_type(key, value, "true or false")
    return value

  def entries(self, key: str, count: int, allowed: tuple[Any, ...]) -> list[Any]:
    """A list of `count` values that are `allowed`."""
    value = self._values.get(key)
    if not isinstance(value, list):
      self._refuse_type(key, value, "a list")
    unknown = [entry for entry in value if entry not in allowed]
    if unknown:
      self.refuse(key, f"has {unknown[0]!r}; allowed: {', '.join(map(str, allowed))}")
    if len(value) != count:
      self.refuse(key, f"has {len(value)} entries; {self.name('num_hidden_layers')} is {count}")
    return value

  def check(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses a key with another value than those allowed."""
    for key, values in allowed.items():
      if key in self._values and self._values[key] not in values:
        self.refuse(key, f"is {self._values[key]!r}; allowed: {', '.join(map(str, values))}")

  def named(self, error: ValueError) -> ConfigError:
    """The error of a value of ours that checks itself, in the file's words."""

    def rename(word: re.Match[str]) -> str:
      ours = word[2]
      return self.name(_FIELDS.get(ours, ours)) if word[1] or ours in _FIELDS else word[0]

    return ConfigError(f"{self._where}: " + re.sub(r"\b([A-Z]\w*\.)?(\w+)", rename, str(error)))

  def _refuse_type(self, key: str, value: Any, kind: str) -> NoReturn:
    self.refuse(key, f"is {repr(value) if key in self._values else 'missing'}; it must be {kind}")


def read_config(config: dict[str, Any], where: Any, names: Mapping[str, str] | None = None) -> Pretrained:
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
  keys.check(_ONE_EXPERT if family.one_expert else _NO_EXPERTS)
  if family.one_expert and not (keys.given("num_experts") and keys.given("num_experts_per_tok")):
    keys.refuse("num_experts", "and num_experts_per_tok must both be 1: ours have one feed-forward layer")
  heads, width = keys.integer("num_attention_heads"), keys.integer("hidden_size")
  head_dim = keys.nullable("head_dim", family.head_dim) or width // heads
  if head_dim < 1:
    keys.refuse("num_attention_heads", f"is {heads}; it must be at most {keys.name('hidden_size')} ({width})")
  if family.logit_scale is not None:
    keys.check(_LOGIT_SCALE)
    scale = keys.number(family.logit_scale, 1.0)
    if not math.isclose(scale, head_dim**-0.5, rel_tol=1e-6):
      keys.refuse(family.logit_scale, f"is {scale}; allowed: 1/sqrt(head size), {head_dim**-0.5:.6g}")
  context = keys.integer("max_position_embeddings")
  fields: dict[str, Any] = {
    "vocab_size": keys.integer("vocab_size"),
    "d_model": width,
    "num_layers": keys.integer("num_hidden_layers"),
    "num_heads": heads,
    "num_kv_heads": keys.nullable("num_key_value_heads", family.num_kv_heads) or heads,
    "head_dim": head_dim,
    "d_ff": keys.integer("intermediate_size"),
    "qkv_bias": keys.boolean("attention_bias", False) if family.bias is None else family.bias,
    "tie_embeddings": keys.boolean("tie_word_embeddings", family.tie_embeddings),
    "norm_eps": keys.number("rms_norm_eps", family.norm_eps),
    "init_std": keys.number("initializer_range", 0.02),
  }
  rope = read_rope(config, family.theta, context, where, names)
  positions = _read_layers(keys, family, fields["num_layers"], rope)
  try:
    model = ModelConfig(
      **fields,
      positions=positions,
      qk_norm=None if family.qk_norm is None else QKNorm(family.qk_norm),
    )
  except ConfigError as error:
    raise keys.named(error) from error
  return Pretrained(model, context)


def read_rope(
  config: dict[str, Any], default_theta: float, context: int, where: Any, names: Mapping[str, str] | None = None
) -> RoPE | None:
  """The rotation of `rope_scaling` (transformers 4) or `rope_parameters` (5); None if it rotates nothing."""
  name, names = "rope_scaling" if config.get("rope_scaling") else "rope_parameters", names or {}
  given, top = config.get(name) or {}, Keys(config, where, names)
  if not isinstance(given, dict):
    top.refuse(name, f"is {given!r}; it must be an object")
  if any(isinstance(value, dict) for value in given.values()):
    top.refuse(name, f"differs by kind of layer ({', '.join(given)}); that is not supported")
  keys = Keys(given, where, names, f"{name}.")
  beside = keys if "rope_theta" in given else top
  theta = beside.number("rope_theta", default_theta)
  if not theta > 1:
    beside.refuse("rope_theta", f"is {theta}; it must exceed 1")
  kind = given.get("rope_type", given.get("type", "default"))
  if not isinstance(kind, str) or kind not in _SCALING_KEYS:
    keys.refuse("rope_type", f"is {kind!r}; allowed: {', '.join(_SCALING_KEYS)}")
  keys.check({"partial_rotary_factor": (1.0, None)})
  known = (*_SCALING_KEYS[kind], "rope_type", "type", "rope_theta", "partial_rotary_factor")
  for key in given:
    if key not in known and keys.given(key):
      keys.refuse(key, f"is not supported for rope_type {kind!r}")
  try:
    return _read_scaling(kind, theta, keys, top, context)
  except ConfigError:
    raise
  except ValueError as error:  # a rotation or a scaling that checks itself
    raise keys.named(error) from error


def _read_scaling(kind: str, theta: float, keys: Keys, top: Keys, context: int) -> RoPE | None:
  """A rotation of the kind `rope_type`: `keys` are those of its object, `top` those around it."""
  if kind == "default":
    return RoPE(theta)
  factor = keys.number("factor", minimum=1)
  if kind == "linear":
    return RoPE(theta, PI(factor))
  above = top.integer("original_max_position_embeddings") if top.given("original_max_position_embeddings") else context
  given = keys.given("original_max_position_embeddings")
  original = keys.integer("original_max_position_embeddings") if given else above
  if kind == "dynamic":
    if original != context:  # transformers reads max_position_embeddings alone
      keys.refuse(
        "original_max_position_embeddings",
        f"is {original}; for rope_type 'dynamic' it must be max_position_embeddings ({context})",
      )
    return RoPE(theta, DynamicNTK(context, factor))
  if kind == "yarn":
    keys.check({"truncate": (True, None)})
    # Null and 0 are the defaults there too.
    fast, slow = (keys.number(key) if keys.given(key) else 0.0 for key in ("beta_fast", "beta_slow"))
    attention_factor = keys.number("attention_factor") if keys.given("attention_factor") else None
    return RoPE(theta, YaRN(factor, original, fast or 32.0, slow or 1.0, attention_factor))
  if factor >= NEUTRAL_FACTOR:
    return None
  return RoPE(theta, Llama3(factor, original, keys.number("low_freq_factor"), keys.number("high_freq_factor")))


def write_rope(rope: RoPE | None, context: int) -> dict[str, Any]:
  """`rope_parameters` that make a stock class rotate as `rope` does, or not at all for None.

  Args:
    rope: of any scaling with fixed frequencies, or DynamicNTK.
    context: `max_position_embeddings` beside it.

  Raises:
    ConfigError: for a scaling that transformers does not have.
  """
  if rope is None:
    neutral = {"factor": NEUTRAL_FACTOR, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": "llama3", "rope_theta": 10_000.0, **neutral, "original_max_position_embeddings": 1}
  theta, scaling = {"rope_theta": rope.theta}, rope.scaling
  if scaling is None:
    return {"rope_type": "default", **theta}
  if isinstance(scaling, PI):
    return {"rope_type": "linear", **theta, "factor": scaling.factor}
  if isinstance(scaling, DynamicNTK) and scaling.original_context == context:
    return {"rope_type": "dynamic", **theta, "factor": scaling.factor}
  if isinstance(scaling, YaRN):
    return {
      "rope_type": "yarn",
      **theta,
      "factor": scaling.factor,
      "original_max_position_embeddings": scaling.original_context,
      "beta_fast": scaling.beta_fast,
      "beta_slow": scaling.beta_slow,
      "attention_factor": scaling.frequencies(rope.theta, 4)[1],
    }
  if isinstance(scaling, NTKByParts):  # Llama 3's formula under another name
    scaling = Llama3(scaling.factor, scaling.original_context, scaling.slow, scaling.fast)
  if isinstance(scaling, Llama3):
    return {
      "rope_type": "llama3",
      **theta,
      "factor": scaling.factor,
      "original_max_position_embeddings": scaling.original_context,
      "low_freq_factor": scaling.low_freq_factor,
      "high_freq_factor": scaling.high_freq_factor,
    }
  raise ConfigError(f"ModelConfig.positions has scaling {scaling}: transformers cannot express it")


def ntk_theta(rope: RoPE, head_dim: int) -> RoPE:
  """The same rotation without its NTK scaling, which is a change of theta: theta * s**(h / (h - 2))."""
  if not isinstance(rope.scaling, NTK):
    return rope
  return RoPE(rope.theta * rope.scaling.factor ** (head_dim / (head_dim - 2)))


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
