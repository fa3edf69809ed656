"""What orbax prints and no user needs: tracebacks of errors that are raised again, and that a reader only reads.

What prints tracebacks: its threads themselves; asyncio, of futures that nobody waits for any more; Python, of
coroutines that are dropped; and tensorstore, whose threads find that the event loop has gone which had waited for
another array.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps these lines from stderr. Some of it comes later than the error: after one, the filters stay."""
  loggers, hook = (logging.getLogger("absl"), logging.getLogger("asyncio")), sys.unraisablehook

  def is_other(record: logging.LogRecord) -> bool:
    if "orbax" in record.pathname and str(record.msg).startswith("Given directory is read only"):
      return False
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
