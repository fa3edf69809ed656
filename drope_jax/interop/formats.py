"""Which class of transformers a model of ours is written as, and its config.json: see families.py for the table."""

import math
from typing import Any, NamedTuple

from drope_jax.config import ModelConfig
from drope_jax.errors import ConfigError
from drope_jax.interop.families import FAMILIES
from drope_jax.interop.hf_config import ntk_theta, write_rope
from drope_jax.positions import ALiBi, DynamicNTK, DynamicYaRN, Layer, RoPE, YaRN, layer_cycle

_PREFERRED = ("qwen2", "llama", "mistral", "qwen3", "olmoe", "smollm3")
_PREFERRED_WITHOUT_ROPE = ("qwen2", "smollm3", "qwen3", "olmoe")  # smollm3 before a rotation that rotates nothing


class Layers(NamedTuple):
  """The layers of a model one by one, in a class's terms."""

  rope: RoPE | None  # of those that have one
  rotated: tuple[bool, ...]
  window: int | None  # of those that have one
  windowed: tuple[bool, ...]


def layers_of(model: ModelConfig) -> Layers:
  """Raises ConfigError for what no class has: ALiBi, dynamic YaRN, two rotations or two windows in one model."""
  cycle = layer_cycle(model.positions)
  layers: list[Layer] = [cycle[i % len(cycle)] for i in range(model.num_layers)]
  if any(isinstance(layer.positions, ALiBi) for layer in layers):
    raise ConfigError(
      "ModelConfig.positions has ALiBi: no class of transformers has ALiBi in a model of this shape (BLOOM and MPT use "
      "LayerNorm), so it cannot be exported"
    )
  ropes = {ntk_theta(layer.positions, model.head_dim) for layer in layers if isinstance(layer.positions, RoPE)}
  windows = {layer.window for layer in layers if layer.window is not None}
  for what, found in (("rotations", ropes), ("windows", windows)):
    if len(found) > 1:
      raise ConfigError(f"ModelConfig.positions has {len(found)} different {what}; a class of transformers has one")
  rope = next(iter(ropes), None)
  if rope is not None and isinstance(rope.scaling, DynamicYaRN):
    raise ConfigError("ModelConfig.positions has DynamicYaRN, which transformers lacks; export YaRN of a fixed factor")
  return Layers(
    rope,
    tuple(layer.positions is not None for layer in layers),
    next(iter(windows), None),
    tuple(layer.window is not None for layer in layers),
  )


def obstacle(name: str, model: ModelConfig) -> str | None:
  """Why format `name` cannot express `model`, or None if it can."""
  this, layers, norm = FAMILIES[name], layers_of(model), model.qk_norm
  if norm is not None and not (norm.queries and norm.keys):
    return f"ModelConfig.qk_norm is {norm}; a class normalises both queries and keys, or neither"
  if (norm.scope if norm else None) != this.qk_norm:
    return f"ModelConfig.qk_norm is {norm}; format {name!r} has {f'scope {this.qk_norm}' if this.qk_norm else 'none'}"
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
    if name not in FAMILIES:
      raise ConfigError(f"format is {name!r}; allowed: {', '.join(FAMILIES)}")
    reason = obstacle(name, model)
    if reason is not None:
      raise ConfigError(reason)
    return name
  candidates = _PREFERRED if all(layers_of(model).rotated) else _PREFERRED_WITHOUT_ROPE
  reasons = {name: obstacle(name, model) for name in candidates}
  for name, reason in reasons.items():
    if reason is None:
      return name
  closest = {None: "smollm3", "head": "qwen3", "full": "olmoe"}[model.qk_norm.scope if model.qk_norm else None]
  raise ConfigError(f"no format can express this model: {reasons[closest]}")


def exported_length(model: ModelConfig, context: int, target_length: int | None) -> int:
  """What `max_position_embeddings` must be: the longest text that the model is meant for, unless its rotation reads it.

  Transformers 4 scales YaRN by max_position_embeddings / original_max_position_embeddings, whatever `factor` says, and
  every version scales `dynamic` by the length over max_position_embeddings.

  Args:
    context: tokens that the model was trained at, in the place of a `target_length` of None.

  Raises:
    ConfigError: if `target_length` is not the length that YaRN scales to.
  """
  rope = layers_of(model).rope
  scaling = None if rope is None else rope.scaling
  if isinstance(scaling, DynamicNTK):
    return scaling.original_context
  if not isinstance(scaling, YaRN):
    return target_length or context
  scaled = round(scaling.factor * scaling.original_context)
  if target_length not in (None, scaled):
    raise ConfigError(
      f"target_length is {target_length}; YaRN of factor {scaling.factor:g} scales {scaling.original_context} tokens "
      f"to {scaled}, and transformers 4 reads its factor from there: leave target_length out, or change the factor"
    )
  return scaled


def write_config(
  name: str, model: ModelConfig, *, max_position: int, dtype: str, logit_scale: float, eos_id: int, bos_id: int | None
) -> dict[str, Any]:
  """The config.json of a model in format `name`, for transformers 4 and 5.

  Args:
    max_position: `max_position_embeddings`, in tokens: see `exported_length`.
    dtype: of the weights, "float32" or "bfloat16".
    logit_scale: beta, for a format that has one; the others must have it folded into the weights.
  """
  this, layers = FAMILIES[name], layers_of(model)
  if this.positions_by_layer:
    rope = write_rope(layers.rope or RoPE(), max_position)
  else:
    rope = write_rope(layers.rope, max_position)
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
    "eos_token_id": eos_id,
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
    config |= {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}
  if this.one_expert:
    config |= {"num_experts": 1, "num_experts_per_tok": 1, "norm_topk_prob": False, "clip_qkv": None}
    config |= {"output_router_logits": False, "router_aux_loss_coef": 0.0}
  return config
