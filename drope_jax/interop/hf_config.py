"""A Hugging Face config.json as a `ModelConfig`, and a rotation as its `rope_parameters`.

What a stock class of transformers would compute from a config is either carried over or refused, naming the key. Keys
that the class does not read change nothing there and are left alone here.
"""

import re
from typing import Any, NamedTuple

from drope_jax.config import ConfigError, ModelConfig, QKNorm
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


class _Family(NamedTuple):
  """A class of transformers that can be read: its defaults where a config.json is silent, and what it always has."""

  architecture: str
  num_kv_heads: int | None = None  # None: as many as query heads
  head_dim: int | None = None  # None: hidden_size / heads
  theta: float = 10_000.0
  tie_embeddings: bool = False
  sliding_window: int | None = None
  qkv_bias: bool = False
  qk_norm: QKNorm | None = None


FAMILIES = {
  "llama": _Family("LlamaForCausalLM"),
  "mistral": _Family("MistralForCausalLM", num_kv_heads=8, sliding_window=4096),
  "qwen2": _Family("Qwen2ForCausalLM", num_kv_heads=32, sliding_window=4096, qkv_bias=True),
  "qwen3": _Family("Qwen3ForCausalLM", num_kv_heads=32, head_dim=128, sliding_window=4096, qk_norm=QKNorm("head")),
  "smollm3": _Family("SmolLM3ForCausalLM", num_kv_heads=4, theta=2_000_000.0, tie_embeddings=True),
}

# Keys that would make another function of the model, and the values that do not. A missing key is fine.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu", "swish"),
  "attention_bias": (False,),  # in these classes it gives the output projection one too, and ours has none
  "mlp_bias": (False,),
  "partial_rotary_factor": (1.0, None),
  "rope_interleaved": (False,),
  "num_experts": (None,),
  "num_local_experts": (None,),
  "quantization_config": (None,),
  "auto_map": (None,),  # code of its own
}

