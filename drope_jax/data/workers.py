"""Worker processes that read or tokenise for a parent: they end with it, and do not receive its signals."""

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

_NEVER = 1 << 62  # bytes; no element is that large


@contextlib.contextmanager
def shielded(*numbers: signal.Signals) -> Iterator[None]:
  """Processes started by this thread in the block never get these signals, which a terminal sends to all.

  They inherit the blocked signals from their start on, whereas a handler would only be installed after their imports.
  """
  # Otherwise multiprocessing would start the tracker with the first process, and then unblock signals.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclasses.dataclass(frozen=True)
class EndWithParent:
  """Ends a worker when its parent is gone, even if that was killed; otherwise it would wait forever."""

  parent: int

  def __call__(self, *_: int) -> None:
    threading.Thread(target=self._watch, daemon=True).start()

  def _watch(self) -> None:
    while os.getppid() == self.parent:
      time.sleep(1)
    os._exit(1)


class WorkerStream:
  """The elements of a stream; each of `num_workers` processes reads a share, with 0 this process reads all."""

  def __init__(self, stream: grain.IterDataset[Any], num_workers: int):
    self._num_workers, self._calls = num_workers, 0
    if num_workers:
      if not flags.FLAGS.is_parsed():  # grain reads an absl flag, which fails if flags were not parsed
        flags.FLAGS.mark_as_parsed()
      # Elements are sent through pipes, because shared memory would leak if a worker ends with an error.
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
