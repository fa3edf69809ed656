"""A source without its bad documents, for data too large to repair."""

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

from drope_jax.data.sources.source import BadDocument, Document, Documents, Source

_NAMED = 5  # bad documents that get a warning each; later ones get one whenever their number doubles

logger = logging.getLogger(__name__)


@dataclasses.dataclass(unsafe_hash=True)
class SkipBad(Source):
  """The documents of `source` that are text; the others are counted, and the first few are named in warnings.

  Without this source a run ends at a bad document. Errors of a whole file (a missing or truncated shard, a missing
  column) still end it.
  """

  source: Source  # its bad documents are skipped

  def part(self, name: str) -> Source:
    return dataclasses.replace(self, source=self.source.part(name))

  def open(self) -> Sequence[Any]:
    return _WithoutBad(self.source.documents())


class _WithoutBad(Documents):
  raw: Documents

  def __init__(self, documents: Documents):
    super().__init__(documents, documents.name)
    self._start()

  def _start(self) -> None:
    self._left_out, self._lock = 0, threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name != "_lock"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start()

  def at(self, place: Any) -> Document | None:
    try:
      return self.raw.at(place)
    except BadDocument as error:
      with self._lock:
        self._left_out += 1
        count = self._left_out
      if count <= _NAMED or count & (count - 1) == 0:
        logger.warning("left out (number %d): %s", count, error)
      return None

  @property
  def left_out(self) -> int:
    return self._left_out + super().left_out
