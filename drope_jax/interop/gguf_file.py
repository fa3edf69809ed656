"""A GGUF file of llama.cpp as a source: its metadata as a config.json, its arrays as floats, its tokenizer.

Four things of it are not as at Hugging Face. Names (see weights.py). Llama 3's scaling (see rope_freqs.py). In files
of architecture `llama` the rows of the query and key projections are interleaved, for a rotation that pairs 2i with 2i
+ 1; this is undone here, and shows only under RoPE: a model without rotation gives the same scores either way. And of
the tokenizer only the vocabulary and the merges are there, the rest is a name that stands for it.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop import gguf_tokenizer, rope_freqs
from drope_jax.interop.sources import refuse_lfs_pointer, sha256
from drope_jax.interop.weights import TABLE

_INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}  # the architectures that are read

# Metadata after "ARCHITECTURE." and its key in a config.json; what is not listed here or in _read_config is refused.
_KEYS = {
  "block_count": "num_hidden_layers",
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.key_length": "head_dim",
  "rope.freq_base": "rope_theta",
}
_SCALING_KEYS = {  # likewise, in its rope_scaling
  "rope.scaling.factor": "factor",
  "rope.scaling.original_context_length": "original_max_position_embeddings",
}
_READ_APART = (
  *_SCALING_KEYS,
  "vocab_size",
  "attention.value_length",
  "rope.dimension_count",
  "rope.scaling.type",
  "rope.scaling.finetuned",  # a remark
)


class GGUFFile:
  """A single GGUF file.

  Raises:
    ConfigError: naming the file and the metadata key, array or array type that is not supported.
    ModuleNotFoundError: without the package `gguf`.
  """

  def __init__(self, path: str | Path):
    try:
      import gguf
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError('reading a GGUF file needs the package gguf: pip install "drope_jax[gguf]"') from error
    self.path = Path(path)
    refuse_lfs_pointer(self.path)
    try:
      reader = gguf.GGUFReader(self.path)
    except (OSError, ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
      raise ConfigError(f"{self.path}: not a readable GGUF file ({error})") from error
    self._dequantize = gguf.dequantize
    self._metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if self._metadata.get("split.count", 1) > 1:
      raise ConfigError(
        f"{self.path}: split.count is {self._metadata['split.count']}; join the parts to one file first"
      )
    self._tensors = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in reader.tensors:
      if not _decodable(tensor.tensor_type):
        allowed = ", ".join(kind.name for kind in gguf.GGMLQuantizationType if _decodable(kind))
        raise ConfigError(f"{self.path}: {tensor.name} is of type {tensor.tensor_type.name}; allowed: {allowed}")
    self.config = self._read_config()
    self._names = self._hugging_face_names()
    self.names = {**self._own_keys(), **self._names}
    self.shapes = {
      name: tuple(int(size) for size in reversed(self._tensors[there].shape))
      for name, there in self._names.items()
      if there in self._tensors
    }

  def _read_config(self) -> dict[str, Any]:
    architecture = self._metadata.get("general.architecture")
    if architecture not in _INTERLEAVED:
      raise ConfigError(f"{self.path}: general.architecture is {architecture!r}; allowed: {', '.join(_INTERLEAVED)}")
    own = {
      name.removeprefix(f"{architecture}."): value
      for name, value in self._metadata.items()
      if name.startswith(f"{architecture}.")
    }
    unknown = [key for key in own if key not in _KEYS and key not in _READ_APART]
    if unknown:
      raise ConfigError(f"{self.path}: {architecture}.{unknown[0]} is {own[unknown[0]]!r}; that is not supported")
    config = {key: _shortest(own[name]) for name, key in _KEYS.items() if name in own}
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    config.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:  # if not, read_config refuses it
      config.setdefault("head_dim", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
      if own.get(name, config.get("head_dim")) != config.get("head_dim"):
        raise ConfigError(
          f"{self.path}: {architecture}.{name} is {own[name]}; the head size is {config.get('head_dim')}"
        )
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
      raise ConfigError(f"{self.path}: {architecture}.rope.scaling.type is {kind!r}; allowed: none, linear, yarn")
    if kind != "none":
      read = {key: _shortest(own[name]) for name, key in _SCALING_KEYS.items() if name in own}
      config["rope_scaling"] = {"rope_type": kind, **read}
      if kind == "linear":
        config["rope_scaling"].pop("original_max_position_embeddings", None)  # which it does not need
    if rope_freqs.NAME in self._tensors:
      config["rope_scaling"] = self._read_rope_freqs(config)
    embedding = self._tensors.get("token_embd.weight")
    if embedding is None:
      raise ConfigError(f"{self.path}: the array token_embd.weight is missing")
    return {
      **config,
      "model_type": architecture,
      "hidden_act": "silu",
      "vocab_size": int(embedding.shape[1]),
      "tie_word_embeddings": "output.weight" not in self._tensors,
    }

  def _read_rope_freqs(self, config: dict[str, Any]) -> dict[str, Any]:
    """The scaling that is an array; there must be no other."""
    if "rope_scaling" in config:
      raise ConfigError(f"{self.path}: has {rope_freqs.NAME}, and rope.scaling.type beside it; that is not supported")
    factors, head_dim = self._array(self._tensors[rope_freqs.NAME]).ravel(), config.get("head_dim")
    if not isinstance(head_dim, int) or len(factors) != head_dim // 2:
      raise ConfigError(f"{self.path}: {rope_freqs.NAME} has {len(factors)} entries; the head size is {head_dim}")
    theta = config.get("rope_theta", 10_000.0)
    if not isinstance(theta, float) or not theta > 1:  # which read_config refuses
      return {}
    return rope_freqs.rope_parameters_of(factors, theta, self.path)

  def _own_keys(self) -> dict[str, str]:
    """Keys here by those of a config.json."""
    scaling = {name: f"rope_scaling.{key}" for name, key in _SCALING_KEYS.items()}
    return {key: f"{self.config['model_type']}.{name}" for name, key in {**_KEYS, **scaling}.items()}

  def _hugging_face_names(self) -> dict[str, str]:
    """Arrays here, or missing here, by their names at Hugging Face; one that is unknown keeps its own name."""
    count = self.config.get("num_hidden_layers")
    # If it is no number, read_config refuses it; if it is larger than this, importing.open_source does.
    layers = range(min(count, len(self._tensors)) if isinstance(count, int) else 0)
    known = {w.hugging_face.format(i): w.gguf.format(i) for w in TABLE for i in (layers if w.stacked else range(1))}
    unknown = self._tensors.keys() - set(known.values()) - {rope_freqs.NAME}
    return {**known, **{name: name for name in unknown}}

  def _array(self, tensor: Any) -> np.ndarray:
    """What a tensor holds, float32."""
    # Not tensor.data: the file is mapped, and all that was ever read of it stays in memory.
    stored = np.fromfile(self.path, tensor.data.dtype, tensor.data.size, offset=tensor.data_offset)
    return self._dequantize(stored.reshape(tensor.data.shape), tensor.tensor_type).astype(np.float32, copy=False)

  def read(self, name: str) -> np.ndarray:
    array = self._array(self._tensors[self._names[name]]).reshape(self.shapes[name])
    if _INTERLEAVED[self.config["model_type"]]:
      for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if f"{part}.weight" in name:
          return half_split(array, self.config[heads])
    return array

  def rename(self, name: str, new: str) -> None:
    self._names[new], self.shapes[new] = self._names.pop(name), self.shapes.pop(name)

  def write_tokenizer(self, directory: Path) -> None:
    gguf_tokenizer.read(self._metadata, self.path, directory)

  def origin(self) -> dict[str, Any]:
    said = {
      key: self._metadata[f"general.{key}"] for key in ("license", "file_type") if f"general.{key}" in self._metadata
    }
    name = self._metadata.get("general.name", self.path.name)
    return {
      "format": "gguf",
      "name": name,
      "model_type": self.config["model_type"],
      "types": sorted({tensor.tensor_type.name for tensor in self._tensors.values()}),
      **said,
      "sha256": {self.path.name: sha256(self.path)},
    }


@functools.cache
def _decodable(kind: Any) -> bool:
  """Whether the package gguf can decode a type of array, by trying it on one block of zeros."""
  import gguf

  if kind not in gguf.GGML_QUANT_SIZES:
    return False
  count, size = gguf.GGML_QUANT_SIZES[kind]
  stored = np.zeros((1, size), np.uint8)
  if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
    stored = np.zeros((1, count), np.float32 if size == 4 else np.float16)
  try:
    with np.errstate(all="ignore"):
      gguf.dequantize(stored, kind)
  except NotImplementedError:
    return False
  return True


def _shortest(value: Any) -> Any:
  """A float32 of the file as the decimal number that was meant: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def half_split(array: np.ndarray, heads: int) -> np.ndarray:
  """Rows (H*h, ...) whose heads pair 2i with 2i + 1, reordered so that they pair i with i + h/2 (see positions.py)."""
  pairs = array.reshape(heads, -1, 2, *array.shape[1:])
  return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
  """The inverse of `half_split`."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
