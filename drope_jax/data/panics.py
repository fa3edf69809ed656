"""Panics of the library tokenizers: its Rust prints each to the descriptor of stderr, up to a hundred lines."""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

# The first line names the thread, the last is a note on how to see more.
_PANIC = re.compile(rb"\n?thread '[^\n]*panicked at .*?\nnote: [^\n]*(\n|\Z)", re.DOTALL)
_lock = threading.Lock()  # the descriptor is one for all threads


@contextlib.contextmanager
def kept_from_stderr() -> Iterator[None]:
  """Panics in this block are not printed; what else the process writes to stderr meanwhile comes after it."""
  with _lock, tempfile.TemporaryFile() as file:
    try:
      stderr = os.dup(2)
    except OSError:  # it is closed
      yield
      return
    os.dup2(file.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
      file.seek(0)
      rest = _PANIC.sub(b"", file.read())
      with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, rest)
