"""Chooses the class of transformers to write a model as, and writes its config.json; the table is in families.py."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop import rope_writing
from drope_jax.interop.families import DEFAULTS, FAMILIES, Family, written
from drope_jax.interop.hf_config import ACTIVATIONS
from drope_jax.interop.rope_parameters import ORIGINAL, Ropes
from drope_jax.model_config import ModelConfig
from drope_jax.positions import Layer, RoPE, layer_cycle
from drope_jax.scalings import LongRoPE

# The order in which classes are tried; those with more special features come last.
_PREFERRED = (
  *("qwen2", "llama", "mistral", "qwen3", "olmoe", "smollm3"),
  *("granite", "olmo2", "olmo3", "phi3", "gemma2", "gemma3_text"),
)
# Without RoPE, a class that can express "no rotation" is preferred to one that needs a rotation by zero angles.
_PREFERRED_WITHOUT_ROPE = ("qwen2", "smollm3", *(name for name in _PREFERRED[3:] if name != "smollm3"))


class Layers(NamedTuple):
  """Which layers of a model rotate, and which have a window."""

  rope: RoPE | None  # the rotation of the layers that have one
  rotated: tuple[bool, ...]  # one per layer
  window: int | None  # the window of the layers that have one
  windowed: tuple[bool, ...]  # one per layer


def layers_of(model: ModelConfig) -> Layers:
  """The layers. Raises ConfigError for an embedding other than RoPE, or several different rotations or windows."""
  layers = _layers(model)
  rope = _only("rotations", [layer.positions for layer in layers if layer.positions is not None])
  return Layers(rope, tuple(layer.positions is not None for layer in layers), *_windows(layers))


def kinds_of(model: ModelConfig) -> Ropes:
  """The rotations of layers with and without a window. Raises ConfigError if layers of one kind differ."""
  layers = _layers(model)
  full = _only("rotations of layers without a window", [layer.positions for layer in layers if layer.window is None])
  windowed = _only("rotations of layers with a window", [layer.positions for layer in layers if layer.window])
  return Ropes(full, windowed)


def _layers(model: ModelConfig) -> list[Layer]:
  """Every layer, with positions that a class can express, see as_rope."""
  cycle = layer_cycle(model.positions)
  as_rope = functools.partial(rope_writing.as_rope, num_heads=model.num_heads, head_dim=model.head_dim)
  ropes = [layer.positions and as_rope(layer.positions) for layer in cycle]
  named = [Layer(rope, layer.window) for rope, layer in zip(ropes, cycle, strict=True)]
  return [named[i % len(named)] for i in range(model.num_layers)]


def _windows(layers: list[Layer]) -> tuple[int | None, tuple[bool, ...]]:
  window = _only("windows", [layer.window for layer in layers if layer.window is not None])
  return window, tuple(layer.window is not None for layer in layers)


def _only(what: str, found: list[Any]) -> Any:
  """The one value of a list, or None if it is empty."""
  values = set(found)
  if len(values) > 1:
    raise ConfigError(f"ModelConfig.positions has {len(values)} different {what}; a class of transformers has one")
  return next(iter(values), None)


def unsupported(name: str, model: ModelConfig) -> str | None:
  """Why format `name` cannot express `model`, or None if it can."""
  this, norm = FAMILIES[name], model.qk_norm
  if norm is not None and not (norm.queries and norm.keys):
    return f"ModelConfig.qk_norm is {norm}; a class normalises both queries and keys, or neither"
  if (norm.scope if norm else None) != this.qk_norm:
    return f"ModelConfig.qk_norm is {norm}; format {name!r} has {f'scope {this.qk_norm}' if this.qk_norm else 'none'}"
  reason = _unsupported_positions(name, model) or _unsupported_fields(name, model)
  if reason is not None:
    return reason
  if this.bias is not None and model.qkv_bias != this.bias:
    return f"ModelConfig.qkv_bias is {model.qkv_bias}; format {name!r} has it {'always' if this.bias else 'never'}"
  if this.square and model.num_heads * model.head_dim != model.d_model:
    return f"ModelConfig.num_heads * head_dim is not d_model ({model.d_model}), as it must be in format {name!r}"
  return None


def _unsupported_positions(name: str, model: ModelConfig) -> str | None:
  this = FAMILIES[name]
  if this.rotations_by_kind:
    layers: Layers | None = None
    ropes, (window, windowed) = list(kinds_of(model)), _windows(_layers(model))
    if window is None:
      return f"ModelConfig.positions has no window; format {name!r} has layers with one"
  else:
    layers = layers_of(model)
    ropes, window, windowed = [layers.rope], layers.window, layers.windowed
  for rope in ropes:
    if rope is not None and (rope.pairs or rope.rotary_dim) is not None and not this.stops_pairs:
      pairs = rope.pairs or (rope.rotary_dim or 0) // 2
      return f"ModelConfig.positions rotates {pairs} pairs of a head; format {name!r} rotates all or none"
    if rope is not None and not this.rotates_part and _scales_part(rope, model.head_dim):
      return f"ModelConfig.positions has {rope}, which scales the logits of a part of a head; format {name!r} cannot"
    if rope is not None and this.rope_types is not None and not _is_plain_factor(rope):
      return f"ModelConfig.positions has {rope}; format {name!r} computes the attention factor itself"
  if layers is not None and len(set(layers.rotated)) > 1 and not this.positions_by_layer:
    return f"ModelConfig.positions rotates some layers and not others; format {name!r} treats all alike"
  if window is not None and this.windows == "none":
    return f"ModelConfig.positions has a window of {window}; format {name!r} has none"
  if this.windows == "one" and not (all(windowed) or not any(windowed)):
    return f"ModelConfig.positions leaves layers without a window; format {name!r} has one in all"
  return None


def _scales_part(rope: RoPE, head_dim: int) -> bool:
  """Whether the factor on cos and sin only applies to some pairs."""
  return np.ndim(rope.frequencies(head_dim, 1).factor) > 0


def _is_plain_factor(rope: RoPE) -> bool:
  """Whether the factor on cos and sin is 1, or LongRoPE's default."""
  scaling = rope.scaling
  if isinstance(scaling, LongRoPE):
    return scaling.attention_factor in (None, scaling.default_attention_factor)
  return not rope.dynamic and (scaling is None or float(scaling.frequencies(rope.theta, 4).factor) == 1)


