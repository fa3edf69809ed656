"""SIGTERM and Ctrl-C both stop a command cleanly: its work is kept, and only one line is printed."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from drope_jax import interrupts
from drope_jax.interrupts import NAMES


class Terminated(BaseException):
  """A signal stopped the command; the message says where ("at step 3").

  Like KeyboardInterrupt, it is not an Exception, so that libraries do not handle it as one of their errors.
  """


@contextlib.contextmanager
def terminable() -> Iterator[None]:
  """SIGTERM and Ctrl-C raise Terminated, unless other code handles them: the training loop does, and saves first.

  A timer raises it again until it is delivered, because callbacks from C, such as `__del__`, swallow exceptions. A
  second Ctrl-C ends the process at once.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  reason = ["by SIGTERM"]

  def terminate(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGALRM:
      reason[0] = NAMES[signal.Signals(number)]
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    if not _swallows(frame) and not _on_its_way(sys.exc_info()[1]):
      raise Terminated(reason[0])

  before = {number: signal.signal(number, terminate) for number in (*NAMES, signal.SIGALRM)}
  interrupts.unblock()  # in case the restart (cpu.py) was not by `python -m`
  try:
    with interrupts.ends_at_second_ctrl_c():
      yield
  finally:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
      signal.signal(number, handler)


def _swallows(frame: FrameType | None) -> bool:
  """Whether exceptions raised here would only be logged: in asyncio (used by orbax), or in a callback of JAX."""
  while frame is not None:
    if frame.f_globals.get("__name__", "").startswith(("asyncio.", "jax._src.lib")):
      return True
    frame = frame.f_back
  return False


def _on_its_way(error: BaseException | None) -> bool:
  """Whether Terminated has already been raised, so that the running code is cleaning up."""
  while error is not None:
    if isinstance(error, Terminated):
      return True
    error = error.__context__
  return False
