"""Writing folders atomically."""

import contextlib
import fcntl
import glob
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors

from drope_jax.errors import CheckpointError, ConfigError, FileError
from drope_jax.files import DRAFT

logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds to wait for threads that still write to a draft


def local(path: str | Path) -> Path:
  """A path on this machine, `~` expanded. Raises ConfigError for a URL, which pathlib would take for a folder `gs:`."""
  if "://" in str(path):
    raise ConfigError(f"{path}: a URL; pretrained models are read from and written to local folders: copy it")
  return Path(path).expanduser()


def check_free(directory: Path) -> None:
  """Raises CheckpointError unless `directory` is missing or empty."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise CheckpointError(f"{directory}: holds something already; name another directory")


@contextlib.contextmanager
def draft_of(directory: Path) -> Iterator[Path]:
  """A temporary folder next to `directory`, which is renamed to it on success, and removed otherwise.

  The folder of a process that was killed is removed by the next start for the same `directory`.

  Raises:
    CheckpointError: if `directory` was created by another process meanwhile.
    FileError: if it cannot be written, for lack of space or permission.
  """
  missing = [parent for parent in directory.parents if not parent.exists()]
  draft = held = None
  try:
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", suffix=DRAFT, dir=directory.parent))
    held = _locked(draft)
    yield draft
    draft.chmod(0o755)  # mkdtemp's is private
    _sync(draft)
    _move(draft, directory)
  except BaseException as error:
    if draft is not None:
      _remove(draft)
    for parent in missing:  # the innermost first
      with contextlib.suppress(OSError):
        parent.rmdir()
    if _writing(error, directory):
      raise FileError(f"{directory}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    raise
  finally:
    if held is not None:
      os.close(held)


def _remove_abandoned(directory: Path) -> None:
  """Removes the drafts of `directory` whose process was killed, which the system has unlocked."""
  for draft in directory.parent.glob(f".{glob.escape(directory.name)}-????????{DRAFT}"):
    held = _locked(draft)
    if held is not None:
      logger.info("removing %s, left by a process that was killed", draft)
      shutil.rmtree(draft, ignore_errors=True)
      os.close(held)


def _locked(draft: Path) -> int | None:
  """The descriptor of a folder, locked by this process; None if another one has locked it, or there are no locks."""
  with contextlib.suppress(OSError):
    held = os.open(draft, os.O_RDONLY)
    try:
      fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return held
    except OSError:
      os.close(held)
  return None


def _remove(draft: Path) -> None:
  """Removes a folder, retrying because threads of orbax may still write to it after an error."""
  until = time.monotonic() + _PATIENCE
  while draft.exists() and time.monotonic() < until:
    shutil.rmtree(draft, ignore_errors=True)
    if draft.exists():
      time.sleep(0.1)


def _writing(error: BaseException, directory: Path) -> bool:
  """Whether an error comes from writing to the folder or its draft, and not from reading a source."""
  if isinstance(error, OSError):
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(directory.parent)
  return isinstance(error, safetensors.SafetensorError) and "serializing" in str(error)


def _move(draft: Path, directory: Path) -> None:
  try:
    draft.rename(directory)
  except OSError as error:
    raise CheckpointError(f"{directory}: holds something already; name another directory") from error


def _sync(folder: Path) -> None:
  """Flushes the files of a folder to disk, so that after a crash it is never renamed but incomplete."""
  for path in folder.rglob("*"):
    if path.is_file():
      with path.open("rb") as file:
        os.fsync(file.fileno())