def _unsupported_fields(name: str, model: ModelConfig) -> str | None:
  """The reason why format `name` cannot express a field that other families add to Llama, if there is one."""
  this = FAMILIES[name]
  for field in DEFAULTS.keys() - this.numbers.keys():
    value, constant = getattr(model, field), this.constant(field, model.d_model)
    if value != constant:
      return f"ModelConfig.{field} is {value}; in format {name!r} it is {constant}"
  if model.attention_scale is not None and (this.logit_scale is None or this.folds_logit_scale):
    return f"ModelConfig.attention_scale is {model.attention_scale}; format {name!r} has none"
  if this.logit_scale is not None and not this.takes_beta and _written_scale(this, model) % 1:
    scale = model.attention_scale
    return f"ModelConfig.attention_scale is {scale}; format {name!r} has 1/sqrt(n) of a whole number n"
  return None


def beyond_llama(model: ModelConfig) -> str | None:
  """The first feature of a model that Llama does not have, for messages; None if there is none."""
  for field, default in {**DEFAULTS, "attention_scale": None}.items():
    if getattr(model, field) != default:
      return f"ModelConfig.{field} is {getattr(model, field)!r}"
  return None


def _written_scale(family: Family, model: ModelConfig) -> float:
  """The value of the class's key for the factor on q.k, before beta is folded in."""
  scale = model.head_dim**-0.5 if model.attention_scale is None else model.attention_scale
  value = scale ** (1 / family.logit_scale_power)
  return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-6) else value


def choose(name: str | None, model: ModelConfig) -> str:
  """Format `name`, or for None the one that describes the model best. Raises ConfigError if it cannot express it."""
  if name is not None:
    if name not in written():
      raise ConfigError(f"format is {name!r}; allowed: {', '.join(written())}")
    reason = unsupported(name, model)
    if reason is not None:
      raise ConfigError(reason)
    return name
  rotated = all(layer.positions is not None for layer in _layers(model))
  reasons: dict[str, str] = {}
  for name in _PREFERRED if rotated else _PREFERRED_WITHOUT_ROPE:
    try:
      reason = unsupported(name, model)
    except ConfigError as error:  # the next class may support two of what this one has only once
      reason = str(error)
    if reason is None:
      return name
    reasons[name] = reason
  closest = {None: "smollm3", "head": "qwen3", "full": "olmoe"}[model.qk_norm.scope if model.qk_norm else None]
  if model.norm_placement != "pre":
    closest = {"post": "olmo2", "both": "gemma3_text" if model.qk_norm else "gemma2"}[model.norm_placement]
  raise ConfigError(f"no format can express this model: {reasons[closest]}")


def exported_length(model: ModelConfig, context: int, target_length: int | None) -> int:
  """The value of `max_position_embeddings`; see rope_writing.max_position."""
  ropes = {layer.positions for layer in _layers(model)}
  lengths = {rope_writing.max_position(rope, context, target_length) for rope in ropes if isinstance(rope, RoPE)}
  scaled = lengths - {target_length or context}
  return _only("lengths that rotations scale to", list(scaled)) or target_length or context


