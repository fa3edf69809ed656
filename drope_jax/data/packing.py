"""Packs documents into rows of tokens without padding; several documents are read in turns."""

import collections
import dataclasses
from typing import Any

import grain
import numpy as np

from drope_jax.data.read_ahead import Batch, ReadAhead
from drope_jax.data.sources import Documents
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.data.workers import WorkerStream
from drope_jax.errors import DataError

HELD_TOKENS = 1 << 25  # tokens of the open documents above which no further document is opened


@dataclasses.dataclass(frozen=True)
class Tokenize:
  """The ids of the document at a place, followed by EOS; empty for a document that is skipped.

  Raises DataError if the document is bad text, or an id is not in the vocabulary.
  """

  documents: Documents
  tokenizer: Tokenizer
  bos: bool = False
  min_tokens: int = 0
  max_tokens: int | None = None

  def __call__(self, place: Any) -> Batch:
    return {"tokens": self.tokens(self.documents.at(place), place)}

  def tokens(self, document: Any, place: Any = None) -> np.ndarray:
    """The ids of a document that was already read: int32 (length,)."""
    if document is None:
      return np.empty(0, np.int32)
    if isinstance(document, np.ndarray):
      ids = document
      if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.tokenizer.vocab_size:
        raise DataError(
          f"{self.documents.where(place)}: holds the ids {ids.min()} to {ids.max()}; the tokenizer has "
          f"{self.tokenizer.vocab_size}; name the tokenizer that the tokens were made with"
        )
    else:
      ids = np.asarray(self.tokenizer.encode(document), np.int32)
    if len(ids) < self.min_tokens or (self.max_tokens is not None and len(ids) > self.max_tokens):
      return np.empty(0, np.int32)
    begin = [self.tokenizer.bos_id] if self.bos else []
    return np.concatenate([begin, ids, [self.tokenizer.eos_id]]).astype(np.int32)


class Rows(grain.IterDataset[Batch]):
  """Rows of `length` tokens cut from the endless stream `token_documents`, with `side_by_side` documents in turns.

  A row is cut from one document; if that ends, the row continues with the next document of the stream. With
  `side_by_side` 1, rows are cut from the concatenation of all documents.

  grain's own ConcatThenSplitIterDataset (0.2.18) is not used, since its state ties a run to its number of workers, and
  loses a document if it is saved through JSON while no document is partly read.
  """

  def __init__(self, token_documents: grain.MapDataset[Batch], length: int, side_by_side: int, num_workers: int):
    super().__init__()
    self._arguments = token_documents, length, side_by_side, num_workers

  def __iter__(self) -> grain.DatasetIterator[Batch]:
    return _RowIterator(*self._arguments)


@dataclasses.dataclass
class _Open:
  """A document that rows are being cut from."""

  document: int  # in the stream
  offset: int  # of the next token
  length: int
  tokens: np.ndarray | None = None  # None: not read again since the position was restored


class _RowIterator(grain.DatasetIterator[Batch]):
  """Its state: which documents are open, how far each has been read, and which document of the stream is next."""

  def __init__(self, token_documents: grain.MapDataset[Batch], length: int, side_by_side: int, num_workers: int):
    super().__init__()
    self._token_documents = token_documents
    self._length, self._side_by_side, self._num_workers = length, side_by_side, num_workers
    self._go_to(0, [])

  def _go_to(self, following: int, opened: list[list[int]]) -> None:
    self._stream = WorkerStream(ReadAhead(self._token_documents[following:]), self._num_workers)
    self._following = following
    self._opened = collections.deque(_Open(document, offset, length) for document, offset, length in opened)
    self._held = sum(one.length - one.offset for one in self._opened)

  def _next_document(self) -> _Open:
    """The next document of the stream that is not skipped."""
    while True:
      tokens = next(self._stream)["tokens"]
      self._following += 1
      if len(tokens):
        self._held += len(tokens)
        return _Open(self._following - 1, 0, len(tokens), tokens)

  def __next__(self) -> Batch:
    row = {name: np.empty(self._length, np.int32) for name in ("tokens", "segments", "positions")}
    another = len(self._opened) < self._side_by_side and self._held < HELD_TOKENS
    one = self._next_document() if another or not self._opened else self._opened.popleft()
    begin = segment = 0
    while begin < self._length:
      if one.offset == one.length:
        one = self._next_document()
      if one.tokens is None:
        one.tokens = self._token_documents[one.document]["tokens"]
      piece = one.tokens[one.offset : one.offset + self._length - begin]
      segment += 1
      end = begin + len(piece)
      row["tokens"][begin:end] = piece
      row["segments"][begin:end] = segment
      row["positions"][begin:end] = np.arange(len(piece))
      begin = end
      one.offset += len(piece)
      self._held -= len(piece)
    if one.offset < one.length:
      self._opened.append(one)
    return row

  def get_state(self) -> dict[str, Any]:
    opened = [[one.document, one.offset, one.length] for one in self._opened]
    return {"following": self._following, "opened": opened}

  def set_state(self, state: dict[str, Any]) -> None:
    self._stream.close()
    if "following" in state:
      self._go_to(state["following"], state["opened"])
      return
    # Until 0.1: one document, and its offset.
    document, offset = state["document"], state["offset"]
    if offset:
      self._go_to(document + 1, [[document, offset, len(self._token_documents[document]["tokens"])]])
    else:
      self._go_to(document, [])

  def start_prefetch(self) -> None:
    self._stream.start_prefetch()

  def close(self) -> None:
    super().close()
    self._stream.close()
