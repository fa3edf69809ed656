"""Checksums of the blocks of a file, so that bit rot is found when a block is first read."""

import zlib

import numpy as np
from etils import epath

from drope_jax.data.sources.files import FileBytes
from drope_jax.errors import DataError

BLOCK = 64 << 10  # bytes; reading and summing one takes about 0.05 ms


class BlockSums:
  """Computes the CRC-32 of each BLOCK of data that is added in pieces."""

  def __init__(self) -> None:
    self._sums: list[int] = []
    self._open, self._filled = 0, 0  # the checksum of the incomplete block, and its size

  def add(self, data: bytes) -> None:
    """Adds the next piece of the file."""
    rest = memoryview(data)
    while rest:
      piece, rest = rest[: BLOCK - self._filled], rest[BLOCK - self._filled :]
      self._open, self._filled = zlib.crc32(piece, self._open), self._filled + len(piece)
      if self._filled == BLOCK:
        self._sums.append(self._open)
        self._open, self._filled = 0, 0

  def array(self) -> np.ndarray:
    """The checksums of all blocks, of which the last may be shorter: little-endian uint32."""
    return np.asarray([*self._sums, self._open] if self._filled else self._sums, "<u4")


def blocks_of(size: int) -> int:
  """The number of blocks of a file of `size` bytes."""
  return -(-size // BLOCK)


class CheckedBytes(FileBytes):
  """A file whose blocks are checked against `sums` when this process first reads them.

  The first read that touches a block reads the whole block, so over a run each block is checked once.
  """

  def __init__(self, path: epath.PathLike, sums: np.ndarray, original: epath.PathLike | None = None):
    """Args: `original` is the path for messages, if `path` is a copy."""
    super().__init__(path)
    self._sums, self._original = sums, original or path
    self._checked = bytearray(blocks_of(self.size))  # 1 for each block that was checked

  def read(self, begin: int, end: int) -> bytes:
    """The bytes from `begin` to `end`. Raises DataError, naming the file, for a block that is not as it was written."""
    first, last = begin // BLOCK, blocks_of(end)
    if begin >= end or self._checked.find(0, first, last) < 0:
      return super().read(begin, end)
    at = first * BLOCK
    data = super().read(at, min(last * BLOCK, self.size))
    whole = memoryview(data)
    for block in range(first, last):
      if zlib.crc32(whole[block * BLOCK - at : (block + 1) * BLOCK - at]) != self._sums[block]:
        raise DataError(
          f"{self._original}: its content is not what was written (by the checksum of the bytes from "
          f"{block * BLOCK:,} on); copy it again"
        )
    self._checked[first:last] = b"\1" * (last - first)
    return data[begin - at : end - at]
