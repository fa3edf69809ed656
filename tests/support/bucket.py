"""A bucket at gs:// in this process's memory, which takes the place of gcsfs in fsspec."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Bucket(MemoryFileSystem):
  protocol = ("gs", "gcs")
  store: ClassVar[dict[str, Any]] = {}
  pseudo_dirs: ClassVar[list[str]] = [""]

  @classmethod
  def _strip_protocol(cls, path):
    path = str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")
    return f"/{path}" if path else ""


@contextlib.contextmanager
def fake_bucket() -> Iterator[Bucket]:
  """Within it, gs:// is an empty file system in memory."""
  with pytest.MonkeyPatch.context() as patch:
    for name in Bucket.protocol:
      patch.setitem(_registry, name, Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Bucket.store.clear()
    yield Bucket()
  backend.fsspec_backend._get_filesystem.cache_clear()
  Bucket.clear_instance_cache()


def upload(bucket: Bucket, folder: Path, target: str) -> None:
  """Copies a folder to `target` (gs://...)."""
  for path in folder.rglob("*"):
    if path.is_file():
      bucket.pipe_file(f"{target}/{path.relative_to(folder).as_posix()}", path.read_bytes())
