"""From a corpus to the batches of a run, with grain.

Documents are shuffled anew each epoch, dealt out to the processes, tokenised with EOS appended, concatenated and cut
into rows of context + 1 tokens, without padding: a row may begin and end within a document. Rows are shuffled once
more, so that a long document does not fill a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import grain
import numpy as np
from absl import flags

from drope_jax.config import DataConfig
from drope_jax.data.corpus import documents
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.errors import ConfigError

SHUFFLED_BATCHES = 16  # batches whose rows are shuffled together
READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)  # documents; grain's 500 delay the first batch

Batch = dict[str, np.ndarray]


def train_batches(
  config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator[Batch]:
  """This process's share of an endless stream of batches.

  The stream is a function of the arguments alone: `num_workers` changes its speed, not its content. Its position is
  saved and restored by `get_state` and `set_state` (plain data, through JSON too) or by `grain.checkpoint`. A stream
  that several processes began goes on in another number of them: see `_Batches`. With workers, `close` the iterator
  when done.

  Args:
    config: `batch_size` rows are shared equally by the processes.
    seed: of the order of documents and rows.
    process_index: which share, from 0.
    process_count: the number of shares.

  Returns:
    An iterator of dicts of int32 (batch_size / process_count, context + 1): `tokens` and, with `document_mask`,
    `segments` (from 1, numbering the documents of a row) and `positions` (from 0 at the start of a document or row).

  Raises:
    ConfigError: if the dataset, its split or the tokenizer is missing or empty, the split is shorter than one row, or
      `batch_size` is not divisible by `process_count`.
  """
  if config.batch_size % process_count:
    raise ConfigError(
      f"DataConfig.batch_size is {config.batch_size}; it must be divisible by the number of processes ({process_count})"
    )
  texts = documents(config.directory, config.split)
  tokenizer = load_tokenizer(config.tokenizer)
  _check_fills_a_row(texts, tokenizer, config)

  def open_share(index: int, count: int) -> grain.DatasetIterator[Batch]:
    rows = config.batch_size // count
    # Every share shuffles the whole corpus alike and then takes its documents; all that keeps state comes after.
    dealt = grain.MapDataset.source(texts).seed(seed).shuffle().repeat()[index::count]
    packed = _Rows(dealt.map(Tokenize(tokenizer)), config.context + 1, config.num_workers)
    shuffled = grain.experimental.WindowShuffleIterDataset(packed, window_size=SHUFFLED_BATCHES * rows, seed=seed)
    batches = shuffled.batch(rows, drop_remainder=True)
    return iter(batches if config.document_mask else batches.map(_tokens_only))

  return _Batches(open_share, config.batch_size, process_index, process_count)


class _Batches(grain.DatasetIterator[Batch]):
  """One process's rows of every batch, from the shares that they lie in.

  A batch is its shares one behind the other, and there are as many as there were processes when the stream began: so
  the stream stays the same when it goes on in fewer processes, which read several shares each, or in more, which read
  one together and take their rows of it. The state holds those shares that this process reads; `set_state` takes those
  of all processes, joined by `join_states`.
  """

  def __init__(
    self, open_share: Callable[[int, int], grain.DatasetIterator[Batch]], batch_size: int, index: int, count: int
  ):
    super().__init__()
    self._open_share, self._batch_size = open_share, batch_size
    self._first, self._last = batch_size * index // count, batch_size * (index + 1) // count  # rows of this process
    self._shares: dict[int, grain.DatasetIterator[Batch]] = {}
    self._go_to(count)

  def _go_to(self, count: int) -> None:
    self.close()
    rows = self._batch_size // count
    self._count, self._skipped = count, self._first % rows  # rows of the first share that are another process's
    needed = range(self._first // rows, -(-self._last // rows))
    self._shares = {index: self._open_share(index, count) for index in needed}

  def __next__(self) -> Batch:
    parts = [next(share) for share in self._shares.values()]
    mine = slice(self._skipped, self._skipped + self._last - self._first)
    return {name: np.concatenate([part[name] for part in parts])[mine] for name in parts[0]}

  def get_state(self) -> dict[str, Any]:
    return {"shares": self._count, "states": {str(index): share.get_state() for index, share in self._shares.items()}}

  def set_state(self, state: dict[str, Any]) -> None:
    self._go_to(state["shares"])
    for index, share in self._shares.items():
      share.set_state(state["states"][str(index)])

  def start_prefetch(self) -> None:
    for share in self._shares.values():
      share.start_prefetch()

  def close(self) -> None:
    for share in self._shares.values():
      share.close()


def join_states(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """The state of a whole stream from those of its processes. Raises ValueError if one is missing."""
  states = list(states)
  shares = states[0]["shares"]
  found: dict[str, Any] = {}
  for state in states:
    found |= state["states"]
  if {state["shares"] for state in states} != {shares} or len(found) != shares:
    raise ValueError(f"of {shares} shares of the data there are the positions of {sorted(found)}")
  return {"shares": shares, "states": found}


def evaluation_documents(
  source: Iterable[str], tokenizer: Tokenizer, minimum_tokens: int, limit: int
) -> list[np.ndarray]:
  """The first `limit` documents of at least `minimum_tokens` tokens, each whole and by itself: int32, without EOS.

  Raises:
    ConfigError: if there is none.
  """
  long_enough: list[np.ndarray] = []
  for text in source:
    if len(long_enough) == limit:
      break
    ids = tokenizer.encode(text)
    if len(ids) >= minimum_tokens:
      long_enough.append(np.asarray(ids, np.int32))
  if not long_enough:
    raise ConfigError(f"no document has {minimum_tokens} tokens or more; evaluate at a shorter length")
  return long_enough


@dataclasses.dataclass(frozen=True)
class Tokenize:
  """A document's ids with EOS behind them."""

  tokenizer: Tokenizer

  def __call__(self, text: str) -> Batch:
    return {"tokens": np.asarray([*self.tokenizer.encode(text), self.tokenizer.eos_id], np.int32)}


