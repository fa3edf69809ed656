"""Silences output of orbax that is of no use: tracebacks of errors that are raised anyway, and notes to readers.

Tracebacks are printed by its threads, by asyncio (futures that nobody waits for any more), by Python (dropped
coroutines), and by tensorstore (whose threads find the event loop closed after another array has failed).
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps these lines from stderr. After an error the filters stay, because some lines are printed later."""
  loggers, hook = (logging.getLogger("absl"), logging.getLogger("asyncio")), sys.unraisablehook

  def is_kept(record: logging.LogRecord) -> bool:
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
    each.addFilter(is_kept)
  sys.unraisablehook = unraisable
  yield
  for each in loggers:
    each.removeFilter(is_kept)
  if sys.unraisablehook is unraisable:
    sys.unraisablehook = hook
