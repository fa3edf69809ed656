"""Files of a source: those that match a pattern, random access to their bytes, copies of compressed ones."""

import contextlib
import fnmatch
import glob as globbing
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from etils import epath

from drope_jax.errors import ConfigError, DataError
from drope_jax.files import is_local

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_COPIED = 16 << 20  # bytes at a time


def matching(pattern: str) -> list[epath.Path]:
  """The files that match a pattern (`**` looks into folders), in the order of their names; none of them is empty.

  Raises:
    ConfigError: if there is none.
    DataError: naming a file that is empty, or a shard (`-00003-of-00010`) that matches the pattern and is missing.
  """
  if is_local(pattern):
    found = [epath.Path(name) for name in sorted(globbing.glob(str(Path(pattern).expanduser()), recursive=True))]
  else:
    fixed = re.split(r"/[^/]*[*?\[]", pattern)[0]
    rest = pattern[len(fixed) :].strip("/")
    if rest.startswith("**/"):  # which epath refuses, since it may take many requests
      found = [path for path in below(epath.Path(fixed)) if fnmatch.fnmatch(path.name, rest.removeprefix("**/"))]
    else:
      found = sorted(epath.Path(fixed).glob(rest)) if rest else [epath.Path(fixed)]
  files = [path for path in found if not path.is_dir()]
  if not files:
    raise ConfigError(f"{pattern}: no file matches")
  names = {str(path) for path in files}
  for path in files:
    if not path.stat().length:
      raise DataError(f"{path}: is empty; copy it again, or remove it")
    shard = _SHARD.search(path.name)
    for index in range(int(shard[2]) if shard else 0):
      other = str(path.with_name(_SHARD.sub(f"-{index:05d}-of-{shard[2]}", path.name)))  # type: ignore[index]
      if other not in names and fnmatch.fnmatch(Path(other).name, Path(pattern).name):
        raise DataError(f"{other}: this shard is missing; copy it, or name those that you want by a pattern")
  return files


def below(directory: epath.Path) -> list[epath.Path]:
  """Every file in a directory and the folders in it, in the order of their names; none that is hidden."""
  found = []
  for path in sorted(directory.iterdir()):
    if not path.name.startswith("."):
      found += below(path) if path.is_dir() else [path]
  return found


class FileBytes:
  """Random access to a file, for several threads, and picklable.

  It is not mapped into memory: of a file that is cut while it is mapped, reading kills the process.
  """

  def __init__(self, path: os.PathLike | str):
    self.path = epath.Path(path)
    self.size = self.path.stat().length
    self._open()

  def _open(self) -> None:
    self._lock = threading.Lock()
    self._file: Any = self.path.open("rb")
    self._local = is_local(self.path)

  def __getstate__(self) -> dict[str, Any]:
    return {"path": self.path, "size": self.size}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._open()

  def __del__(self) -> None:
    with contextlib.suppress(AttributeError):
      self._file.close()

  def read(self, begin: int, end: int) -> bytes:
    """The bytes from `begin` to `end`. Raises DataError if the file is shorter than it was."""
    if self._local:
      data = os.pread(self._file.fileno(), end - begin, begin)
    else:
      with self._lock:
        self._file.seek(begin)
        data = self._file.read(end - begin)
    if len(data) < end - begin and end <= self.size:
      raise DataError(f"{self.path}: is shorter than it was when it was opened; restore it, and start again")
    return data

  def chunks(self, size: int = _COPIED) -> Iterator[bytes]:
    """The file from its front."""
    for begin in range(0, self.size, size):
      yield self.read(begin, min(begin + size, self.size))


def cache() -> Path:
  """Where what can be made again is kept: $XDG_CACHE_HOME/drope_jax, by default ~/.cache/drope_jax."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drope_jax"


def decompressed(path: epath.Path) -> Iterator[bytes]:
  """The content of a .gz or .zst file, piece by piece. Raises DataError if it is broken."""
  try:
    with path.open("rb") as file, pa.input_stream(file, compression=COMPRESSION[path.suffix]) as stream:
      while piece := stream.read(_COPIED):
        yield piece
  except (OSError, pa.ArrowException) as error:
    raise DataError(f"{path}: cannot be decompressed; is it cut off? copy it again ({_line(error)})") from error


def unpacked(path: epath.Path) -> epath.Path:
  """The file itself, or of a compressed one a copy that can be read at any place.

  The copy is made once, in `cache()`, and takes the disk space of the uncompressed text; memory does not grow.
  """
  if path.suffix not in COMPRESSION:
    return path
  about = path.stat()
  key = hashlib.sha256(f"{path.resolve()} {about.length} {about.mtime}".encode()).hexdigest()[:16]
  copy = cache() / "unpacked" / f"{key}-{path.stem}"
  if not copy.exists():
    copy.parent.mkdir(parents=True, exist_ok=True)
    draft = copy.with_name(f".{copy.name}.{os.getpid()}")
    try:
      with draft.open("wb") as file:
        for piece in decompressed(path):
          file.write(piece)
      if not draft.stat().st_size:
        raise DataError(f"{path}: is empty once it is decompressed; remove it")
      draft.replace(copy)
    finally:
      draft.unlink(missing_ok=True)
  return epath.Path(copy)


def _line(error: BaseException) -> str:
  return next(iter(str(error).splitlines()), type(error).__name__)
