"""Prefetches documents in threads, limited by their total size."""

import collections
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

AHEAD = 16  # maximum number of documents; more would delay the first batch
AHEAD_BYTES = 64 << 20  # bytes of waiting tokens above which no further document is started
_THREADS = 4

Batch = dict[str, np.ndarray]


class ReadAhead(grain.IterDataset[Batch]):
  """The elements of `documents` in order, prefetched by several threads.

  grain's own prefetching (0.2.18) counts elements, but one may have a thousand bytes and the next twenty million.
  """

  def __init__(self, documents: grain.MapDataset[Batch]):
    super().__init__()
    self._documents, self._bytes = documents, AHEAD_BYTES

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    """Restricts this to the share of one worker process; grain calls it on a copy."""
    assert not sequential_slice
    self._documents, self._bytes = self._documents.slice(sl), AHEAD_BYTES // (sl.step or 1)

  def __iter__(self) -> grain.DatasetIterator[Batch]:
    return _ReadAheadIterator(self._documents, self._bytes)


class _ReadAheadIterator(grain.DatasetIterator[Batch]):
  def __init__(self, documents: grain.MapDataset[Batch], most_bytes: int):
    super().__init__()
    self._documents, self._most_bytes = documents, most_bytes
    self._go_to(0)

  def _go_to(self, index: int) -> None:
    self._index, self._reader = index, _Reader(self._documents, index, self._most_bytes)

  def __next__(self) -> Batch:
    element = self._reader.next()
    self._index += 1
    return element

  def start_prefetch(self) -> None:
    self._reader.begin()

  def get_state(self) -> dict[str, Any]:
    return {"next_index": self._index}

  def set_state(self, state: dict[str, Any]) -> None:
    self._reader.close()
    self._go_to(state["next_index"])

  def close(self) -> None:
    super().close()
    self._reader.close()


class _Reader:
  """Reads documents from index `first` on, once each; waiting documents have at most about `most_bytes`."""

  def __init__(self, documents: grain.MapDataset[Batch], first: int, most_bytes: int):
    self._documents, self._most_bytes = documents, most_bytes
    self._following, self._reading, self._held = first, 0, 0  # the next document to begin; documents; bytes
    self._waiting: collections.deque[Future[Batch]] = collections.deque()
    self._lock, self._end = threading.RLock(), len(documents)
    self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read-ahead")

  def next(self) -> Batch:
    self.begin()
    if not self._waiting:
      raise StopIteration
    element = self._waiting.popleft().result()
    with self._lock:
      self._held -= _size(element)
    self.begin()
    return element

  def begin(self) -> None:
    """Starts reading as many documents as the limits allow, and at least one if none is waiting."""
    with self._lock:
      while self._following < self._end and (not self._waiting or self._may_begin()):
        self._reading += 1
        self._waiting.append(self._pool.submit(self._documents.__getitem__, self._following))
        self._following += 1
        self._waiting[-1].add_done_callback(self._has_read)

  def _may_begin(self) -> bool:
    return self._reading < _THREADS and len(self._waiting) < AHEAD and self._held < self._most_bytes

  def _has_read(self, future: Future[Batch]) -> None:
    with self._lock:
      self._reading -= 1
      if not future.cancelled() and future.exception() is None:
        self._held += _size(future.result())
        self.begin()

  def close(self) -> None:
    with self._lock:
      self._end = 0  # start no more
    self._pool.shutdown(wait=False, cancel_futures=True)


def _size(element: Batch) -> int:
  return sum(array.nbytes for array in element.values())
