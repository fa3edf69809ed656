"""Files of a source, local or in a bucket: matching a pattern, and random access to their bytes."""

import fnmatch
import glob as globbing
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from etils import epath

from drope_jax.errors import ConfigError, DataError, ToolError
from drope_jax.files import is_local

S = TypeVar("S")
T = TypeVar("T")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_ESCAPED = re.compile(r"\[([*?[])\]")  # a literal wildcard character, as glob.escape writes it
_CHUNK = 16 << 20  # bytes read at a time
_OPENED_TOGETHER = 8  # files opened in parallel, each of which may take several requests


def matching(pattern: str) -> list[epath.Path]:
  """The files that match a pattern (`**` includes subfolders), sorted by name; none of them is empty.

  Raises:
    ConfigError: if there is none.
    DataError: naming a file that is empty, a broken link, a link to a folder that contains it, or a missing shard
      (`-00003-of-00010`) that would match the pattern.
    ToolError: the pattern is of a bucket whose client library is missing.
  """
  if is_local(pattern):
    if "**" in pattern:
      below(epath.Path(fixed_part(pattern)))  # raises an error for loops of links, which glob would follow
    found = [Path(name) for name in sorted(globbing.glob(str(Path(pattern).expanduser()), recursive=True))]
    files = [epath.Path(path) for path in found if not path.is_dir()]
  else:
    system, inner = bucket(pattern)
    there = system.glob(inner, detail=True)
    files = [_in_bucket(pattern, name) for name, about in sorted(there.items()) if about["type"] == "file"]
  if not files:
    raise ConfigError(f"{pattern}: no file matches")
  names = {str(path) for path in files}
  for path in files:
    if is_local(path) and not path.exists():
      raise DataError(f"{path}: a link to nothing; restore what it names, or remove it")
    if not path.stat().length:
      raise DataError(f"{path}: is empty; copy it again, or remove it")
    shard = _SHARD.search(path.name)
    for index in range(int(shard[2]) if shard else 0):
      other = str(path.with_name(_SHARD.sub(f"-{index:05d}-of-{shard[2]}", path.name)))  # type: ignore[index]
      if other not in names and fnmatch.fnmatch(Path(other).name, Path(pattern).name):
        raise DataError(f"{other}: this shard is missing; copy it, or name those that you want by a pattern")
  return files


class StoredFile(NamedTuple):
  """Identifies a file of a source, besides its documents."""

  name: str  # without folders, since the file may be moved
  size: int  # bytes
  written: float  # modification time: nanoseconds, or seconds in a bucket
  sum: int | None = None  # checksum of its content, if it was read completely

  @classmethod
  def at(cls, path: epath.Path, sum: int | None = None) -> "StoredFile":
    """The file at a path."""
    if is_local(path):
      about = os.stat(path)
      return cls(path.name, about.st_size, about.st_mtime_ns, sum)
    there = path.stat()
    return cls(path.name, there.length, there.mtime, sum)


def fixed_part(pattern: str) -> Path:
  """The folder that a local pattern searches: its path up to the first component with a wildcard."""
  path = Path(pattern).expanduser()
  fixed = Path(path.anchor)
  for part in path.relative_to(path.anchor).parts[:-1]:
    if globbing.has_magic(_ESCAPED.sub("", part)):
      break
    fixed /= _ESCAPED.sub(r"\1", part)
  return fixed


def below(directory: epath.Path, above: tuple[Path, ...] = ()) -> list[epath.Path]:
  """All files in a directory and its subfolders, sorted by name, without hidden ones.

  Args:
    above: the folders that contain it, with links resolved.

  Raises:
    DataError: naming a link to a folder that contains it.
  """
  if not is_local(directory):
    system, inner = bucket(directory)
    names = [name for name in sorted(system.find(inner)) if "/." not in name[len(inner) :]]
    return [_in_bucket(str(directory), name) for name in names]
  real = Path(directory).resolve()
  if real in above:
    raise DataError(f"{directory}: a link to a folder that it lies in, which has no end; remove it")
  found = []
  for path in sorted(directory.iterdir()) if directory.is_dir() else ():
    if not path.name.startswith("."):
      found += below(path, (*above, real)) if path.is_dir() else [path]
  return found


def bucket(path: epath.PathLike) -> tuple[Any, str]:
  """The file system of a path in a bucket (gs://, s3://), and the path in it.

  Raises:
    ToolError: its client library is missing.
  """
  try:
    return fsspec.core.url_to_fs(str(path))
  except ImportError as error:
    raise ToolError(
      f"{path}: cannot be read without the client library of its bucket ({error}); gs:// needs `pip install gcsfs`, "
      "s3:// `pip install s3fs`"
    ) from error


def check_reachable(path: epath.PathLike) -> None:
  """Raises ToolError if a path is in a bucket whose client library is missing."""
  if not is_local(path):
    bucket(path)


def _in_bucket(like: str, name: str) -> epath.Path:
  """The path of the file `name` in the file system of `like`."""
  return epath.Path(f"{like.partition('://')[0]}://{name.partition('://')[2] or name}")


def opened(make: Callable[[S], T], files: Iterable[S]) -> list[T]:
  """`make` of each file, several in parallel, because opening files is mostly waiting."""
  with ThreadPoolExecutor(_OPENED_TOGETHER) as pool:
    return list(pool.map(make, files))


class FileBytes:
  """Random access to a file; thread-safe and picklable.

  The file is opened for each read, since a dataset may have more files than a process may keep open. It is not memory
  mapped, because truncating a mapped file kills the process that reads it. In a bucket each read is one request.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)
    self.size: int = self.path.stat().length
    self._local = is_local(self.path)

  def read(self, begin: int, end: int) -> bytes:
    """The bytes from `begin` to `end`. Raises DataError if the file cannot be read, or has become shorter."""
    if begin >= end:
      return b""
    data = self._read(begin, end) if self._local else self._fetch(begin, end)
    if len(data) < end - begin and end <= self.size:
      raise DataError(f"{self.path}: is shorter than it was when it was opened; restore it, and start again")
    return data

  def _read(self, begin: int, end: int) -> bytes:
    try:
      file = os.open(self.path, os.O_RDONLY)
      try:
        data = os.pread(file, end - begin, begin)
        while len(data) < end - begin and (more := os.pread(file, end - begin - len(data), begin + len(data))):
          data += more  # one call reads at most 2 GiB
      finally:
        os.close(file)
    except OSError as error:
      raise DataError(f"{self.path}: cannot be read ({error.strerror}); restore it, and start again") from error
    return data

  def _fetch(self, begin: int, end: int) -> bytes:
    system, inner = bucket(self.path)
    try:
      return system.cat_file(inner, start=begin, end=end)
    except OSError as error:
      raise DataError(f"{self.path}: cannot be fetched ({error}); start again") from error

  def chunks(self, until: int | None = None) -> Iterator[bytes]:
    """The content from the start to the end, or to byte `until`."""
    end = self.size if until is None else until
    for begin in range(0, end, _CHUNK):
      yield self.read(begin, min(begin + _CHUNK, end))
