"""Exports a checkpoint as a GGUF file for stock llama.cpp, in an architecture of gguf_architectures.py.

If an architecture always rotates, a model without positional embedding is written as a rotation by zero angles: linear
scaling by a factor that makes every angle 0. Scalings and partial drops are written as `rope_freqs.weight` (see
rope_freqs.py).
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop import rope_freqs
from drope_jax.interop.formats import layers_of
from drope_jax.interop.gguf_architectures import (
  ARCHITECTURES,
  EXPERT_ARRAYS,
  NO_SINK,
  NO_WINDOW,
  OUTPUT_BIAS,
  ROUTER,
  SINKS,
  architecture_of,
  expert_name,
  is_keyed,
)
from drope_jax.interop.gguf_file import interleaved
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR
from drope_jax.interop.weights import Weight, array_of, foreign_shape, scaled_by_beta, weights_of
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import ParameterSpec, Params
from drope_jax.positions import RoPE
from drope_jax.scalings import PI, YaRN

FORMAT = "gguf"
# Types of matrices by --dtype that the package gguf can write. K-quants can only be written by llama.cpp's own tool.
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "BF16": 32}  # general.file_type
K_QUANTS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")


def refuse_k_quants(dtype: str) -> None:
  """Raises ConfigError for a type that the package gguf cannot write, with instructions for llama.cpp's tool."""
  if dtype.lower() in K_QUANTS:
    raise ConfigError(
      f"dtype is {dtype!r}, which the package gguf cannot write; export float16, and run llama.cpp's "
      f"`llama-quantize model.gguf smaller.gguf {dtype.upper()}`; allowed here: {', '.join(TYPES)}"
    )


def rotation_of(model: ModelConfig) -> tuple[dict[str, Any], np.ndarray | None]:
  """The metadata of a model's rotation (keys after "ARCHITECTURE.rope."), and its rope_freqs.weight, if it needs one.

  Raises:
    ConfigError: if llama.cpp cannot express the rotation.
  """
  architecture_of(model)
  rope = layers_of(model).rope
  if rope is None:
    return {"freq_base": 10_000.0, "scaling.type": "linear", "scaling.factor": NEUTRAL_FACTOR}, None
  base, scaling = {"freq_base": rope.theta}, rope.scaling
  if not is_keyed(rope):
    omega = np.asarray(rope.frequencies(model.head_dim).omega)
    turns = omega > 0
    plain = RoPE(rope.theta).frequencies(model.head_dim).omega
    return base, np.where(turns, plain / np.where(turns, omega, 1.0), NEUTRAL_FACTOR).astype(np.float32)
  if isinstance(scaling, PI):
    return {**base, "scaling.type": "linear", "scaling.factor": scaling.factor}, None
  if isinstance(scaling, YaRN):
    more = {"scaling.factor": scaling.factor, "scaling.original_context_length": scaling.original_context}
    return {**base, "scaling.type": "yarn", **more}, None
  return base, None


def only_llama_cpp(model: ModelConfig) -> bool:
  """Whether transformers, which ignores scaling and factors in a GGUF file, would compute another rotation."""
  metadata, factors = rotation_of(model)
  return metadata.keys() != {"freq_base"} or factors is not None


class _Array(NamedTuple):
  """An array of the file: its name and shape, and a function that makes it."""

  name: str
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]


def _arrays(params: Params, model: ModelConfig, beta: float) -> Iterator[_Array]:
  """Every array of the file, not made yet."""
  scaled = scaled_by_beta(model) if beta != 1 else ()
  this = ARCHITECTURES[architecture_of(model)]
  queries, keys = model.num_heads, model.num_kv_heads
  turned = {"q": queries, "q_bias": queries, "k": keys, "k_bias": keys}

  def of(weight: Weight, spec: ParameterSpec, layer: int | None) -> np.ndarray:
    array = array_of(params, weight, spec, layer, beta if weight.ours in scaled else 1.0)
    return interleaved(array, turned[weight.ours]) if this.interleaved and weight.ours in turned else array

  for weight, spec in weights_of(model):
    for layer in range(model.num_layers) if weight.stacked else (None,):
      make = functools.partial(of, weight, spec, layer)
      shape = foreign_shape(weight, spec)
      if this.one_expert and weight.ours in EXPERT_ARRAYS:
        yield _Array(expert_name(weight).format(layer), (1, *shape), functools.partial(_of_one_expert, make))
      else:
        yield _Array(weight.gguf.format(layer), shape, make)
  if this.one_expert and model.tie_embeddings:  # a file with experts cannot express tied embeddings
    embedding, spec = next((weight, spec) for weight, spec in weights_of(model) if weight.ours == "embedding")
    yield _Array("output.weight", foreign_shape(embedding, spec), functools.partial(of, embedding, spec, None))
  yield from _others(architecture_of(model), model)
  factors = rotation_of(model)[1]
  if factors is not None:
    yield _Array(rope_freqs.NAME, factors.shape, lambda: factors)


