"""Which class of transformers a model of ours is written as, and its config.json: see families.py for the table."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from drope_jax.errors import ConfigError
from drope_jax.interop import rope_parameters
from drope_jax.interop.families import FAMILIES, written
from drope_jax.model_config import ModelConfig
from drope_jax.positions import Layer, RoPE, layer_cycle

_PREFERRED = ("qwen2", "llama", "mistral", "qwen3", "olmoe", "smollm3")
_PREFERRED_WITHOUT_ROPE = ("qwen2", "smollm3", "qwen3", "olmoe")  # smollm3 before a rotation that rotates nothing


class Layers(NamedTuple):
  """The layers of a model one by one, in a class's terms."""

  rope: RoPE | None  # of those that have one
  rotated: tuple[bool, ...]
  window: int | None  # of those that have one
  windowed: tuple[bool, ...]


def layers_of(model: ModelConfig) -> Layers:
  """Raises ConfigError for what no class has: an embedding of another kind, two rotations or two windows."""
  cycle = layer_cycle(model.positions)
  layers: list[Layer] = [cycle[i % len(cycle)] for i in range(model.num_layers)]
  ropes = {
    rope_parameters.as_rope(layer.positions, model.num_heads, model.head_dim)
    for layer in layers
    if layer.positions is not None
  }
  windows = {layer.window for layer in layers if layer.window is not None}
  for what, found in (("rotations", ropes), ("windows", windows)):
    if len(found) > 1:
      raise ConfigError(f"ModelConfig.positions has {len(found)} different {what}; a class of transformers has one")
  return Layers(
    next(iter(ropes), None),
    tuple(layer.positions is not None for layer in layers),
    next(iter(windows), None),
    tuple(layer.window is not None for layer in layers),
  )


def unsupported(name: str, model: ModelConfig) -> str | None:
  """Why format `name` cannot express `model`, or None if it can."""
  this, layers, norm = FAMILIES[name], layers_of(model), model.qk_norm
  if norm is not None and not (norm.queries and norm.keys):
    return f"ModelConfig.qk_norm is {norm}; a class normalises both queries and keys, or neither"
  if (norm.scope if norm else None) != this.qk_norm:
    return f"ModelConfig.qk_norm is {norm}; format {name!r} has {f'scope {this.qk_norm}' if this.qk_norm else 'none'}"
  if layers.rope is not None and layers.rope.pairs is not None and not this.stops_pairs:
    return f"ModelConfig.positions rotates {layers.rope.pairs} pairs of a head; format {name!r} rotates all or none"
  if len(set(layers.rotated)) > 1 and not this.positions_by_layer:
    return f"ModelConfig.positions rotates some layers and not others; format {name!r} treats all alike"
  if layers.window is not None and this.windows == "none":
    return f"ModelConfig.positions has a window of {layers.window}; format {name!r} has none"
  if this.windows == "one" and not all(layers.windowed):
    return f"ModelConfig.positions leaves layers without a window; format {name!r} has one in all"
  if this.bias is not None and model.qkv_bias != this.bias:
    return f"ModelConfig.qkv_bias is {model.qkv_bias}; format {name!r} has it {'always' if this.bias else 'never'}"
  if this.one_expert and model.num_heads * model.head_dim != model.d_model:
    return f"ModelConfig.num_heads * head_dim is not d_model ({model.d_model}), as it must be in format {name!r}"
  return None


def choose(name: str | None, model: ModelConfig) -> str:
  """The format asked for, or the one that says best what the model is. Raises ConfigError if it cannot express it."""
  if name is not None:
    if name not in written():
      raise ConfigError(f"format is {name!r}; allowed: {', '.join(written())}")
    reason = unsupported(name, model)
    if reason is not None:
      raise ConfigError(reason)
    return name
  candidates = _PREFERRED if all(layers_of(model).rotated) else _PREFERRED_WITHOUT_ROPE
  reasons = {name: unsupported(name, model) for name in candidates}
  for name, reason in reasons.items():
    if reason is None:
      return name
  closest = {None: "smollm3", "head": "qwen3", "full": "olmoe"}[model.qk_norm.scope if model.qk_norm else None]
  raise ConfigError(f"no format can express this model: {reasons[closest]}")


def exported_length(model: ModelConfig, context: int, target_length: int | None) -> int:
  """What `max_position_embeddings` must be; see rope_parameters.max_position."""
  return rope_parameters.max_position(layers_of(model).rope, context, target_length)


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
    logit_scale: beta, for a format that has one; the others must have it folded into the weights.
    eos_ids: every token that ends an answer.
  """
  this, layers = FAMILIES[name], layers_of(model)
  written_rope = layers.rope or RoPE() if this.positions_by_layer else layers.rope
  rope = rope_parameters.write_rope(written_rope, max_position, model.head_dim)
  scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
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
    "hidden_act": "silu",
    "max_position_embeddings": max_position,
    "initializer_range": model.init_std,
    "rms_norm_eps": model.norm_eps,
    "tie_word_embeddings": model.tie_embeddings,
    "rope_theta": rope["rope_theta"],
    "rope_scaling": None if rope["rope_type"] == "default" else scaling,  # as transformers 4 reads it
    "rope_parameters": rope,
    "attention_dropout": 0.0,
    "use_cache": True,
    "bos_token_id": bos_id,
    "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
    "pad_token_id": None,
  }
  if this.bias is None:
    config |= {"attention_bias": model.qkv_bias}
  if this.windows == "one":
    config |= {"sliding_window": layers.window}
  if this.windows == "by layer":
    config |= {
      "use_sliding_window": layers.window is not None,
      "sliding_window": layers.window,
      "layer_types": ["sliding_attention" if w else "full_attention" for w in layers.windowed],
    }
  if this.positions_by_layer:
    config |= {"no_rope_layers": [int(rotated) for rotated in layers.rotated], "mlp_bias": False}
  if this.logit_scale is not None:
    config |= {this.logit_scale: logit_scale / math.sqrt(model.head_dim), "mlp_bias": False}
  if this.one_expert:
    config |= {"norm_topk_prob": False, "output_router_logits": False, "router_aux_loss_coef": 0.0}
  config |= {key: values[0] for key, values in this.only.items()}
  return config
