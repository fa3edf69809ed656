"""Parquet files, as Hugging Face stores its datasets (FineWeb, FineWeb-edu)."""

import collections
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from drope_jax.data.sources.cached import first_line
from drope_jax.data.sources.files import StoredFile, matching, opened
from drope_jax.data.sources.source import Blocks, Source, locate
from drope_jax.errors import ConfigError, DataError

CACHED_BYTES = 256 << 20  # of decoded row groups that are cached, and so can be shuffled together
MOST_TOGETHER = 16  # row groups


@dataclasses.dataclass(unsafe_hash=True)
class Parquet(Source):
  """Parquet files; `column` holds the documents.

  Opening reads the files' footers. A row group is read as a whole. Text of more than CACHED_BYTES is therefore shuffled
  in two levels: the row groups, and the rows within windows of at most MOST_TOGETHER row groups and CACHED_BYTES.
  """

  glob: str  # a path, or a pattern such as web/*.parquet
  column: str = "text"  # the column that holds the text

  def open(self) -> "_Rows":
    return _Rows(matching(self.glob), self.column)


class _Rows(Sequence[Any]):
  def __init__(self, paths: list[epath.Path], column: str):
    self.paths, self.column = paths, column
    self.groups: list[tuple[int, int]] = []  # file and row group
    rows, sizes = [], []
    for number, groups in enumerate(opened(lambda path: _groups(path, column), paths)):
      for group, (count, size) in enumerate(groups):
        if count:
          self.groups.append((number, group))
          rows.append(count)
          sizes.append(size)
    if not rows:
      raise DataError(f"{paths[0]}: has no rows; remove it, or copy it again")
    self.lasts = np.cumsum(rows).tolist()
    self.stored = [StoredFile.at(path) for path in paths]
    self.sizes = [file.size for file in self.stored]
    # Text that fits into the cache is shuffled as a whole, like that of any other source.
    whole = sum(sizes) <= CACHED_BYTES
    self.together = len(sizes) if whole else max(1, min(MOST_TOGETHER, CACHED_BYTES // max(sizes)))
    self.blocks = None if whole else Blocks(np.asarray(self.lasts), self.together)
    self._start()

  def _start(self) -> None:
    self._lock = threading.Lock()
    self._cached: collections.OrderedDict[int, pa.Array] = collections.OrderedDict()

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_cached")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start()

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    number, row = self._find(index)
    with self._lock:  # else several threads would read the same row group
      values = self._cached.pop(number, None)
      if values is None:
        values = self._read(number)
      self._cached[number] = values  # the most recently used comes last
      while len(self._cached) > 2 and sum(one.nbytes for one in self._cached.values()) > 2 * CACHED_BYTES:
        self._cached.popitem(last=False)
      while len(self._cached) > 2 * self.together:  # two windows meet where one ends
        self._cached.popitem(last=False)
    return values[row].as_py()

  def where(self, index: int) -> str:
    number, row = self._find(index)
    file, group = self.groups[number]
    before = sum(self._rows(other) for other in range(number) if self.groups[other][0] == file)
    return f"{self.paths[file]}, row {before + row} (row group {group}), column {self.column!r}"

  def _rows(self, number: int) -> int:
    return self.lasts[number] - (self.lasts[number - 1] if number else 0)

  def _find(self, index: int) -> tuple[int, int]:
    return locate(self.lasts, index)

  def _read(self, number: int) -> pa.Array:
    """A row group's documents as bytes; invalid UTF-8 is found when a document is decoded."""
    file, group = self.groups[number]
    path = self.paths[file]
    try:
      with _reader(path) as reader:
        column = reader.read_row_group(group, columns=[self.column]).column(0)
    except (OSError, pa.ArrowException) as error:
      raise DataError(f"{path}: row group {group} cannot be read; copy the file again ({first_line(error)})") from error
    return column.cast(pa.large_binary()).combine_chunks()


def _groups(path: epath.Path, column: str) -> list[tuple[int, int]]:
  """The number of rows and the bytes of the column, for each row group of a file."""
  with _reader(path) as file:
    _check_column(path, file.schema_arrow, column)
    index = [file.schema.column(i).path for i in range(len(file.schema))].index(column)
    abouts = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    return [(about.num_rows, about.column(index).total_uncompressed_size) for about in abouts]


def _reader(path: epath.Path) -> pq.ParquetFile:
  try:
    return pq.ParquetFile(path.open("rb"), pre_buffer=False)
  except (OSError, pa.ArrowException) as error:
    raise DataError(f"{path}: not a parquet file, or cut off; copy it again ({first_line(error)})") from error


def _check_column(path: epath.Path, schema: pa.Schema, column: str) -> None:
  """Raises ConfigError unless there is such a column and it holds text."""
  if column not in schema.names:
    raise ConfigError(f"{path}: has no column {column!r}; columns: {', '.join(schema.names)}")
  kind = schema.field(column).type
  wanted = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
  if not any(is_kind(kind) for is_kind in wanted):
    raise ConfigError(f"{path}: the column {column!r} holds {kind}, not text; columns: {', '.join(schema.names)}")