def _of_one_expert(make: Callable[[], np.ndarray]) -> np.ndarray:
  return make()[None]


def _others(architecture: str, model: ModelConfig) -> Iterator[_Array]:
  """The arrays that an architecture has in addition to ours: a trivial router, and sinks and biases without effect."""
  this = ARCHITECTURES[architecture]
  for layer in range(model.num_layers):
    if this.one_expert:
      yield _Array(ROUTER[1].format(layer), (1, model.d_model), lambda: np.zeros((1, model.d_model)))
    if this.by_layer:
      yield _Array(SINKS.format(layer), (model.num_heads,), lambda: np.full(model.num_heads, NO_SINK))
    if model.qkv_bias and this.bias is None:  # as at Hugging Face
      yield _Array(OUTPUT_BIAS[1].format(layer), (model.d_model,), lambda: np.zeros(model.d_model))


def _by_layer(architecture: str, model: ModelConfig) -> dict[str, Any]:
  """The metadata about which layers rotate and have a window, and about experts, if the architecture has them."""
  this, layers = ARCHITECTURES[architecture], layers_of(model)
  if this.one_expert:
    return {"expert_count": 1, "expert_used_count": 1}
  if not this.by_layer:
    return {}
  return {
    "logit_scale": 1.0,
    "attention.sliding_window": layers.window or NO_WINDOW,
    "attention.sliding_window_pattern": list(layers.windowed) if layers.window else [True] * model.num_layers,
    "attention.rope_pattern": [int(rotated) for rotated in layers.rotated],
  }


def write(
  path: Path,
  params: Params,
  model: ModelConfig,
  *,
  name: str,
  length: int,
  beta: float,
  dtype: str,
  tokenizer: dict[str, Any],
) -> None:
  """Writes the file.

  Args:
    name: of the model.
    length: intended length of texts in tokens.
    beta: a factor on the attention logits, which is folded into the weights.
    dtype: of the matrices, a key of TYPES; vectors are float32.
    tokenizer: metadata; see gguf_tokenizer.
  """
  import gguf

  architecture, kind = architecture_of(model), gguf.GGMLQuantizationType[TYPES[dtype]]
  own = {
    "block_count": model.num_layers,
    "context_length": length,
    "embedding_length": model.d_model,
    "feed_forward_length": model.d_ff,
    "attention.head_count": model.num_heads,
    "attention.head_count_kv": model.num_kv_heads,
    "attention.layer_norm_rms_epsilon": float(model.norm_eps),
    "attention.key_length": model.head_dim,
    "attention.value_length": model.head_dim,
    "rope.dimension_count": model.head_dim,
    "vocab_size": model.vocab_size,
    **{f"rope.{key}": value for key, value in rotation_of(model)[0].items()},
    **_by_layer(architecture, model),
  }
  general = {"general.name": name, "general.file_type": _FILE_TYPES[kind.name], "general.quantization_version": 2}
  metadata = {**general, **{f"{architecture}.{key}": value for key, value in own.items()}, **tokenizer}
  arrays = list(_arrays(params, model, beta))
  types = {array.name: _type_of(array.shape, kind) for array in arrays}
  with contextlib.closing(gguf.GGUFWriter(path, architecture)) as writer:
    for key, value in metadata.items():
      _add(writer, key, value)
    for array in arrays:
      block, size = gguf.GGML_QUANT_SIZES[types[array.name]]
      row_bytes = (*array.shape[:-1], array.shape[-1] // block * size)
      writer.add_tensor_info(array.name, row_bytes, np.dtype(np.uint8), math.prod(row_bytes), types[array.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in arrays:
      content = np.ascontiguousarray(array.make(), np.float32)
      writer.write_tensor_data(gguf.quantize(content, types[array.name]))


def _type_of(shape: tuple[int, ...], kind: Any) -> Any:
  """The type of an array: float32 for vectors, float16 if a block of `kind` does not divide the rows, else `kind`."""
  import gguf

  if math.prod(shape[:-1]) == 1:
    return gguf.GGMLQuantizationType.F32
  return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.F16


def _add(writer: Any, key: str, value: Any) -> None:
  adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
  adders.get(type(value), writer.add_array)(key, value)
