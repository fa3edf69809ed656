"""Atomic writes of files, JSON lines, and checks of files and directories."""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from etils import epath

from drope_jax.errors import ConfigError, FileError

logger = logging.getLogger(__name__)

DRAFT = ".draft"  # suffix of a file that is being written
LOCK = ".lock"  # suffix of the file that the writer of a directory has locked (workdir.py)


@contextlib.contextmanager
def writing(path: epath.PathLike, *drafts: Path) -> Iterator[None]:
  """Turns an OSError in this block (a full disk, no permission) into a FileError that names `path`.

  Args:
    drafts: removed if the block fails for any reason.
  """
  try:
    yield
  except BaseException as error:
    for draft in drafts:
      with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
    if isinstance(error, OSError):
      raise FileError(f"{path}: cannot be written ({error.strerror or error})") from error
    raise


def replace_whole(path: epath.PathLike, content: str | bytes) -> None:
  """Writes or replaces a file atomically: readers see the old or the new content, and a crash leaves the old one.

  In a bucket (gs://), where an object only appears once it is complete, it is written in place.

  Raises:
    FileError: naming the file, if it cannot be written.
  """
  data = content.encode() if isinstance(content, str) else content
  if not is_local(path):
    with writing(path):
      epath.Path(path).write_bytes(data)
    return
  target = Path(os.fspath(path))
  draft = target.with_name(target.name + DRAFT)
  with writing(target, draft):
    with draft.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())  # else, after a power failure, the new name may have the old content
    draft.replace(target)


def write_json(data: Any, path: epath.PathLike) -> None:
  """Writes `data` as a JSON file, atomically (see `replace_whole`)."""
  replace_whole(path, json.dumps(data, indent=2) + "\n")


class Line(NamedTuple):
  """A line of a file of JSON lines."""

  number: int  # from 1
  content: bytes  # without its newline
  ended: bool  # whether it had a newline: a crash may have cut off the last line

  def record(self) -> Any:
    """The parsed JSON. Raises ValueError if the line is not UTF-8, or not JSON."""
    try:
      return json.loads(self.content.decode())
    except RecursionError as error:
      raise ValueError("nested too deeply") from error


def lines_of(path: epath.PathLike) -> list[Line]:
  """The lines of a file; an empty rest after the last newline is not one. Raises FileError if it cannot be read."""
  try:
    content = epath.Path(path).read_bytes()
  except OSError as error:
    raise FileError(f"{path}: cannot be read ({error})") from error
  *whole, last = content.split(b"\n")  # splitlines would also split at characters that JSON strings may contain
  lines = [Line(number, line, True) for number, line in enumerate(whole, start=1)]
  return [*lines, Line(len(lines) + 1, last, False)] if last else lines


def read_json_lines(path: epath.PathLike, torn: Literal["drop", "read", "skip"] = "drop") -> list[Any]:
  """The records of a file, one per line; blank lines are skipped.

  Args:
    torn: how to treat a line that a crash may have cut off. "drop": a last line without a newline is ignored. "read":
      the file is not ours, and its last line is a record like any other. "skip": a line that is not JSON is ignored
      with a warning, wherever it is, because records may have been appended after a torn line.

  Raises:
    FileError: the file cannot be read, or a line is not JSON; the message names the file and the line.
  """
  records = []
  for line in lines_of(path):
    if not line.content.strip() or (torn == "drop" and not line.ended):
      continue
    try:
      records.append(line.record())
    except ValueError as error:
      if torn != "skip":
        raise FileError(f"{path}:{line.number}: not JSON ({error})") from error
      logger.warning("%s:%d is not a complete record and is ignored (%s)", path, line.number, error)
  return records


def is_torn(path: Path) -> bool:
  """Whether a file ends without a newline, because writing it was interrupted."""
  if not path.exists() or not path.stat().st_size:
    return False
  with path.open("rb") as file:
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def append_json_lines(records: Iterable[Any], path: Path) -> None:
  """Appends records to a local file in one write; a last line that a crash has cut off is removed first.

  Raises:
    FileError: naming the file, if it cannot be written.
  """
  with writing(path):
    _append(records, path)


def _append(records: Iterable[Any], path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a+b") as file:  # writes go to the end, whatever the read position
    if is_torn(path):
      file.seek(0)
      file.truncate(file.read().rfind(b"\n") + 1)
    file.write("".join(json.dumps(record) + "\n" for record in records).encode())


def holds_something(directory: Path) -> bool:
  """Whether a directory exists and is not empty; drafts and locks left by a crash do not count."""
  return directory.exists() and any(not path.name.endswith((DRAFT, LOCK)) for path in directory.iterdir())


def is_local(path: epath.PathLike) -> bool:
  """Whether a path is on a file system of this machine, and not in a bucket (gs://, s3://)."""
  return "://" not in os.fspath(epath.Path(path))


def check_folder(path: Path, flag: str) -> None:
  """Raises ConfigError naming the flag unless `path` is a writable folder, or can be created as one."""
  there = next((one for one in (path, *path.parents) if one.exists()), path)
  if not there.is_dir():
    raise ConfigError(f"{flag}: {path} cannot be a folder: {there} is a file")
  if not os.access(there, os.W_OK):
    raise ConfigError(f"{flag}: {path} cannot be written: {there} is read-only")


def check_file(path: Path, flag: str) -> None:
  """Raises ConfigError naming the flag unless a file can be written at `path`."""
  if path.is_dir():
    raise ConfigError(f"{flag}: {path} is a folder; name a file")
  if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
    raise ConfigError(f"{flag}: {path} cannot be written: {path.parent} is no folder that can be written to")
