"""Silences panics of the library tokenizers: its Rust code prints up to a hundred lines to stderr for each."""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

# The first line names the thread, the last one is a note.
_PANIC = re.compile(rb"\n?thread '[^\n]*panicked at .*?\nnote: [^\n]*(\n|\Z)", re.DOTALL)
_lock = threading.Lock()  # all threads share the file descriptor


@contextlib.contextmanager
def kept_from_stderr() -> Iterator[None]:
  """Panics in this block are not printed; other output to stderr is delayed until the end of the block."""
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
