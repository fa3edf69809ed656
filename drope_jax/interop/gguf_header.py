"""The header of a GGUF file: its metadata, and the location of each array.

Every size in the header is checked against the size of the file before anything is read or allocated, so that any
damaged file gives a one-line error. The format is that of ggml's docs/gguf.md, versions 2 and 3, little
endian.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drope_jax.errors import FileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Types of values by number, in the notation of struct and numpy; 8 is a string, 9 a list.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # of an array of ggml


class Tensor(NamedTuple):
  """An array of a file, as it is stored."""

  name: str
  shape: tuple[int, ...]  # as at Hugging Face: a row is the last axis
  kind: Any  # gguf.GGMLQuantizationType
  offset: int  # of its first byte in the file
  row_bytes: int

  @property
  def rows(self) -> int:
    return math.prod(self.shape[:-1])


class Header(NamedTuple):
  """The header of a file."""

  metadata: dict[str, Any]  # numbers, strings and lists of them
  tensors: dict[str, Tensor]


def read_header(path: Path) -> Header:
  """Reads the header of a GGUF file.

  Raises:
    FileError: naming the file and the problem, unless it is a complete GGUF file.
  """
  try:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      return _Reader(content).header()
  except OSError as error:
    raise FileError(f"{path}: not readable ({error.strerror})") from error
  except ValueError as error:  # from mmap, for an empty file, or from below
    raise FileError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error


class _Reader:
  """Reads values sequentially. Raises ValueError for impossible values."""

  def __init__(self, content: mmap.mmap):
    self._content, self._at, self._size = content, 0, len(content)

  def header(self) -> Header:
    if self._bytes(len(_MAGIC)) != _MAGIC:
      raise ValueError("it does not begin with GGUF")
    version = self._number("I")
    if version not in _VERSIONS:
      raise ValueError(f"its version is {version}; allowed: {', '.join(map(str, _VERSIONS))}, little endian")
    num_tensors, num_entries = self._count(24), self._count(12)  # with the minimum size of each in bytes
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
      key = self._string()
      if key in metadata:
        raise ValueError(f"{key} is there twice")
      metadata[key] = self._value(self._number("I"))
    tensors = [self._tensor() for _ in range(num_tensors)]
    return Header(metadata, self._placed(tensors, metadata.get("general.alignment", 32)))

  def _placed(self, tensors: list[Tensor], alignment: Any) -> dict[str, Tensor]:
    """The arrays by name, with their offsets in the file."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
      raise ValueError(f"general.alignment is {alignment!r}; it must be a power of two")
    start = -(-self._at // alignment) * alignment
    placed: dict[str, Tensor] = {}
    for tensor in tensors:
      offset = start + tensor.offset
      if tensor.name in placed:
        raise ValueError(f"the array {tensor.name} is there twice")
      if offset + tensor.rows * tensor.row_bytes > self._size:
        raise ValueError(f"the array {tensor.name} reaches beyond the end of the file")
      placed[tensor.name] = tensor._replace(offset=offset)
    return placed

  def _tensor(self) -> Tensor:
    import gguf

    name, num_dimensions = self._string(), self._number("I")
    if num_dimensions > _MOST_DIMENSIONS:
      raise ValueError(f"the array {name} has {num_dimensions} dimensions; there are at most {_MOST_DIMENSIONS}")
    shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1] or (1,)
    number, offset = self._number("I"), self._number("Q")
    kind = next((kind for kind in gguf.GGML_QUANT_SIZES if kind == number), None)
    if kind is None:
      raise ValueError(f"the array {name} is of type {number}, which the package gguf does not know")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block or 0 in shape:
      raise ValueError(f"the array {name} has rows of {shape[-1]} values; type {kind.name} has blocks of {block}")
    return Tensor(name, shape, kind, offset, shape[-1] // block * size)

  def _value(self, kind: int) -> Any:
    if kind == _STRING:
      return self._string()
    if kind in _SCALARS:
      return self._number(_SCALARS[kind])
    if kind != _ARRAY:
      raise ValueError(f"a value is of type {kind}, which there is none of")
    inner = self._number("I")
    if inner == _STRING:
      return [self._string() for _ in range(self._count(8))]
    if inner not in _SCALARS:
      raise ValueError(f"a list holds values of type {inner}; that is not supported")
    dtype = np.dtype(f"<{_SCALARS[inner]}")
    count = self._count(dtype.itemsize)
    return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()

  def _count(self, least: int) -> int:
    """A number of entries, each of which takes at least `least` bytes."""
    count = self._number("Q")
    if count * least > self._size - self._at:
      raise ValueError(f"it claims {count} entries where {self._size - self._at} bytes are left")
    return count

  def _string(self) -> str:
    return self._bytes(self._number("Q")).decode()  # a UnicodeDecodeError is a ValueError

  def _number(self, code: str) -> Any:
    form = f"<{code}"
    return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

  def _bytes(self, size: int) -> bytes:
    if size > self._size - self._at:
      raise ValueError(f"it ends within a value of {size} bytes")
    self._at += size
    return self._content[self._at - size : self._at]
