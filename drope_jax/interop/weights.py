"""Names and layouts of weights: one table, read from left to right for export and from right to left for import.

Ours: matrices (in, out) with heads apart, and the layers of a model stacked in front. Hugging Face's: (out, in), heads
together, one array a layer. GGUF has Hugging Face's layout under other names.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from drope_jax.interop.families import Family
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import ParameterSpec, Params, parameter_specs


class Weight(NamedTuple):
  """One row. `{}` in a name stands for the number of the layer."""

  ours: str  # in params["layers"] where the other names have a `{}`, else in params
  hugging_face: str
  gguf: str
  inputs: int = 0  # leading axes of ours (after layers) that are inputs of a matrix; 0: not transposed

  @property
  def stacked(self) -> bool:
    return "{}" in self.hugging_face


TABLE = (
  Weight("embedding", "model.embed_tokens.weight", "token_embd.weight"),
  Weight("attention_norm", "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
  Weight("q", "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", 1),
  Weight("k", "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", 1),
  Weight("v", "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", 1),
  Weight("q_bias", "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
  Weight("k_bias", "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
  Weight("v_bias", "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
  Weight("q_norm", "model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
  Weight("k_norm", "model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
  Weight("o", "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", 2),
  Weight("mlp_norm", "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
  Weight("gate", "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", 1),
  Weight("up", "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", 1),
  Weight("down", "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", 1),
  Weight("final_norm", "model.norm.weight", "output_norm.weight"),
  Weight("unembedding", "lm_head.weight", "output.weight"),
)


EMBEDDING, UNEMBEDDING = TABLE[0].hugging_face, TABLE[-1].hugging_face


def scaled_by_beta(model: ModelConfig) -> tuple[str, ...]:
  """The parameters of each layer that scale its queries last: a factor on the attention logits can go into them."""
  normalised = model.qk_norm is not None and model.qk_norm.queries
  return ("q_norm",) if normalised else ("q", "q_bias")


def weights_of(model: ModelConfig) -> Iterator[tuple[Weight, ParameterSpec]]:
  """The rows that a model has, each with its spec, in the order of the table."""
  specs = parameter_specs(model)
  for weight in TABLE:
    spec = (specs["layers"] if weight.stacked else specs).get(weight.ours)
    if spec is not None:
      yield weight, spec


def layer_shape(weight: Weight, spec: ParameterSpec) -> tuple[int, ...]:
  """Our shape of one layer of a parameter, or of all of one that is not stacked."""
  return spec.shape[1:] if weight.stacked else spec.shape


def foreign_shape(weight: Weight, spec: ParameterSpec) -> tuple[int, ...]:
  """The shape of the same array at Hugging Face."""
  shape = layer_shape(weight, spec)
  if weight.inputs:
    return math.prod(shape[weight.inputs :]), math.prod(shape[: weight.inputs])
  return (math.prod(shape),) if weight.stacked else shape


def from_foreign(weight: Weight, spec: ParameterSpec, array: np.ndarray) -> np.ndarray:
  """One array of Hugging Face's in our layout, float32."""
  array = np.asarray(array, np.float32)
  return (array.T if weight.inputs else array).reshape(layer_shape(weight, spec))


def to_foreign(weight: Weight, spec: ParameterSpec, array: np.ndarray) -> np.ndarray:
  """The inverse of `from_foreign`; contiguous, as safetensors wants it."""
  if weight.inputs:
    array = array.reshape(math.prod(array.shape[: weight.inputs]), -1).T
  return np.ascontiguousarray(array).reshape(foreign_shape(weight, spec))


def array_of(params: Params, weight: Weight, spec: ParameterSpec, layer: int | None, factor: float) -> np.ndarray:
  """A parameter times `factor` in Hugging Face's layout, of one layer where it is stacked."""
  array = np.asarray(params[weight.ours] if layer is None else params["layers"][weight.ours][layer])
  return to_foreign(weight, spec, array if factor == 1 else array * np.float32(factor))


def foreign_names(model: ModelConfig, family: Family) -> dict[str, tuple[Weight, ParameterSpec]]:
  """Every array of a model by its name in a class of transformers."""
  return {
    family.spelled(name): (weight, spec)
    for weight, spec in weights_of(model)
    for name in (
      [weight.hugging_face.format(i) for i in range(model.num_layers)] if weight.stacked else [weight.hugging_face]
    )
  }
