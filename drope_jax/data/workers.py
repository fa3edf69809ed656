"""Processes that read or tokenise for another one: they end with it, and leave signals to it."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
from absl import flags

_NEVER = 1 << 62  # bytes


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


class WorkerStream:
  """The elements of a stream, of which so many processes read a share each; with 0 of them, this process reads all."""

  def __init__(self, stream: grain.IterDataset[Any], num_workers: int):
    self._num_workers, self._calls = num_workers, 0
    if num_workers:
      if not flags.FLAGS.is_parsed():  # grain reads an absl flag, which fails outside of absl programs
        flags.FLAGS.mark_as_parsed()
      # Elements come through pipes: shared memory would be left behind where a worker ends with an error.
      stream = grain.experimental.WithOptionsIterDataset(stream, grain.experimental.DatasetOptions(min_shm_size=_NEVER))
      options = grain.MultiprocessingOptions(num_workers=num_workers)
      stream = stream.mp_prefetch(options, worker_init_fn=EndWithParent(os.getpid()))
    self._iterator = iter(stream)

  def __next__(self) -> Any:
    """The first call for each worker starts it, in this thread or in one that this thread starts."""
    self._calls += 1
    if self._calls > self._num_workers:
      return next(self._iterator)
    with shielded(signal.SIGINT, signal.SIGTERM):  # grain ends its workers by SIGKILL
      return next(self._iterator)

  def start_prefetch(self) -> None:
    self._iterator.start_prefetch()

  def close(self) -> None:
    self._iterator.close()
