"""The threads of orbax print tracebacks of errors that are raised again where their result is wanted, or of none.

What prints: its threads themselves; asyncio, of futures that nobody waits for any more; and tensorstore, whose threads
find that the event loop has gone which had waited for another array.
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
    if caught.object is not None or "Event loop is closed" not in str(caught.exc_value):
      hook(caught)

  for each in loggers:
    each.addFilter(is_other)
  sys.unraisablehook = unraisable
  yield
  for each in loggers:
    each.removeFilter(is_other)
  if sys.unraisablehook is unraisable:
    sys.unraisablehook = hook