def _check_fills_a_row(texts: Iterable[str], tokenizer: Tokenizer, config: DataConfig) -> None:
  tokens = 0
  for text in texts:
    tokens += len(tokenizer.encode(text)) + 1
    if tokens > config.context:
      return
  raise ConfigError(
    f"{config.directory}: the split {config.split!r} has {tokens} tokens, "
    f"fewer than one row (DataConfig.context is {config.context})"
  )


def _tokens_only(batch: Batch) -> Batch:
  return {"tokens": batch["tokens"]}


class _Rows(grain.IterDataset[Batch]):
  """Rows of `length` tokens cut from the concatenation of `token_documents`, which do not end.

  grain's own ConcatThenSplitIterDataset (0.2.18) is not used, since its state ties a run to its number of workers, and
  loses a document when it went through JSON at a moment when no document was cut.
  """

  def __init__(self, token_documents: grain.MapDataset[Batch], length: int, num_workers: int):
    super().__init__()
    self._arguments = token_documents, length, num_workers

  def __iter__(self) -> grain.DatasetIterator[Batch]:
    return _RowIterator(*self._arguments)


class _RowIterator(grain.DatasetIterator[Batch]):
  """Its position is a document's index in the stream, and an offset into that document."""

  def __init__(self, token_documents: grain.MapDataset[Batch], length: int, num_workers: int):
    super().__init__()
    self._token_documents = token_documents
    self._length = length
    self._num_workers = num_workers
    self._go_to(document=0, offset=0)

  def _go_to(self, document: int, offset: int) -> None:
    stream = self._token_documents[document:].to_iter_dataset(READ_AHEAD)
    if self._num_workers:
      if not flags.FLAGS.is_parsed():  # grain reads an absl flag, which fails outside of absl programs
        flags.FLAGS.mark_as_parsed()
      stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
    self._stream = iter(stream)
    self._document = document
    self._offset = offset
    self._tokens: np.ndarray | None = None  # of the document, once it is needed

  def __next__(self) -> Batch:
    row = {name: np.empty(self._length, np.int32) for name in ("tokens", "segments", "positions")}
    begin = segment = 0
    while begin < self._length:
      if self._tokens is None:
        self._tokens = next(self._stream)["tokens"]
      piece = self._tokens[self._offset : self._offset + self._length - begin]
      segment += 1
      end = begin + len(piece)
      row["tokens"][begin:end] = piece
      row["segments"][begin:end] = segment
      row["positions"][begin:end] = np.arange(len(piece))
      begin = end
      self._offset += len(piece)
      if self._offset == len(self._tokens):
        self._document, self._offset, self._tokens = self._document + 1, 0, None
    return row

  def get_state(self) -> dict[str, Any]:
    return {"document": self._document, "offset": self._offset}

  def set_state(self, state: dict[str, Any]) -> None:
    self._stream.close()
    self._go_to(**state)

  def start_prefetch(self) -> None:
    self._stream.start_prefetch()

  def close(self) -> None:
    super().close()
    self._stream.close()
