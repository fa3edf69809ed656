"""ArrayRecord files. Damaged ones are found on opening: the C++ reader itself reports them obscurely."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from etils import epath

from drope_jax.data.sources.cached import local
from drope_jax.data.sources.files import StoredFile, matching, opened
from drope_jax.data.sources.source import Source, locate
from drope_jax.errors import DataError


@dataclasses.dataclass(unsafe_hash=True)
class ArrayRecord(Source):
  """ArrayRecord files whose records are the documents, as UTF-8; a dataset of TFDS is opened by TFDS.

  The library reads local files only: files in a bucket are copied into the cache (cached.py) first. It keeps the
  offsets of all records in memory, about 50 bytes each.
  """

  glob: str  # a path, or a pattern such as web/*.array_record

  def open(self) -> "Records":
    return Records(matching(self.glob))


class Records(Sequence[bytes]):
  """The records of all files, in the order of the files."""

  def __init__(self, paths: list[epath.Path]):
    here = opened(local, paths)
    counts = opened(lambda both: _count(*both), zip(here, paths, strict=True))
    self.paths, self.lasts = paths, np.cumsum(counts).tolist()
    self.stored = [StoredFile.at(path) for path in paths]
    self.sizes = [file.size for file in self.stored]
    self._source = array_record_data_source.ArrayRecordDataSource([str(path) for path in here])

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
    return read_record(self._source, index, self.where)

  def count(self, file: int) -> int:  # type: ignore[override]
    """The number of records in a file."""
    return self.lasts[file] - (self.lasts[file - 1] if file else 0)

  def where(self, index: int) -> str:
    file, record = locate(self.lasts, index)
    return f"{self.paths[file]}, record {record}"


def read_record(source: Any, index: int, where: Callable[[int], str]) -> Any:
  """A record. Raises DataError naming it if it does not match its own hash."""
  try:
    return source[index]
  except RuntimeError as error:
    raise DataError(f"{where(index)}: is damaged; copy the file again ({str(error).splitlines()[0]})") from error


def _count(path: epath.Path, named: epath.Path) -> int:
  """The number of records in `path`, the local copy of `named`. Raises DataError if the file is broken."""
  reader = array_record_module.ArrayRecordReader(str(path))
  if not reader.ok():  # closing it would raise
    raise DataError(f"{named}: not an ArrayRecord file, or cut off; copy it again")
  count = reader.num_records()
  reader.close()
  return count
