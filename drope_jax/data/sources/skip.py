"""Bad documents left out, for those who have more text than they can mend."""

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

import grain

from drope_jax.data.sources.source import BadDocument, Document, Documents, Source

_NAMED = 5  # bad documents that have a warning each; later ones have one when their number doubles

logger = logging.getLogger(__name__)


@dataclasses.dataclass(unsafe_hash=True)
class SkipBad(Source):
  """The documents of `source` that are text; the others are counted, and the first of them are named in a warning.

  By default a run ends at a bad document. What concerns a file (a shard that is missing or cut off, a column that is
  not there) still ends it.
  """

  source: Source  # whose documents are checked

  def part(self, name: str) -> Source:
    return dataclasses.replace(self, source=self.source.part(name))

  def open(self) -> Sequence[Any]:
    return _WithoutBad(self.source.documents())


class _WithoutBad(Documents):
  """Places are those of all documents."""

  def __init__(self, documents: Documents):
    super().__init__(documents.raw, documents.name)
    self._documents = documents
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
      return self._documents.at(place)
    except BadDocument as error:
      with self._lock:
        self._left_out += 1
        count = self._left_out
      if count <= _NAMED or count & (count - 1) == 0:
        logger.warning("left out (number %d): %s", count, error)
      return None

  def where(self, place: Any) -> str:
    return self._documents.where(place)

  @property
  def sizes(self) -> Sequence[int]:
    return self._documents.sizes

  @property
  def left_out(self) -> int:
    return self._left_out + self._documents.left_out

  @property
  def tokenizer(self) -> str | None:
    return self._documents.tokenizer

  @property
  def damaged(self) -> list[str]:
    return self._documents.damaged

  def order(self, seed: int) -> grain.MapDataset[Any]:
    return self._documents.order(seed)
