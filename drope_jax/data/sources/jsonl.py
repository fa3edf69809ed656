"""JSON lines: one object per line, plain or compressed."""

import bisect
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from drope_jax.data.sources.files import FileBytes, matching, unpacked
from drope_jax.data.sources.source import Source
from drope_jax.errors import DataError

_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(unsafe_hash=True)
class JSONL(Source):
  """Files of JSON lines, `.jsonl`, `.jsonl.gz` or `.jsonl.zst`; `field` of each object is a document.

  Lines end at a line feed and nowhere else. Opening reads the files once, to find the lines, and keeps 16 bytes per
  document; compressed files are unpacked into `files.cache()` first, once, which takes the disk space of the text.
  """

  glob: str
  field: str = "text"

  def open(self) -> "_Lines":
    return _Lines([_File(path) for path in matching(self.glob)], self.field)


class _File:
  """The lines of one file."""

  def __init__(self, path: epath.Path):
    self.path, self.bytes = path, FileBytes(unpacked(path))
    self.begins, self.ends = _line_bounds(self.bytes)

  def where(self, line: int) -> str:
    before = self.bytes.read(0, int(self.begins[line])).count(b"\n")
    return f"{self.path}, line {before + 1}"


class _Lines(Sequence[Any]):
  """The field of each line of all files."""

  def __init__(self, files: list[_File], field: str):
    self.files, self.field = files, field
    self.lasts = np.cumsum([len(file.begins) for file in files]).tolist()
    self.sizes = [file.bytes.size for file in files]
    for last, file in zip(self.lasts, files, strict=True):
      if len(file.begins):
        _ = self[last - 1]  # a file that was cut off is cut in its last line

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    file, line = self._find(index)
    text = file.bytes.read(int(file.begins[line]), int(file.ends[line]))
    try:
      record = json.loads(text)
    except UnicodeDecodeError as error:
      raise DataError(f"{file.where(line)}: not UTF-8 ({error.reason}); convert the file, or remove the line") from None
    except (ValueError, RecursionError) as error:
      raise DataError(f"{file.where(line)}: not JSON ({error}); is the file cut off? mend or remove the line") from None
    if not isinstance(record, dict):
      raise DataError(f"{file.where(line)}: holds a {type(record).__name__}, not an object; is this JSON lines?")
    if self.field not in record:
      fields = ", ".join(record) or "none"
      raise DataError(f"{file.where(line)}: has no field {self.field!r}; fields: {fields}; name one as JSONL.field")
    return record[self.field]

  def where(self, index: int) -> str:
    file, line = self._find(index)
    return f"{file.where(line)}, field {self.field!r}"

  def _find(self, index: int) -> tuple[_File, int]:
    number = bisect.bisect_right(self.lasts, index)
    return self.files[number], index - (self.lasts[number - 1] if number else 0)


def _line_bounds(data: FileBytes) -> tuple[np.ndarray, np.ndarray]:
  """Where the lines that are not blank begin and end, in bytes."""
  found, at = [], 0
  for chunk in data.chunks():
    found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + at)
    at += len(chunk)
  feeds = np.concatenate([*found, [data.size]])
  begins = np.concatenate([[0], feeds[:-1] + 1])
  if data.read(0, min(len(_BOM), data.size)) == _BOM:
    begins[0] = len(_BOM)
  filled = feeds - begins > 0
  for index in np.flatnonzero(feeds - begins < 8):  # an object with a field is longer
    filled[index] = bool(data.read(int(begins[index]), int(feeds[index])).strip())
  return begins[filled], feeds[filled]
