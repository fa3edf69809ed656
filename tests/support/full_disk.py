"""Disks that cannot be written: one that is full for this process, and one that is read-only."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
  """No file can grow beyond `size` bytes."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
  """Mounts a folder read-only in its place; skips the test if this process may not mount."""
  try:
    subprocess.run(["mount", "--bind", folder, folder], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("mounting needs root")
  try:
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
    yield
  finally:
    subprocess.run(["umount", folder], check=True)
