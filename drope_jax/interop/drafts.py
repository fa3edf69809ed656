"""Folders that are written whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from drope_jax.errors import CheckpointError, ConfigError


def local(path: str | Path) -> Path:
  """A path on this machine. Raises ConfigError for a URL, which pathlib would take for a folder named `gs:`."""
  if "://" in str(path):
    raise ConfigError(f"{path}: a URL; pretrained models are read from and written to local folders: copy it")
  return Path(path)


def check_free(directory: Path) -> None:
  """Raises CheckpointError unless `directory` is missing or empty."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise CheckpointError(f"{directory}: holds something already; name another directory")


@contextlib.contextmanager
def draft_of(directory: Path) -> Iterator[Path]:
  """A folder beside `directory`, which becomes it if all goes well, and leaves no trace otherwise.

  Raises:
    CheckpointError: if something has come to lie in its place meanwhile.
  """
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
  try:
    yield draft
    draft.chmod(0o755)  # mkdtemp's is private
    try:
      draft.rename(directory)
    except OSError as error:
      raise CheckpointError(f"{directory}: holds something already; name another directory") from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
