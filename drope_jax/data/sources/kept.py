"""What is kept on this machine's disk because it takes long to make: unpacked files, copies from buckets, indexes."""

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
_COPIED = 16 << 20  # bytes at a time
_ANNOUNCED = 1 << 30  # bytes of a file that takes so long to read that a line says so

logger = logging.getLogger(__name__)


def cache() -> Path:
  """Where what can be made again is kept: $XDG_CACHE_HOME/drope_jax, by default ~/.cache/drope_jax."""
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drope_jax"


def kept(path: epath.Path, kind: str, pieces: Iterable[bytes]) -> Path:
  """The file of `cache()` that holds `pieces`, which are read only if it is not there: a function of `path` and `kind`.

  It is made once, whole or not at all, and again when the size or the time of `path` changes.

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
  file = cache() / kind / f"{key}-{path.stem}"
  if not file.exists():
    if path.stat().length > _ANNOUNCED:
      logger.info("reads %s once, and keeps what it needs in %s", path, file.parent)
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
  """Raises OSError for what cannot be written, alone: what cannot be read is another error already."""
  draft.parent.mkdir(parents=True, exist_ok=True)
  with draft.open("wb") as out:
    for piece in pieces:
      out.write(piece)


def compression(path: epath.Path) -> str | None:
  """How a file is compressed, by its name; None: not at all."""
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
  """The file itself, or of a compressed one a copy that can be read at any place.

  The copy takes the disk space of the uncompressed text; memory does not grow.
  """
  if compression(path) is None:
    return path

  def pieces() -> Iterator[bytes]:
    empty = True
    for piece in decompressed(path):
      empty = False
      yield piece
    if empty:
      raise DataError(f"{path}: is empty once it is decompressed; remove it")

  return epath.Path(kept(path, "unpacked", pieces()))


def local(path: epath.Path) -> epath.Path:
  """The file itself, or of one in a bucket a copy, for readers that know local files alone."""
  return path if is_local(path) else epath.Path(kept(path, "copies", FileBytes(path).chunks()))


def first_line(error: BaseException) -> str:
  """Of another library's message."""
  return next(iter(str(error).splitlines()), type(error).__name__)
