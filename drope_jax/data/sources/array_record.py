"""ArrayRecord files, opened with care: of a file that is cut off, its C++ reader tells in its own way."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from array_record.python import array_record_data_source, array_record_module
from etils import epath

from drope_jax.data.sources.files import matching
from drope_jax.data.sources.source import Source
from drope_jax.errors import DataError


@dataclasses.dataclass(unsafe_hash=True)
class ArrayRecord(Source):
  """ArrayRecord files whose records are the documents, as UTF-8; a dataset of TFDS is opened by TFDS."""

  glob: str

  def open(self) -> "_Records":
    return _Records(matching(self.glob))


class _Records(Sequence[bytes]):
  def __init__(self, paths: list[epath.Path]):
    self.paths = paths
    self.counts = [count_records(path) for path in paths]
    self.sizes = [path.stat().length for path in paths]
    self.source = array_record_data_source.ArrayRecordDataSource([str(path) for path in paths])

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
    return read_record(self.source, index, self.where)

  def where(self, index: int) -> str:
    for path, count in zip(self.paths, self.counts, strict=True):
      if index < count:
        return f"{path}, record {index}"
      index -= count
    raise IndexError(index)


def read_record(source: Any, index: int, where: Callable[[int], str]) -> Any:
  """A record. Raises DataError, naming where it lies, if it is not as it was written, which its hash tells."""
  try:
    return source[index]
  except RuntimeError as error:
    raise DataError(f"{where(index)}: is damaged; copy the file again ({str(error).splitlines()[0]})") from error


def count_records(path: epath.Path) -> int:
  """Records of a file. Raises DataError if it is broken."""
  reader = array_record_module.ArrayRecordReader(str(path))
  if not reader.ok():  # closing it would raise
    raise DataError(f"{path}: no ArrayRecord file, or cut off; copy it again")
  count = reader.num_records()
  reader.close()
  return count
