"""The threads of orbax print tracebacks of errors that are raised again where their result is wanted, or of none.

What prints: its threads themselves; asyncio, of futures that nobody waits for any more; Python, of coroutines that are
dropped; and tensorstore, whose threads find that the event loop has gone which had waited for another array.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps what these threads print from stderr. Some of it comes later than the error: after one, the filters stay."""
  loggers, hook = (logging.getLogger("absl"), logging.getLogger("asyncio")), sys.unraisablehook

  def is_other(record: logging.LogRecord) -> bool:
    return not (record.exc_info and ("orbax" in record.pathname or record.name == "asyncio"))

  def unraisable(caught: Any) -> None:
    code = getattr(caught.object, "cr_code", None)  # of a coroutine
    of_orbax = code is not None and "orbax" in code.co_filename
    of_tensorstore = caught.object is None and "Event loop is closed" in str(caught.exc_value)
    if not of_orbax and not of_tensorstore:
      hook(caught)

  for each in loggers:
    each.addFilter(is_other)
  sys.unraisablehook = unraisable
  yield
  for each in loggers:
    each.removeFilter(is_other)
  if sys.unraisablehook is unraisable:
    sys.unraisablehook = hook


@contextlib.contextmanager
def without_warning(begins: str) -> Iterator[None]:
  """Leaves out a warning of orbax that begins so: one about what was asked for."""

  def is_other(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(begins)

  logging.getLogger("absl").addFilter(is_other)
  try:
    yield
  finally:
    logging.getLogger("absl").removeFilter(is_other)
