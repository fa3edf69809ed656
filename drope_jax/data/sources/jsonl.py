"""JSON lines: one object per line, plain or compressed."""

import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from drope_jax.data.sources.cached import cached, compression, local, unpacked
from drope_jax.data.sources.files import FileBytes, StoredFile, matching, opened
from drope_jax.data.sources.source import BadDocument, Source, locate

_BOM = b"\xef\xbb\xbf"
_BOUNDS = np.dtype(("<u8", 2))  # where a line begins and ends, in bytes


@dataclasses.dataclass(unsafe_hash=True)
class JSONL(Source):
  """Files of JSON lines, `.jsonl`, `.jsonl.gz` or `.jsonl.zst`; `field` of each object is a document.

  Lines end at a line feed and nowhere else. The first opening reads the files to find the lines, and keeps 16 bytes per
  document in the cache (cached.py). Compressed files are unpacked into it, and files in a bucket are copied there:
  both take the disk space of the text.
  """

  glob: str  # a path, or a pattern such as web/*.jsonl.zst
  field: str = "text"  # the field that holds the text

  def open(self) -> "_Lines":
    return _Lines(opened(_File, matching(self.glob)), self.field)


class _File:
  """The lines of one file that are not blank."""

  def __init__(self, path: epath.Path):
    plain = unpacked(path) if compression(path) else local(path)
    self.path, self.bytes = path, FileBytes(plain)
    self._index = FileBytes(cached(plain, "lines-2", _line_bounds(self.bytes)))

  def __len__(self) -> int:
    return self._index.size // _BOUNDS.itemsize - 1

  @property
  def sum(self) -> int:
    """The CRC-32 of the content, computed with the index of lines: again whenever the file's size or time changes."""
    return self._bounds(len(self))[0]

  def line(self, number: int) -> bytes:
    return self.bytes.read(*self._bounds(number))

  def where(self, number: int) -> str:
    begin, _ = self._bounds(number)
    before = sum(chunk.count(b"\n") for chunk in self.bytes.chunks(until=begin))
    return f"{self.path}, line {before + 1}"

  def _bounds(self, number: int) -> list[int]:
    place = number * _BOUNDS.itemsize
    return np.frombuffer(self._index.read(place, place + _BOUNDS.itemsize), "<u8").tolist()


class _NoField(BadDocument):
  """An object without the field that is read."""


class _Lines(Sequence[Any]):
  """The field of each line of all files."""

  def __init__(self, files: list[_File], field: str):
    self.files, self.field = files, field
    self.lasts = np.cumsum([len(file) for file in files]).tolist()
    self.sizes = [file.bytes.size for file in files]
    self.stored = [StoredFile.at(file.path, file.sum) for file in files]
    for last, file in zip(self.lasts, files, strict=True):
      if not len(file):
        continue
      try:
        _ = self[last - 1]  # a truncated file is broken in its last line
      except _NoField:
        _ = self[last - len(file)]  # if no line has the field, the first is the one to name
        raise

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    file, line = self._find(index)
    try:
      record = json.loads(file.line(line))
    except UnicodeDecodeError as error:
      raise BadDocument(
        f"{file.where(line)}: not UTF-8 ({error.reason}); convert the file, or remove the line"
      ) from None
    except (ValueError, RecursionError) as error:
      raise BadDocument(
        f"{file.where(line)}: not JSON ({error}); is the file cut off? mend or remove the line"
      ) from None
    if not isinstance(record, dict):
      raise BadDocument(f"{file.where(line)}: holds a {type(record).__name__}, not an object; is this JSON lines?")
    if self.field not in record:
      fields = ", ".join(record) or "none"
      texts = {name: len(value) for name, value in record.items() if isinstance(value, str)}
      longest = max(texts, key=texts.__getitem__, default="FIELD")
      raise _NoField(
        f"{file.where(line)}: has no field {self.field!r}; fields: {fields}; name one in the path, as PATH#{longest}"
      )
    return record[self.field]

  def where(self, index: int) -> str:
    file, line = self._find(index)
    return f"{file.where(line)}, field {self.field!r}"

  def _find(self, index: int) -> tuple[_File, int]:
    number, line = locate(self.lasts, index)
    return self.files[number], line


def _line_bounds(data: FileBytes) -> Iterator[bytes]:
  """The _BOUNDS of every line that is not blank, in pieces; at the end, the CRC-32 and the size of the file."""
  known = 0
  at, begin = 0, len(_BOM) if data.read(0, min(len(_BOM), data.size)) == _BOM else 0
  for chunk in data.chunks():
    known = zlib.crc32(chunk, known)
    ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + at
    at += len(chunk)
    if at == data.size and (not len(ends) or ends[-1] < at - 1):
      ends = np.append(ends, at)  # a last line without its feed
    if not len(ends):
      continue
    begins = np.concatenate([[begin], ends[:-1] + 1])
    begin = int(ends[-1]) + 1
    filled = ends > begins
    for index in np.flatnonzero(ends - begins < 8):  # an object with a field is longer
      filled[index] = bool(data.read(int(begins[index]), int(ends[index])).strip())
    yield np.stack([begins[filled], ends[filled]], axis=1).astype("<u8").tobytes()
  yield np.asarray([known, data.size], "<u8").tobytes()
