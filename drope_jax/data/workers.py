"""Processes that read or tokenise for another one: they end with it, and leave signals to it."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def shielded(*numbers: signal.Signals) -> Iterator[None]:
  """Processes that this thread starts in the block never get these signals, which a terminal sends to all of a group.

  They inherit that they are blocked, from their first moment on: a handler would come after their imports.
  """
  resource_tracker.ensure_running()  # multiprocessing starts this process with the first one, and then unblocks signals
  before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclasses.dataclass(frozen=True)
class EndWithParent:
  """Ends a worker when its trainer is gone, killed even: it would wait for ever."""

  parent: int

  def __call__(self, *_: int) -> None:
    threading.Thread(target=self._watch, daemon=True).start()

  def _watch(self) -> None:
    while os.getppid() == self.parent:
      time.sleep(1)
    os._exit(1)
