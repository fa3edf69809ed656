"""ArrayRecord files, opened with care: of a file that is cut off, its C++ reader tells in its own way."""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from etils import epath

from drope_jax.data.sources.files import matching, opened
from drope_jax.data.sources.kept import local
from drope_jax.data.sources.source import Source
from drope_jax.errors import DataError


@dataclasses.dataclass(unsafe_hash=True)
class ArrayRecord(Source):
  """ArrayRecord files whose records are the documents, as UTF-8; a dataset of TFDS is opened by TFDS.

  The library reads local files alone: those of a bucket are copied into `kept.cache()` first. It keeps in memory where
  each record lies, in about 50 bytes.
  """

  glob: str  # files: a path, or a pattern as web/*.array_record

  def open(self) -> "Records":
    return Records(matching(self.glob))


class Records(Sequence[bytes]):
  """The records of files, one file behind the other."""

  def __init__(self, paths: list[epath.Path]):
    here = opened(local, paths)
    counts = opened(lambda both: _count(*both), zip(here, paths, strict=True))
    self.paths, self.lasts = paths, np.cumsum(counts).tolist()
    self.sizes = [path.stat().length for path in paths]
    self._source = array_record_data_source.ArrayRecordDataSource([str(path) for path in here])

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
    return read_record(self._source, index, self.where)

  def count(self, file: int) -> int:  # type: ignore[override]
    """Records of a file."""
    return self.lasts[file] - (self.lasts[file - 1] if file else 0)

  def where(self, index: int) -> str:
    file = bisect.bisect_right(self.lasts, index)
    return f"{self.paths[file]}, record {index - (self.lasts[file - 1] if file else 0)}"


def read_record(source: Any, index: int, where: Callable[[int], str]) -> Any:
  """A record. Raises DataError, naming where it lies, if it is not as it was written, which its hash tells."""
  try:
    return source[index]
  except RuntimeError as error:
    raise DataError(f"{where(index)}: is damaged; copy the file again ({str(error).splitlines()[0]})") from error


def _count(path: epath.Path, named: epath.Path) -> int:
  """Records of a file that the user calls `named`. Raises DataError if it is broken."""
  reader = array_record_module.ArrayRecordReader(str(path))
  if not reader.ok():  # closing it would raise
    raise DataError(f"{named}: no ArrayRecord file, or cut off; copy it again")
  count = reader.num_records()
  reader.close()
  return count
