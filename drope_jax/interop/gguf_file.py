"""A GGUF file of llama.cpp as a source: its metadata as a config.json, its arrays as floats, and its tokenizer.

GGUF differs from Hugging Face in four ways. Names (see weights.py). Llama 3's scaling (see rope_freqs.py). In files of
architecture `llama`, the rows of the query and key projections are interleaved, for a rotation that pairs 2i with 2i +
1; this is undone here, and only matters for RoPE, because without rotation the scores do not depend on the order. And
of the tokenizer, only vocabulary and merges are stored; the rest is given by a name.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop import gguf_tokenizer, rope_freqs
from drope_jax.interop.families import FAMILIES
from drope_jax.interop.gguf_architectures import (
  ARCHITECTURES,
  EXPERT_ARRAYS,
  NO_SINK,
  NO_WINDOW,
  OUTPUT_BIAS,
  ROUTER,
  SINKS,
  expert_name,
)
from drope_jax.interop.gguf_header import Tensor, read_header
from drope_jax.interop.keys import shown
from drope_jax.interop.sources import refuse_lfs_pointer, sha256
from drope_jax.interop.weights import TABLE

_FLOATS = {"F32": np.float32, "F16": np.float16}  # types that the package gguf takes as arrays and not as bytes

_OTHER = "import the Hugging Face folder of the model instead"

# Metadata keys after "ARCHITECTURE.", and their keys in a config.json; keys not listed here or below are refused.
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
_SCALING_KEYS = {  # likewise, with the keys in rope_scaling
  "rope.scaling.factor": "factor",
  "rope.scaling.original_context_length": "original_max_position_embeddings",
}
_READ_APART = (
  *_SCALING_KEYS,
  "vocab_size",
  "attention.value_length",
  "rope.dimension_count",
  "rope.scaling.type",
  "rope.scaling.finetuned",  # has no effect
)


# Likewise, for architectures with such keys; None: read separately.
_BY_LAYER: dict[str, str | None] = {
  "attention.rope_pattern": "no_rope_layers",
  "attention.sliding_window": "sliding_window",
  "attention.sliding_window_pattern": "layer_types",
  "logit_scale": None,
}
_EXPERTS: dict[str, str | None] = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}


class GGUFFile:
  """A single GGUF file.

  Raises:
    FileError: if it is not a GGUF file, or damaged.
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
    self._metadata, self._tensors = read_header(self.path)
    self._dequantize = gguf.dequantize
    split = self._metadata.get("split.count", 1)
    if split != 1:
      raise ConfigError(
        f"{self.path}: split.count is {shown(split)}; join the parts to one file first (llama-gguf-split --merge)"
      )
    for tensor in self._tensors.values():
      if not _decodable(tensor.kind):
        allowed = ", ".join(kind.name for kind in gguf.GGMLQuantizationType if _decodable(kind))
        raise ConfigError(f"{self.path}: {tensor.name} is of type {tensor.kind.name}; allowed: {allowed}")
    self.config = self._read_config()
    self._names = self._hugging_face_names()
    self.names = {**self._own_keys(), **self._names}
    self.shapes = {
      name: self._shape(self._tensors[there]) for name, there in self._names.items() if there in self._tensors
    }

  def _read_config(self) -> dict[str, Any]:
    architecture = self._metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
      raise ConfigError(
        f"{self.path}: general.architecture is {shown(architecture)}; allowed: {', '.join(ARCHITECTURES)}"
      )
    self._name, self._architecture = architecture, ARCHITECTURES[architecture]
    own = {
      name.removeprefix(f"{architecture}."): value
      for name, value in self._metadata.items()
      if name.startswith(f"{architecture}.")
    }
    more = _BY_LAYER if self._architecture.by_layer else _EXPERTS if self._architecture.one_expert else ()
    unknown = [key for key in own if key not in (*_KEYS, *_READ_APART, *more)]
    if unknown:
      raise ConfigError(
        f"{self.path}: {architecture}.{unknown[0]} is {shown(own[unknown[0]])}; that is not supported: {_OTHER}"
      )
    config = {key: _shortest(own[name]) for name, key in _KEYS.items() if name in own}
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    config.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:  # if not, read_config refuses it
      config.setdefault("head_dim", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
      if own.get(name, config.get("head_dim")) != config.get("head_dim"):
        raise ConfigError(
          f"{self.path}: {architecture}.{name} is {shown(own[name])}; the head size is {config.get('head_dim')}"
        )
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
      raise ConfigError(f"{self.path}: {architecture}.rope.scaling.type is {shown(kind)}; allowed: none, linear, yarn")
    if kind != "none":
      read = {key: _shortest(own[name]) for name, key in _SCALING_KEYS.items() if name in own}
      config["rope_scaling"] = {"rope_type": kind, **read}
      if kind == "linear":
        config["rope_scaling"].pop("original_max_position_embeddings", None)  # which it does not need
    if rope_freqs.NAME in self._tensors:
      config["rope_scaling"] = self._read_rope_freqs(config)
    embedding = self._tensors.get("token_embd.weight")
    if embedding is None:
      raise ConfigError(f"{self.path}: the array token_embd.weight is missing; fetch the file again")
    return {
      **config,
      **self._read_more(own),
      "model_type": self._architecture.family,
      "hidden_act": "silu",
      "vocab_size": embedding.shape[0],
      "tie_word_embeddings": "output.weight" not in self._tensors,
    }

  def _read_more(self, own: dict[str, Any]) -> dict[str, Any]:
    """The config keys that only some architectures have."""
    this = self._architecture
    more: dict[str, Any] = {}
    if this.bias is None:
      more["attention_bias"] = "blk.0.attn_q.bias" in self._tensors
    if this.one_expert:
      more |= {key: own.get(name) for name, key in _EXPERTS.items() if key is not None}
    if this.by_layer:
      if own.get("logit_scale", 1.0) != 1:
        raise ConfigError(f"{self.path}: {self._name}.logit_scale is {shown(own['logit_scale'])}; allowed: 1")
      pattern = own.get("attention.sliding_window_pattern")
      windowed = pattern if isinstance(pattern, list) else []
      more |= {
        "no_rope_layers": own.get("attention.rope_pattern"),
        "layer_types": ["sliding_attention" if one else "full_attention" for one in windowed],
        "sliding_window": own.get("attention.sliding_window"),
        "use_sliding_window": any(windowed) and own.get("attention.sliding_window") != NO_WINDOW,
      }
      self._refuse_sinks()
    return more

  def _refuse_sinks(self) -> None:
    """Raises ConfigError for attention sinks that have an effect."""
    for name, tensor in self._tensors.items():
      if name.endswith(SINKS.removeprefix("blk.{}")) and (self._array(tensor) > NO_SINK / 2).any():
        raise ConfigError(f"{self.path}: {name} holds attention sinks; allowed: none (below {NO_SINK / 2:g})")

  def _read_rope_freqs(self, config: dict[str, Any]) -> dict[str, Any]:
    """The rope_scaling that is stored as an array; there must be no other."""
    if "rope_scaling" in config:
      raise ConfigError(
        f"{self.path}: has {rope_freqs.NAME}, and rope.scaling.type beside it; a file must have one of them"
      )
    factors, head_dim = self._array(self._tensors[rope_freqs.NAME]).ravel(), config.get("head_dim")
    if not isinstance(head_dim, int) or len(factors) != head_dim // 2:
      raise ConfigError(
        f"{self.path}: {rope_freqs.NAME} has {len(factors)} entries; it must have half the head size ({head_dim})"
      )
    theta = config.get("rope_theta", 10_000.0)
    if not isinstance(theta, float) or not theta > 1:  # which read_config refuses
      return {}
    return rope_freqs.rope_parameters_of(factors, theta, self.path)

  def _own_keys(self) -> dict[str, str]:
    """Metadata keys by the keys of a config.json."""
    scaling = {name: f"rope_scaling.{key}" for name, key in _SCALING_KEYS.items()}
    own = {**_KEYS, **scaling, **_BY_LAYER, **_EXPERTS}
    return {key: f"{self._name}.{name}" for name, key in own.items() if key is not None}

  def _hugging_face_names(self) -> dict[str, str]:
    """The names of arrays here by their names at Hugging Face, also of missing arrays; unknown ones keep theirs."""
    count = self.config.get("num_hidden_layers")
    layers = range(min(count, len(self._tensors)) if isinstance(count, int) else 0)  # read_config checks it
    this, family = self._architecture, FAMILIES[self._architecture.family]
    pairs = [
      (family.spelled(w.hugging_face), expert_name(w) if this.one_expert and w.ours in EXPERT_ARRAYS else w.gguf)
      for w in TABLE
    ]
    pairs += [ROUTER] if this.one_expert else [OUTPUT_BIAS] if this.bias is None else []
    known = {
      theirs.format(i): ours.format(i) for theirs, ours in pairs for i in (layers if "{}" in theirs else range(1))
    }
    silent = {rope_freqs.NAME, *(SINKS.format(i) for i in layers if this.by_layer)}
    unknown = self._tensors.keys() - set(known.values()) - silent
    return {**known, **{name: name for name in unknown}}

  def _shape(self, tensor: Tensor) -> tuple[int, ...]:
    """The shape at Hugging Face, where the arrays of a single expert are matrices."""
    return tensor.shape[1:] if self._architecture.one_expert and len(tensor.shape) == 3 else tensor.shape

  def _array(self, tensor: Tensor) -> np.ndarray:
    """The values of an array, float32."""
    stored = np.fromfile(self.path, np.uint8, tensor.rows * tensor.row_bytes, offset=tensor.offset)
    stored = stored.reshape(tensor.rows, tensor.row_bytes).view(_FLOATS.get(tensor.kind.name, np.uint8))
    return self._dequantize(stored, tensor.kind).astype(np.float32, copy=False).reshape(tensor.shape)

  def read(self, name: str) -> np.ndarray:
    array = self._array(self._tensors[self._names[name]]).reshape(self.shapes[name])
    if self._architecture.interleaved:
      for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if f"{part}." in name:
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
      "types": sorted({tensor.kind.name for tensor in self._tensors.values()}),
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
  """A float32 of the file as the shortest decimal number: 1e-05, not 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def half_split(array: np.ndarray, heads: int) -> np.ndarray:
  """Reorders rows (H*h, ...) whose heads pair 2i with 2i + 1 such that they pair i with i + h/2 (see rotation.py)."""
  pairs = array.reshape(heads, -1, 2, *array.shape[1:])
  return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
  """The inverse of `half_split`."""
  halves = array.reshape(heads, 2, -1, *array.shape[1:])
  return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
