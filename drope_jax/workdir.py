"""Directories that one process writes to: their names, their lock, and moving superseded files aside."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from drope_jax.errors import BusyError
from drope_jax.files import LOCK, is_local

logger = logging.getLogger(__name__)

SUPERSEDED = "superseded"  # holds numbered folders of files that were set aside

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # this process cannot write there
_BUSY = (errno.EAGAIN, errno.EACCES)  # raised by flock if another process holds the lock


def run_name(workdir: epath.PathLike) -> str:
  """The name of a run in records and reports: that of its workdir; of an imported model, in NAME/checkpoint, NAME.

  Links are not followed: the shared run behind WORKDIR/runs/NAME has a digest for a name.
  """
  path = Path(os.path.abspath(workdir))
  return path.parent.name if path.name == "checkpoint" and path.parent.name else path.name


@contextlib.contextmanager
def sole_writer(directory: epath.PathLike, what: str) -> Iterator[None]:
  """Holds the lock of `directory` for one kind of content (`what`: "run", "results").

  A missing directory is created, and removed again if nothing was written to it.

  The operating system releases the lock when the process ends for any reason (flock); on NFS the server does, once it
  notices that a machine is gone. In a bucket, and on file systems without locks, nothing is locked, and concurrent
  writers are not noticed. With several hosts, one of them takes the lock for all.

  Raises:
    BusyError: another process holds the lock; the message names it, and nothing was changed.
  """
  if not is_local(directory):
    yield
    return
  path = Path(os.fspath(epath.Path(directory))) / f".{what}{LOCK}"
  made = [folder for folder in path.parents if not folder.exists()]
  path.parent.mkdir(parents=True, exist_ok=True)
  file = _locked(path)
  try:
    yield
  finally:
    if file is not None:
      # Removed before it is released: a process that has opened it meanwhile then finds that it is no longer the lock.
      with contextlib.suppress(OSError):  # the directory may be gone
        path.unlink()
      os.close(file)
    with contextlib.suppress(OSError):  # if something was written
      for folder in made:
        folder.rmdir()


def _locked(path: Path) -> int | None:
  """The descriptor of the locked lock file; None if there are no locks, or the directory is read-only."""
  while True:
    writable = True
    try:
      file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      if error.errno not in _READ_ONLY:
        raise
      try:  # another user's lock file: reading it is enough for flock
        file, writable = os.open(path, os.O_RDONLY), False
      except OSError:
        return None
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      holder = os.read(file, 200).decode(errors="replace").strip()
      os.close(file)
      if error.errno in _BUSY:
        raise BusyError(
          f"{path.parent}: another process writes here ({holder or 'unknown'}); wait until it ends, stop it, or choose "
          "another directory"
        ) from error
      logger.warning(
        "%s: this file system has no locks (%s); a second start would not be noticed", path.parent, error.strerror
      )
      return None
    if _is_open(path, file):
      if not writable:
        return file
      os.truncate(file, 0)
      os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
      return file
    os.close(file)  # the former holder removed it between the two calls


def _is_open(path: Path, file: int) -> bool:
  """Whether the descriptor `file` is still the file at `path`."""
  try:
    return path.stat().st_ino == os.fstat(file).st_ino
  except FileNotFoundError:
    return False


def set_aside(directory: epath.PathLike, moved: Iterable[epath.Path], copied: Iterable[epath.Path] = ()) -> epath.Path:
  """Moves and copies files of `directory` into a new numbered folder of its `superseded/`; returns that folder."""
  aside = epath.Path(directory) / SUPERSEDED
  there = [int(path.name) for path in aside.iterdir() if path.name.isdigit()] if aside.exists() else []
  target = aside / str(1 + max(there, default=0))
  target.mkdir(parents=True)
  for path in copied:
    path.copy(target / path.name)
  for path in moved:
    path.rename(target / path.name)
  return target
