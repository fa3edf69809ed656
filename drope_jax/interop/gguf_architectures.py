"""The architectures of llama.cpp that can be imported and exported: one table of what each can express.

| name        | positions                           | windows  | QK-norm       | biases   | note                     |
|-------------|-------------------------------------|----------|---------------|----------|--------------------------|
| llama       | one RoPE, any fixed frequencies     | none     | none          | optional |                          |
| qwen2       | one RoPE, plain, PI or YaRN         | none     | none          | always   |                          |
| qwen3       | likewise                            | none     | of each head  | never    |                          |
| olmoe       | likewise                            | none     | of full width | never    | one expert               |
| granite_swa | each layer RoPE or none, as llama's | by layer | none          | optional | llama.cpp of late 2026   |
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop.formats import beyond_llama, layers_of
from drope_jax.interop.weights import Weight
from drope_jax.model_config import ModelConfig
from drope_jax.positions import RoPE
from drope_jax.scalings import PI, YaRN


class Architecture(NamedTuple):
  """What an architecture can express."""

  family: str  # the equivalent class in families.py
  interleaved: bool  # whether its rotation pairs 2i with 2i + 1, instead of i with i + h/2
  factors: bool = False  # whether it reads rope_freqs.weight, and so supports any fixed frequencies
  by_layer: bool = False  # whether rotation and window can differ by layer
  qk_norm: str | None = None  # the scope of its QK-norm
  bias: bool | None = False  # whether q, k and v have biases; None: optional
  one_expert: bool = False  # whether it is a mixture of experts, used with a single expert


ARCHITECTURES: Mapping[str, Architecture] = {
  "qwen2": Architecture("qwen2", interleaved=False, bias=True),
  "llama": Architecture("llama", interleaved=True, factors=True, bias=None),
  "qwen3": Architecture("qwen3", interleaved=False, qk_norm="head"),
  "olmoe": Architecture("olmoe", interleaved=False, qk_norm="full", one_expert=True),
  "granite_swa": Architecture("smollm3", interleaved=True, factors=True, by_layer=True, bias=None),
}


# Arrays of some architectures in addition to those of weights.py; `{}` stands for the number of the layer.
SINKS = "blk.{}.attn_sinks.weight"  # attention sinks: one extra logit per head, without a value
NO_SINK = -1e30  # a logit that has no effect
NO_WINDOW = 1 << 24  # tokens; a window without effect, for files that must have one
OUTPUT_BIAS = ("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias")  # names in Hugging Face and GGUF
ROUTER = ("model.layers.{}.mlp.gate.weight", "blk.{}.ffn_gate_inp.weight")
EXPERT_ARRAYS = ("gate", "up", "down")  # our names of the arrays that each expert has


def expert_name(weight: Weight) -> str:
  """The name of an array of experts."""
  return weight.gguf.replace(".weight", "_exps.weight")


def architecture_of(model: ModelConfig) -> str:
  """The first architecture that can express a model. Raises ConfigError with the reason if there is none."""
  reasons = {name: unsupported(name, model) for name in ARCHITECTURES}
  for name, reason in reasons.items():
    if reason is None:
      return name
  closest = {None: "granite_swa", "head": "qwen3", "full": "olmoe"}[model.qk_norm.scope if model.qk_norm else None]
  raise ConfigError(f"no architecture of llama.cpp fits: {reasons[closest]}")


def unsupported(name: str, model: ModelConfig) -> str | None:
  """Why an architecture cannot express `model`, or None if it can."""
  this, layers, norm = ARCHITECTURES[name], layers_of(model), model.qk_norm
  here, more = f"architecture {name!r} of llama.cpp", beyond_llama(model)
  if more is not None:
    return f"{more}; {here} has none"
  if norm is not None and not (norm.queries and norm.keys):
    return f"ModelConfig.qk_norm is {norm}; {here} normalises both queries and keys, or neither"
  if (norm.scope if norm else None) != this.qk_norm:
    return f"ModelConfig.qk_norm is {norm}; {here} has {f'scope {this.qk_norm}' if this.qk_norm else 'none'}"
  if this.bias is not None and model.qkv_bias != this.bias:
    return f"ModelConfig.qkv_bias is {model.qkv_bias}; {here} has it {'always' if this.bias else 'never'}"
  if layers.window is not None and not this.by_layer:
    return f"ModelConfig.positions has a window of {layers.window}; {here} has none"
  if len(set(layers.rotated)) > 1 and not this.by_layer:
    return f"ModelConfig.positions rotates some layers and not others; {here} treats all alike"
  if layers.rope is not None and not is_keyed(layers.rope) and not (this.factors and _is_fixed(layers.rope, model)):
    return f"ModelConfig.positions has {layers.rope}; {here} has no such rotation"
  square = model.num_heads * model.head_dim == model.d_model
  if (this.bias or this.one_expert) and not square:
    return f"ModelConfig.num_heads * head_dim is not d_model ({model.d_model}), as it must be in {here}"
  if this.one_expert and model.num_kv_heads != model.num_heads:
    return f"ModelConfig.num_kv_heads is {model.num_kv_heads}; in {here} it must be num_heads ({model.num_heads})"
  return None


def is_keyed(rope: RoPE) -> bool:
  """Whether all architectures have keys for a rotation: a plain one, PI, or YaRN with the default settings."""
  scaling = rope.scaling
  usual = isinstance(scaling, YaRN) and scaling == YaRN(scaling.factor, scaling.original_context)
  return rope.pairs is None and rope.rotary_dim is None and (scaling is None or isinstance(scaling, PI) or usual)


def _is_fixed(rope: RoPE, model: ModelConfig) -> bool:
  """Whether a rotation has the same frequencies at all lengths, and no factor on cos and sin."""
  return not rope.dynamic and bool(np.all(rope.frequencies(model.head_dim).factor == 1))
