"""Batches cut from flat token shards: the fast path for long runs, whose position in the stream is one integer.

The documents of the run's split form one flat sequence of tokens. Each epoch cuts it into windows of `context` + 1
tokens, which overlap by one, from another starting point, and shuffles them. Batch n consists of `batch_size` windows
from number n * batch_size on in that order, whatever the number of hosts and workers.
"""

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from drope_jax.config import DataConfig
from drope_jax.data.identity import Content
from drope_jax.data.read_ahead import AHEAD_BYTES, Batch
from drope_jax.data.sources import Documents
from drope_jax.data.sources.combined import Part
from drope_jax.data.sources.tokens import TokenShards
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.data.workers import WorkerStream
from drope_jax.errors import ConfigError, DataError

_AHEAD = 16  # batches to prefetch at most


class FlatTokens:
  """The concatenated documents of a run, each followed by EOS, read from token shards: int32.

  Memory: 20 bytes per contiguous run of documents that are not skipped.

  Raises:
    ConfigError: the documents are not token shards.
  """

  def __init__(self, documents: Documents, config: DataConfig, tokenizer: Tokenizer):
    parts: list[Part] = []
    while isinstance(documents.raw, Documents):
      if isinstance(documents, Part):
        parts.append(documents)
      documents = documents.raw
    if not isinstance(documents.raw, TokenShards):
      raise ConfigError(
        f"DataConfig.packing is 'windows', which reads token shards; {documents.name} is none: make some with `python "
        "-m drope_jax.data.tokenize`"
      )
    self._shards, self._vocab_size = documents.raw, tokenizer.vocab_size
    filtered = config.min_tokens > 0 or config.max_tokens is not None
    shards, begins, lengths = [], [], []
    for number, shard in enumerate(self._shards.shards):
      if not shard["documents"]:
        continue
      runs = [(0, shard["tokens"])]
      if parts or filtered:
        ends = self._shards.ends(number)
        wanted = _of_lengths(ends, config)
        if parts:
          keys = self._shards.keys(number)
          wanted &= np.logical_and.reduce([part.mask(keys) for part in parts])
        runs = list(_runs(wanted, ends))
      for begin, end in runs:
        shards.append(number)
        begins.append(begin)
        lengths.append(end - begin)
    self._shard_of, self._begins = np.asarray(shards, np.int32), np.asarray(begins, np.int64)
    self._lasts = np.cumsum(np.asarray(lengths, np.int64))

  def __len__(self) -> int:
    return int(self._lasts[-1]) if len(self._lasts) else 0

  def read(self, begin: int, count: int) -> np.ndarray:
    """`count` tokens from index `begin` on, wrapping around. Raises DataError for an id outside the vocabulary."""
    pieces: list[np.ndarray] = []
    while count:
      begin %= len(self)
      run = int(np.searchsorted(self._lasts, begin, side="right"))
      taken = min(count, int(self._lasts[run]) - begin)
      before = int(self._lasts[run - 1]) if run else 0
      number, place = int(self._shard_of[run]), int(self._begins[run]) + begin - before
      piece = self._shards.tokens(number, place, place + taken)
      if int(piece.max()) >= self._vocab_size:
        raise DataError(
          f"{self._shards.name(number)}: holds the id {piece.max()}; the tokenizer has {self._vocab_size}; name the "
          "tokenizer that the tokens were made with"
        )
      pieces.append(piece)
      begin, count = begin + taken, count - taken
    return np.concatenate(pieces)


def _of_lengths(ends: np.ndarray, config: DataConfig) -> np.ndarray:
  """Which documents satisfy the config's limits on the length, bool."""
  lengths = np.diff(ends, prepend=0) - 1
  return (lengths >= config.min_tokens) & (lengths <= (sys.maxsize if config.max_tokens is None else config.max_tokens))


def _runs(wanted: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
  """The begin and end, in tokens, of each contiguous run of wanted documents."""
  changes = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
  for first, last in zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True):
    yield (int(ends[first - 1]) if first else 0), int(ends[last - 1])


class _Batches(Sequence[Batch]):
  """Rows `first` to `last` (exclusive) of every batch, by the number of the batch."""

  def __init__(self, flat: FlatTokens, config: DataConfig, seed: int, eos_id: int, first: int, last: int):
    self._flat, self._seed, self._eos_id = flat, seed, eos_id
    self._context, self._mask = config.context, config.document_mask
    self._rows, self._size = range(first, last), config.batch_size
    self._windows = (len(flat) - 1) // config.context
    self._order = grain.MapDataset.range(self._windows).seed(seed).shuffle().repeat()

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, number: int) -> Batch:  # type: ignore[override]
    rows = np.stack([self._row(number * self._size + row) for row in self._rows])
    if not self._mask:
      return {"tokens": rows}
    begins = np.concatenate([np.ones((len(rows), 1), bool), rows[:, :-1] == self._eos_id], axis=1)
    place = np.arange(rows.shape[1])
    last_begin = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    segments, positions = np.cumsum(begins, axis=1), place - last_begin
    return {"tokens": rows, "segments": segments.astype(np.int32), "positions": positions.astype(np.int32)}

  def _row(self, index: int) -> np.ndarray:
    shift = _shift(self._seed, index // self._windows, self._context)
    return self._flat.read(int(self._order[index]) * self._context + shift, self._context + 1)


@functools.lru_cache(maxsize=8)
def _shift(seed: int, epoch: int, context: int) -> int:
  """The starting point of the windows of an epoch."""
  return int(np.random.default_rng([seed, epoch]).integers(context))


class WindowBatches(grain.DatasetIterator[Batch]):
  """One host's rows of an endless stream of batches. Its state is the number of the next batch, the same on all hosts.

  Raises:
    ConfigError: see FlatTokens; or there are too few tokens for a window, or BOS is asked for.
  """

  def __init__(self, documents: Documents, tokenizer: Tokenizer, config: DataConfig, seed: int, index: int, count: int):
    super().__init__()
    self._stream: Any = None
    if config.bos:
      raise ConfigError("DataConfig.bos is True; windows of token shards have no BOS: use packing 'interleave'")
    flat = FlatTokens(documents, config, tokenizer)
    if len(flat) <= config.context:
      raise ConfigError(
        f"{documents.name}: has {len(flat)} tokens, fewer than one row (DataConfig.context is {config.context})"
      )
    first, last = config.batch_size * index // count, config.batch_size * (index + 1) // count
    self._batches = _Batches(flat, config, seed, tokenizer.eos_id, first, last)
    self.content, self._num_workers = Content(documents, tokenizer, index == 0), config.num_workers
    arrays = 3 if config.document_mask else 1
    self._ahead = max(1, min(_AHEAD, AHEAD_BYTES // ((last - first) * (config.context + 1) * 4 * arrays)))
    self._go_to(0)

  def _go_to(self, number: int) -> None:
    self._next = number
    options = grain.ReadOptions(num_threads=min(4, self._ahead), prefetch_buffer_size=self._ahead)
    stream = grain.MapDataset.source(self._batches)[number:].to_iter_dataset(options)
    self._stream = WorkerStream(stream, self._num_workers)

  def __next__(self) -> Batch:
    batch = next(self._stream)
    self._next += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    return {"next_batch": self._next, "content": self.content.state}

  def set_state(self, state: dict[str, Any]) -> None:
    self.content.check(state["content"])
    self._stream.close()
    self._go_to(state["next_batch"])

  def start_prefetch(self) -> None:
    self._stream.start_prefetch()

  def close(self) -> None:
    super().close()
    if self._stream is not None:
      self._stream.close()