# Our fields by those of a config.json, for messages of ModelConfig.
_FIELDS = {
  "d_model": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "num_kv_heads": "num_key_value_heads",
  "d_ff": "intermediate_size",
  "norm_eps": "rms_norm_eps",
  "init_std": "initializer_range",
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


def read_config(config: dict[str, Any], where: Any) -> Pretrained:
  """The model that a config.json describes.

  Args:
    config: its content.
    where: its path, for messages.

  Raises:
    ConfigError: naming the key whose value is missing or not supported.
  """
  kind = config.get("model_type")
  if kind not in FAMILIES:
    raise ConfigError(f"{where}: model_type is {kind!r}; allowed: {', '.join(FAMILIES)}")
  family = FAMILIES[kind]
  architectures = config.get("architectures") or [family.architecture]
  if architectures != [family.architecture]:
    raise ConfigError(f"{where}: architectures is {architectures}; allowed with {kind}: {family.architecture}")
  for key, allowed in _ALLOWED.items():
    if key in config and config[key] not in allowed:
      raise ConfigError(f"{where}: {key} is {config[key]!r}; allowed: {', '.join(map(str, allowed))}")

  def integer(key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
      raise ConfigError(f"{where}: {key} is {value!r}; it must be an integer")
    return value

  try:
    heads = integer("num_attention_heads")
    context = integer("max_position_embeddings")
    model = ModelConfig(
      vocab_size=integer("vocab_size"),
      d_model=integer("hidden_size"),
      num_layers=integer("num_hidden_layers"),
      num_heads=heads,
      num_kv_heads=config.get("num_key_value_heads", family.num_kv_heads) or heads,
      head_dim=config.get("head_dim", family.head_dim) or integer("hidden_size") // heads,
      d_ff=integer("intermediate_size"),
      positions=_read_layers(config, kind, read_rope(config, family.theta, context, where), where),
      qk_norm=family.qk_norm,
      qkv_bias=family.qkv_bias,
      tie_embeddings=config.get("tie_word_embeddings", family.tie_embeddings),
      norm_eps=float(config.get("rms_norm_eps", 1e-6)),
      init_std=float(config.get("initializer_range", 0.02)),
    )
  except ConfigError as error:
    if str(error).startswith(str(where)):
      raise
    message = re.sub(r"\b(ModelConfig\.)?(\w+)", lambda m: _FIELDS.get(m[2], m[2]), str(error))
    raise ConfigError(f"{where}: {message}") from error
  except (TypeError, ValueError) as error:  # a scaling that checks itself, or a value of another type
    raise ConfigError(f"{where}: {error}") from error
  return Pretrained(model, context)


def read_rope(config: dict[str, Any], default_theta: float, context: int, where: Any) -> RoPE | None:
  """The rotation of `rope_scaling` (transformers 4) or `rope_parameters` (5); None if it rotates nothing."""
  name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
  given = config.get(name) or {}
  if not isinstance(given, dict):
    raise ConfigError(f"{where}: {name} is {given!r}; it must be an object")
  if any(isinstance(value, dict) for value in given.values()):
    raise ConfigError(f"{where}: {name} differs by kind of layer ({', '.join(given)}); that is not supported")
  theta = given.get("rope_theta", config.get("rope_theta", default_theta))
  kind = given.get("rope_type", given.get("type", "default"))
  if kind not in _SCALING_KEYS:
    raise ConfigError(f"{where}: {name}.rope_type is {kind!r}; allowed: {', '.join(_SCALING_KEYS)}")
  values = {key: value for key, value in given.items() if key not in ("rope_type", "type", "rope_theta")}
  if values.pop("partial_rotary_factor", 1.0) != 1.0:
    raise ConfigError(f"{where}: {name}.partial_rotary_factor is {given['partial_rotary_factor']}; allowed: 1.0")
  unknown = [key for key in values if key not in _SCALING_KEYS[kind] and values[key] is not None]
  if unknown:
    raise ConfigError(f"{where}: {name}.{unknown[0]} is not supported for rope_type {kind!r}")
  if kind == "default":
    return RoPE(float(theta))
  if values.get("factor") is None:
    raise ConfigError(f"{where}: {name}.factor is missing")
  factor = float(values["factor"])
  original = values.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or context
  if kind == "linear":
    return RoPE(float(theta), PI(factor))
  if kind == "dynamic":
    if original != context:  # transformers reads max_position_embeddings alone
      raise ConfigError(
        f"{where}: {name}.original_max_position_embeddings is {original}; for rope_type 'dynamic' it must be "
        f"max_position_embeddings ({context})"
      )
    return RoPE(float(theta), DynamicNTK(context, factor))
  if kind == "yarn":
    if values.get("truncate", True) is not True:
      raise ConfigError(f"{where}: {name}.truncate is {values['truncate']!r}; allowed: True")
    fast, slow, attention_factor = (values.get(key) for key in ("beta_fast", "beta_slow", "attention_factor"))
    return RoPE(float(theta), YaRN(factor, original, float(fast or 32), float(slow or 1), attention_factor))
  if factor >= NEUTRAL_FACTOR:
    return None
  low, high = (values.get(key) for key in ("low_freq_factor", "high_freq_factor"))
  if low is None or high is None:
    raise ConfigError(f"{where}: {name}.{'high' if high is None else 'low'}_freq_factor is missing")
  return RoPE(float(theta), Llama3(factor, original, float(low), float(high)))


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


def _read_layers(config: dict[str, Any], kind: str, rope: RoPE | None, where: Any) -> Positions:
  """Which layers have the rotation and which a window, as the shortest cycle that says so."""
  num_layers = config["num_hidden_layers"]
  rotated = [True] * num_layers
  if kind == "smollm3":
    interval = config.get("no_rope_layer_interval", 4)
    flags = config.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(num_layers)]
    rotated = [bool(flag) for flag in flags]
  window = config.get("sliding_window", FAMILIES[kind].sliding_window)
  if kind != "mistral" and not config.get("use_sliding_window", False):
    window = None
  types = config.get("layer_types") if kind != "mistral" else None
  if types is None:
    start = config.get("max_window_layers", 28)
    slides = {"mistral": [True] * num_layers, "smollm3": [not flag for flag in rotated]}
    windowed = slides.get(kind, [i >= start for i in range(num_layers)])
  else:
    unknown = [name for name in types if name not in ("full_attention", "sliding_attention")]
    if unknown:
      raise ConfigError(f"{where}: layer_types has {unknown[0]!r}; allowed: full_attention, sliding_attention")
    windowed = [name == "sliding_attention" for name in types]
  for key, flags in (("no_rope_layers", rotated), ("layer_types", windowed)):
    if len(flags) != num_layers:
      raise ConfigError(f"{where}: {key} has {len(flags)} entries; num_hidden_layers is {num_layers}")
  layers = [Layer(rope if r else None, window if w else None) for r, w in zip(rotated, windowed, strict=True)]
  period = next(p for p in range(1, num_layers + 1) if all(layers[i] == layers[i % p] for i in range(num_layers)))
  if period == 1 and layers[0].window is None:
    return layers[0].positions
  return LayerPattern(tuple(layers[:period]))
