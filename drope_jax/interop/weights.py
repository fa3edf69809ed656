"""Names and layouts of weights: one table for export and import.

Our matrices are (inputs, outputs) with a separate axis for heads, and all layers are stacked along a leading axis.
Hugging Face's are (outputs, inputs), with heads and head dimension in one axis, and one array per layer. GGUF has
Hugging Face's layout under other names.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from drope_jax.interop.families import Family
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import ParameterSpec, Params, parameter_specs
from drope_jax.positions import Layer, RoPE, layer_cycle


class Weight(NamedTuple):
  """One row. `{}` in a name stands for the number of the layer."""

  ours: str  # in params["layers"] where the other names have a `{}`, else in params
  hugging_face: str
  gguf: str
  inputs: int = 0  # number of axes (after layers) that are inputs of a matrix; 0: not a matrix, not transposed

  @property
  def stacked(self) -> bool:
    return "{}" in self.hugging_face


_LAYER = "model.layers.{}."
# Names are Llama's, and GLM-4's for the norms of what a sublayer adds; other classes rename them (Family.renamed).
TABLE = (
  Weight("embedding", "model.embed_tokens.weight", "token_embd.weight"),
  Weight("attention_norm", _LAYER + "input_layernorm.weight", "blk.{}.attn_norm.weight"),
  Weight("q", _LAYER + "self_attn.q_proj.weight", "blk.{}.attn_q.weight", 1),
  Weight("k", _LAYER + "self_attn.k_proj.weight", "blk.{}.attn_k.weight", 1),
  Weight("v", _LAYER + "self_attn.v_proj.weight", "blk.{}.attn_v.weight", 1),
  Weight("q_bias", _LAYER + "self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
  Weight("k_bias", _LAYER + "self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
  Weight("v_bias", _LAYER + "self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
  Weight("q_norm", _LAYER + "self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
  Weight("k_norm", _LAYER + "self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
  Weight("attention_post_norm", _LAYER + "post_self_attn_layernorm.weight", "blk.{}.post_attention_norm.weight"),
  Weight("o", _LAYER + "self_attn.o_proj.weight", "blk.{}.attn_output.weight", 2),
  Weight("mlp_norm", _LAYER + "post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
  Weight("gate", _LAYER + "mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", 1),
  Weight("up", _LAYER + "mlp.up_proj.weight", "blk.{}.ffn_up.weight", 1),
  Weight("down", _LAYER + "mlp.down_proj.weight", "blk.{}.ffn_down.weight", 1),
  Weight("mlp_post_norm", _LAYER + "post_mlp_layernorm.weight", "blk.{}.post_ffw_norm.weight"),
  Weight("final_norm", "model.norm.weight", "output_norm.weight"),
  Weight("unembedding", "lm_head.weight", "output.weight"),
)


EMBEDDING, UNEMBEDDING = TABLE[0].hugging_face, TABLE[-1].hugging_face


def scaled_by_beta(model: ModelConfig) -> tuple[str, ...]:
  """The parameters of a layer that scale its queries last, into which a factor on the logits can be folded."""
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
  """Our shape of a parameter: of one layer if it is stacked."""
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
  """A parameter (of one layer if it is stacked) times `factor`, in Hugging Face's layout."""
  array = np.asarray(params[weight.ours] if layer is None else params["layers"][weight.ours][layer])
  return to_foreign(weight, spec, array if factor == 1 else array * np.float32(factor))


# --- differences between classes ---------------------------------------------------------------


class Part(NamedTuple):
  """The place of one of our parameters (of one layer if it is stacked) within an array of a class."""

  weight: Weight
  spec: ParameterSpec
  layer: int | None
  rows: slice  # of that array

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the parameter itself, in Hugging Face's layout."""
    return foreign_shape(self.weight, self.spec)


def arrays_of(model: ModelConfig, family: Family) -> dict[str, list[Part]]:
  """Every array of a model by its name in a class, with the parameters that it consists of, in order."""
  arrays: dict[str, list[Part]] = {}
  for weight, spec in weights_of(model):
    for layer in range(model.num_layers) if weight.stacked else (None,):
      parts = arrays.setdefault(name_of(weight, family, layer), [])
      start = parts[-1].rows.stop if parts else 0
      parts.append(Part(weight, spec, layer, slice(start, start + foreign_shape(weight, spec)[0])))
  return arrays


def name_of(weight: Weight, family: Family, layer: int | None) -> str:
  """The array of a class that holds a parameter of ours."""
  fused = next((one.name for one in family.fused if weight.ours in one.parts), None)
  return (fused or family.spelled(weight.hugging_face)).format(layer)


def shape_of(parts: list[Part]) -> tuple[int, ...]:
  """The shape of the array that consists of these parts."""
  return (parts[-1].rows.stop, *parts[0].shape[1:])


def from_class(part: Part, family: Family, model: ModelConfig, array: np.ndarray) -> np.ndarray:
  """Extracts a parameter from an array of a class, in our layout: float32."""
  ours = from_foreign(part.weight, part.spec, array[part.rows])
  if family.norm_offset and part.weight.ours.endswith("norm"):
    ours = ours + np.float32(family.norm_offset)  # as the class computes it, in float32; to_class undoes it exactly
  order = _head_order(part.weight, family, model)
  return ours if order is None else ours[..., order]


def to_class(part: Part, family: Family, model: ModelConfig, params: Params, factor: float) -> np.ndarray:
  """The inverse of `from_class`, for a parameter times `factor`."""
  array = np.asarray(params[part.weight.ours] if part.layer is None else params["layers"][part.weight.ours][part.layer])
  array = array if factor == 1 else array * np.float32(factor)
  if family.norm_offset and part.weight.ours.endswith("norm"):
    array = array - np.float32(family.norm_offset)
  order = _head_order(part.weight, family, model)
  return to_foreign(part.weight, part.spec, array if order is None else array[..., np.argsort(order)])


def _head_order(weight: Weight, family: Family, model: ModelConfig) -> np.ndarray | None:
  """The order of our head dimensions in a class with partial rotation, where the rotated ones come first; None: equal.

  There the pairs are (i, i + r/2) of the first r dimensions; ours are (i, i + h/2), of which the first r/2 are rotated.
  """
  rotary = next((r for r in map(_rotary_dim, layer_cycle(model.positions)) if r is not None), model.head_dim)
  rotated = ("q", "k", "q_bias", "k_bias", "q_norm", "k_norm")
  if not family.rotates_part or rotary == model.head_dim or weight.ours not in rotated:
    return None
  half, rest = rotary // 2, (model.head_dim - rotary) // 2
  first, second, others = np.split(np.arange(model.head_dim), [half, rotary])
  return np.concatenate([first, others[:rest], second, others[rest:]])


def _rotary_dim(layer: Layer) -> int | None:
  return layer.positions.rotary_dim if isinstance(layer.positions, RoPE) else None
