"""A cache on this machine's disk of files that take long to make: unpacked files, copies from buckets, indexes."""

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from etils import epath

from drope_jax.data.sources.files import FileBytes
from drope_jax.errors import DataError, FileError
from drope_jax.files import is_local

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_COPIED = 16 << 20  # bytes read at a time
_ANNOUNCED = 1 << 30  # bytes; reading a larger file is announced in the log, because it takes long

logger = logging.getLogger(__name__)


def cache_directory() -> Path:
  """The directory of cached files: $XDG_CACHE_HOME/drope_jax, by default ~/.cache/drope_jax."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drope_jax"


def cached(path: epath.Path, kind: str, pieces: Iterable[bytes]) -> Path:
  """The path of a cached file; it is made once, whole or not at all, and again if the size or time of `path` changes.

  Args:
    path: the file that the content is made from.
    kind: what is made from it; a folder in the cache.
    pieces: the content, read only if the file is not cached yet.

  Raises:
    FileError: if it cannot be written.
  """
  if is_local(path):
    about = os.stat(path)
    version = f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
  else:
    there = path.stat()
    version = f"{there.length} {there.mtime}"
  key = hashlib.sha256(f"{path.resolve()} {version}".encode()).hexdigest()[:16]
  file = cache_directory() / kind / f"{key}-{path.stem}"
  if not file.exists():
    if path.stat().length > _ANNOUNCED:
      logger.info("reading %s once; what is needed of it is cached in %s", path, file.parent)
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")  # another host may be making the same
    try:
      _write(draft, pieces)
      draft.replace(file)
    except OSError as error:
      raise FileError(
        f"{file}: cannot be written ({error.strerror or error}); make room, or name another folder by XDG_CACHE_HOME"
      ) from error
    finally:
      with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
  return file


def _write(draft: Path, pieces: Iterable[bytes]) -> None:
  """Raises OSError only if `draft` cannot be written: errors of reading are DataErrors already."""
  draft.parent.mkdir(parents=True, exist_ok=True)
  with draft.open("wb") as out:
    for piece in pieces:
      out.write(piece)


def compression(path: epath.Path) -> str | None:
  """The compression of a file, by its suffix; None if it is not compressed."""
  return _COMPRESSION.get(path.suffix.lower())


def decompressed(path: epath.Path) -> Iterator[bytes]:
  """The content of a .gz or .zst file, piece by piece. Raises DataError if it is broken."""
  try:
    with path.open("rb") as file, pa.input_stream(file, compression=compression(path)) as stream:
      while piece := stream.read(_COPIED):
        yield piece
  except (OSError, pa.ArrowException) as error:
    raise DataError(f"{path}: cannot be decompressed; is it cut off? copy it again ({first_line(error)})") from error


def unpacked(path: epath.Path) -> epath.Path:
  """The file itself, or for a compressed one an uncompressed copy, which allows random access.

  The copy takes the disk space of the uncompressed text, and no memory.
  """
  if compression(path) is None:
    return path

  def pieces() -> Iterator[bytes]:
    empty = True
    for piece in decompressed(path):
      empty = False
      yield piece
    if empty:
      raise DataError(f"{path}: is empty after decompression; remove it")

  return epath.Path(cached(path, "unpacked", pieces()))


def local(path: epath.Path) -> epath.Path:
  """The file itself, or for one in a bucket a local copy, for readers that only read local files."""
  return path if is_local(path) else epath.Path(cached(path, "copies", FileBytes(path).chunks()))


def first_line(error: BaseException) -> str:
  """The first line of another library's error message."""
  return next(iter(str(error).splitlines()), type(error).__name__)
