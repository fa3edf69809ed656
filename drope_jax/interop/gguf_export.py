"""A checkpoint of ours as a GGUF file that stock llama.cpp runs: architectures `llama`, `qwen2` and `qwen3`.

No architecture leaves its rotation out, so a model without positional embedding is a rotation by no angle: linear
scaling by a factor that makes every angle 0. A scaling, or a partial drop, is `rope_freqs.weight` (see rope_freqs.py).
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
from drope_jax.interop.formats import beyond_llama, layers_of
from drope_jax.interop.gguf_file import interleaved
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR
from drope_jax.interop.weights import Weight, array_of, foreign_shape, scaled_by_beta, weights_of
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import ParameterSpec, Params
from drope_jax.positions import RoPE
from drope_jax.scalings import PI, YaRN

FORMAT = "gguf"
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # of matrices, by --dtype
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type


def architecture_of(model: ModelConfig) -> str:
  """The architecture of llama.cpp for a model. Raises ConfigError if it has none."""
  layers, norm, more = layers_of(model), model.qk_norm, beyond_llama(model)
  if more is not None:
    raise ConfigError(f"{more}; format 'gguf' has architectures 'llama', 'qwen2' and 'qwen3', which have not")
  if layers.window is not None:
    raise ConfigError(f"ModelConfig.positions has a window of {layers.window}; format 'gguf' has none")
  if len(set(layers.rotated)) > 1:
    raise ConfigError("ModelConfig.positions rotates some layers and not others; format 'gguf' treats all alike")
  if norm is not None and (norm.scope != "head" or not (norm.queries and norm.keys) or model.qkv_bias):
    raise ConfigError(
      f"ModelConfig.qk_norm is {norm}; format 'gguf' has norms of each head's queries and keys, or none"
    )
  if model.qkv_bias and model.num_heads * model.head_dim != model.d_model:
    raise ConfigError(
      f"ModelConfig.qkv_bias is True and num_heads * head_dim is not d_model ({model.d_model}), as it must be in "
      "architecture 'qwen2' of llama.cpp"
    )
  return "qwen3" if norm else "qwen2" if model.qkv_bias else "llama"


def rotation_of(model: ModelConfig) -> tuple[dict[str, Any], np.ndarray | None]:
  """The metadata of a model's rotation, after "ARCHITECTURE.rope.", and the array of its factors, if it needs one.

  Raises:
    ConfigError: if llama.cpp cannot rotate so.
  """
  rope, architecture = layers_of(model).rope, architecture_of(model)
  if rope is None:
    return {"freq_base": 10_000.0, "scaling.type": "linear", "scaling.factor": NEUTRAL_FACTOR}, None
  base, scaling = {"freq_base": rope.theta}, rope.scaling
  whole = rope.pairs is None and rope.rotary_dim is None
  if whole and scaling is None:
    return base, None
  if whole and isinstance(scaling, PI):
    return {**base, "scaling.type": "linear", "scaling.factor": scaling.factor}, None
  if whole and scaling == YaRN(getattr(scaling, "factor", 1), getattr(scaling, "original_context", 1)):
    more = {"scaling.factor": scaling.factor, "scaling.original_context_length": scaling.original_context}
    return {**base, "scaling.type": "yarn", **more}, None
  if rope.dynamic or architecture != "llama" or np.any(rope.frequencies(model.head_dim).factor != 1):
    raise ConfigError(f"ModelConfig.positions has {rope}: architecture {architecture!r} of llama.cpp has no such thing")
  omega = np.asarray(rope.frequencies(model.head_dim).omega)
  turns = omega > 0
  plain = RoPE(rope.theta).frequencies(model.head_dim).omega
  return base, np.where(turns, plain / np.where(turns, omega, 1.0), NEUTRAL_FACTOR).astype(np.float32)


class _Array(NamedTuple):
  """An array of the file: its name and shape, and how to get it."""

  name: str
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]


def _arrays(params: Params, model: ModelConfig, beta: float) -> Iterator[_Array]:
  """Every array of the file, none of them made yet."""
  scaled = scaled_by_beta(model) if beta != 1 else ()
  turned = {"q": model.num_heads, "k": model.num_kv_heads} if architecture_of(model) == "llama" else {}

  def of(weight: Weight, spec: ParameterSpec, layer: int | None) -> np.ndarray:
    array = array_of(params, weight, spec, layer, beta if weight.ours in scaled else 1.0)
    return interleaved(array, turned[weight.ours]) if weight.ours in turned else array

  for weight, spec in weights_of(model):
    for layer in range(model.num_layers) if weight.stacked else (None,):
      make = functools.partial(of, weight, spec, layer)
      yield _Array(weight.gguf.format(layer), foreign_shape(weight, spec), make)
  factors = rotation_of(model)[1]
  if factors is not None:
    yield _Array(rope_freqs.NAME, factors.shape, lambda: factors)


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
    length: tokens that it is meant for.
    beta: a factor on the attention logits, which goes into the weights.
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
  """Vectors stay float32; rows that a block does not divide are float16."""
  import gguf

  if len(shape) == 1:
    return gguf.GGMLQuantizationType.F32
  return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.F16


def _add(writer: Any, key: str, value: Any) -> None:
  adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
  adders.get(type(value), writer.add_array)(key, value)