def write_config(
  name: str,
  model: ModelConfig,
  *,
  max_position: int,
  dtype: str,
  logit_scale: float,
  eos_ids: Sequence[int],
  bos_id: int | None,
) -> dict[str, Any]:
  """The config.json of a model in format `name`, for transformers 4 and 5.

  Args:
    max_position: `max_position_embeddings`, in tokens: see `exported_length`.
    dtype: of the weights, "float32" or "bfloat16".
    logit_scale: beta, for formats with a logit scale; for others it must be folded into the weights.
    eos_ids: all tokens that end an answer.
    bos_id: the token that begins a document, if there is one.
  """
  this, (window, windowed) = FAMILIES[name], _windows(_layers(model))
  config = {
    "architectures": [this.architecture],
    "model_type": name,
    "dtype": dtype,
    "torch_dtype": dtype,
    "vocab_size": model.vocab_size,
    "hidden_size": model.d_model,
    "intermediate_size": model.d_ff,
    "num_hidden_layers": model.num_layers,
    "num_attention_heads": model.num_heads,
    "num_key_value_heads": model.num_kv_heads,
    "head_dim": model.head_dim,
    this.activation_key: ACTIVATIONS[model.activation][0],
    "max_position_embeddings": max_position,
    "initializer_range": model.init_std,
    "rms_norm_eps": model.norm_eps,
    "tie_word_embeddings": model.tie_embeddings,
    **_write_ropes(this, model, max_position),
    "attention_dropout": 0.0,
    "use_cache": True,
    "bos_token_id": bos_id,
    "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
    "pad_token_id": None,
  }
  if this.bias is None:
    config |= {"attention_bias": model.qkv_bias}
  if this.windows == "one":
    config |= {"sliding_window": window}
  if this.windows == "by layer":
    config |= {
      "use_sliding_window": window is not None,
      "sliding_window": window,
      "layer_types": ["sliding_attention" if w else "full_attention" for w in windowed],
    }
  if this.positions_by_layer:
    config |= {"no_rope_layers": [int(rotated) for rotated in layers_of(model).rotated], "mlp_bias": False}
  if this.logit_scale is not None:
    scale = _written_scale(this, model)
    config |= {this.logit_scale: scale * logit_scale if this.takes_beta else int(scale), "mlp_bias": False}
  if this.one_expert:
    config |= {"norm_topk_prob": False, "output_router_logits": False, "router_aux_loss_coef": 0.0}
  config |= {number.key: getattr(model, field) for field, number in this.numbers.items()}
  config |= {key: values[0] for key, values in this.only.items()}
  return config


# The only keys of `rope_scaling` that some classes of version 4 accept.
_NEEDED = {"linear": ("factor",), "dynamic": ("factor",), "longrope": ("short_factor", "long_factor")}


def _write_ropes(family: Family, model: ModelConfig, max_position: int) -> dict[str, Any]:
  """The rotations, for versions 5 (`rope_parameters`) and 4 (the other keys).

  If version 4 cannot express the rotation of layers with a window, the key that it reads is null, so that it fails
  instead of computing another function.
  """
  write = functools.partial(rope_writing.write_rope, context=max_position, head_dim=model.head_dim, family=family)
  if not family.rotations_by_kind:
    rope = layers_of(model).rope
    full = parameters = write(rope or RoPE() if family.positions_by_layer else rope)
    theta: dict[str, Any] = {"rope_theta": full["rope_theta"]}
  else:
    full, windowed = map(write, kinds_of(model))
    parameters = {"full_attention": full, "sliding_attention": windowed}
    plain = windowed["rope_theta"] if windowed["rope_type"] == "default" else None
    theta = {"rope_theta": full["rope_theta"] if family.local_theta_key or plain == full["rope_theta"] else None}
    theta |= {family.local_theta_key: plain} if family.local_theta_key else {}
  scaling = {key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor")}
  config = {**theta, "rope_scaling": None if full["rope_type"] == "default" else scaling, "rope_parameters": parameters}
  if full["rope_type"] == "longrope":
    config |= {ORIGINAL: full[ORIGINAL]}
  if family.rotates_part:
    config |= {"partial_rotary_factor": full.get("partial_rotary_factor", 1.0)}
  needed = _NEEDED.get(full["rope_type"])
  if family.few_scaling_keys and needed is not None:
    config["rope_scaling"] = {"type": full["rope_type"], **{key: scaling[key] for key in needed}}
  return config
