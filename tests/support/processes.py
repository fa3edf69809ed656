"""Other processes of this machine, which may end at any moment."""

import contextlib
from pathlib import Path


def children(pid: int) -> list[int]:
  """The processes that this one, in any of its threads, has started."""
  found: list[int] = []
  for path in Path(f"/proc/{pid}/task").glob("*/children"):
    with contextlib.suppress(OSError):  # the thread has ended
      found += map(int, path.read_text().split())
  return found


def command_line(pid: int) -> bytes:
  """Its words, each followed by a zero byte; empty if it has ended."""
  with contextlib.suppress(OSError):
    return Path(f"/proc/{pid}/cmdline").read_bytes()
  return b""
