"""Folders that are written whole or not at all."""

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


def local(path: str | Path) -> Path:
  """A path on this machine, `~` expanded. Raises ConfigError for a URL, which pathlib would take for a folder `gs:`."""
  if "://" in str(path):
    raise ConfigError(f"{path}: a URL; pretrained models are read from and written to local folders: copy it")
  return Path(path).expanduser()


def check_free(directory: Path) -> None:
  """Raises CheckpointError unless `directory` is missing or empty."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise CheckpointError(f"{directory}: holds something already; name another directory")


logger = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds


@contextlib.contextmanager
def draft_of(directory: Path) -> Iterator[Path]:
  """A folder beside `directory`, which becomes it if all goes well, and leaves no trace otherwise.

  One that a killed process has left is removed by the next start for the same `directory`.

  Raises:
    CheckpointError: if something has come to lie in its place meanwhile.
    FileError: if there is no room for it, or no right to write there.
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
  """Removes the drafts of `directory` whose process was killed: the system has given their locks back."""
  for draft in directory.parent.glob(f".{glob.escape(directory.name)}-????????{DRAFT}"):
    held = _locked(draft)
    if held is not None:
      logger.info("removes %s, which a process that was killed has left", draft)
      shutil.rmtree(draft, ignore_errors=True)
      os.close(held)


def _locked(draft: Path) -> int | None:
  """The descriptor of a folder, locked for this process; None if another one holds it, or there are no locks."""
  with contextlib.suppress(OSError):
    held = os.open(draft, os.O_RDONLY)
    try:
      fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return held
    except OSError:
      os.close(held)
  return None


def _remove(draft: Path) -> None:
  """Removes a folder into which threads of orbax may still write what an error has left to them."""
  until = time.monotonic() + _PATIENCE
  while draft.exists() and time.monotonic() < until:
    shutil.rmtree(draft, ignore_errors=True)
    if draft.exists():
      time.sleep(0.1)


def _writing(error: BaseException, directory: Path) -> bool:
  """Whether an error is one of writing to the folder or its draft, and not of reading what goes into it."""
  if isinstance(error, OSError):
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(directory.parent)
  return isinstance(error, safetensors.SafetensorError) and "serializing" in str(error)


def _move(draft: Path, directory: Path) -> None:
  try:
    draft.rename(directory)
  except OSError as error:
    raise CheckpointError(f"{directory}: holds something already; name another directory") from error


def _sync(folder: Path) -> None:
  """Waits until the files of a folder are on the disk, so that a crash cannot leave it complete in name alone."""
  for path in folder.rglob("*"):
    if path.is_file():
      with path.open("rb") as file:
        os.fsync(file.fileno())
