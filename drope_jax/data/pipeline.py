"""From documents to the batches of a run, with grain.

Documents are reshuffled each epoch, distributed over the processes, tokenised with EOS appended, and cut into rows of
context + 1 tokens without padding, so a row may begin and end within a document. Several documents are read in turns,
and rows are shuffled again, so that a long document does not fill a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import grain
import numpy as np

from drope_jax.config import DataConfig
from drope_jax.data.identity import Content, digest
from drope_jax.data.packing import Rows, Tokenize
from drope_jax.data.read_ahead import AHEAD_BYTES, Batch
from drope_jax.data.sources import Documents
from drope_jax.data.splits import left_out, part_of
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.data.windows import WindowBatches
from drope_jax.errors import ConfigError

# With few documents, 1 % of them may be none.
NOTHING_HELD_OUT = "the split has no documents; name some as --data=PATH,heldout=OTHER (and fit=OTHER to fit on)"
INTERLEAVED = 64  # documents that are read in turns, over all processes
_SIZED = 64  # documents from whose lengths the size of the data is estimated
SHUFFLED_BATCHES = 16  # batches whose rows are shuffled together


def train_batches(
  config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> "Batches | WindowBatches":
  """This process's share of an endless stream of batches.

  The stream only depends on the arguments; `num_workers` changes its speed, not its content. Its position is saved and
  restored by `get_state` and `set_state` (as JSON data) or by `grain.checkpoint`. A stream can be continued by another
  number of processes: see `Batches`. With workers, `close` the iterator when done.

  Args:
    config: `batch_size` rows are divided equally among the processes.
    seed: of the order of documents and rows, if `config.seed` is None.
    process_index: which share, from 0.
    process_count: the number of shares.

  Returns:
    An iterator of dicts of int32 (batch_size / process_count, context + 1): `tokens` and, with `document_mask`,
    `segments` (from 1, numbering the documents of a row) and `positions` (from 0 at the start of a document or row).

  Raises:
    ConfigError: if the dataset, its split or the tokenizer is missing or empty, the split is shorter than one row,
      `batch_size` is not divisible by `process_count`, or the tokens of shards are another tokenizer's.
    DataError: naming a file that cannot be read; also from the iterator, for a document that is not text.
  """
  if config.batch_size % process_count:
    raise ConfigError(
      f"DataConfig.batch_size is {config.batch_size}; it must be divisible by the number of processes ({process_count})"
    )
  documents = open_documents(config)
  tokenizer = load_tokenizer(config.tokenizer)
  tokenize = _tokenize(documents, tokenizer, config)
  seed = seed if config.seed is None else config.seed
  if config.packing == "windows":
    return WindowBatches(documents, tokenizer, config, seed, process_index, process_count)
  content = Content(documents, tokenizer, warns=process_index == 0)
  _check_fills_a_row(tokenize, config)
  side_by_side = config.interleave or INTERLEAVED

  def open_share(index: int, count: int) -> grain.DatasetIterator[Batch]:
    rows = config.batch_size // count
    # Every share shuffles all documents in the same way and takes every count-th; everything with state comes later.
    dealt = documents.order(seed)[index::count].map(tokenize)
    packed = Rows(dealt, config.context + 1, max(1, side_by_side // count), config.num_workers)
    shuffled = grain.experimental.WindowShuffleIterDataset(packed, window_size=SHUFFLED_BATCHES * rows, seed=seed)
    batches = shuffled.batch(rows, drop_remainder=True)
    if not config.document_mask:
      batches = batches.map(_tokens_only)
    # A shuffle window is read as a whole for its first batch; batches of the previous window are prefetched to bridge
    # it.
    row_bytes = 4 * (config.context + 1) * (3 if config.document_mask else 1)
    ahead = max(1, min(SHUFFLED_BATCHES, AHEAD_BYTES // (rows * row_bytes)))
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=ahead))

  return Batches(open_share, config.batch_size, process_index, process_count, content)


def open_documents(config: DataConfig) -> Documents:
  """The documents that a run reads; raises as `train_batches` does."""
  check_named(config)
  if config.source is not None:
    return config.source.documents()
  return part_of(config.directory, config.split).documents()


def check_named(config: DataConfig) -> None:
  """Raises ConfigError if the config does not say where the documents are."""
  if config.source is None and not config.directory:
    raise ConfigError("DataConfig names no data: give directory (in commands, --data=PATH) or source")


def estimated_size(config: DataConfig, tokenizer: Tokenizer) -> tuple[int, float]:
  """The number of documents in an epoch, and of their tokens; estimated from _SIZED documents if there are more."""
  documents = open_documents(config)
  tokenize = _tokenize(documents, tokenizer, config)
  lengths = [len(tokenize(place)["tokens"]) for place in range(0, len(documents), max(len(documents) // _SIZED, 1))]
  share = len(documents) / len(lengths)
  return round(share * sum(length > 0 for length in lengths)), max(share * sum(lengths), 1.0)


def settled(
  config: DataConfig, seed: int, before: DataConfig | None = None, recorded: DataConfig | None = None
) -> DataConfig:
  """The config with `interleave` and `seed` filled in, as a run records them when it starts.

  A resumed run keeps the recorded values. A run that starts from another run's weights (a recalibration) gets a higher
  seed than that run, so that it does not read the same documents in the same order again.

  Args:
    config: of the run.
    seed: TrainConfig.seed.
    before: the recorded config of the run that the weights come from.
    recorded: the recorded config of this run, if it is resumed.

  Raises:
    ConfigError: `interleave` is set for windows, which are not cut from documents side by side.
  """
  if config.packing == "windows":
    there = None if recorded is None else recorded.interleave  # until 0.1 it was recorded for windows too
    if config.interleave not in (None, there):
      raise ConfigError(
        f"DataConfig.interleave is {config.interleave} and packing 'windows', which reads no documents side by side: "
        "leave interleave out, or set packing to 'interleave'"
      )
    side_by_side = there
  else:
    side_by_side = (None if recorded is None else recorded.interleave) or INTERLEAVED
  found = {"interleave": side_by_side, "seed": seed}
  if recorded is not None:
    found["seed"] = seed if recorded.seed is None else recorded.seed
  elif before is not None and before.seed is not None:
    found["seed"] = max(seed, before.seed + 1)
  return dataclasses.replace(
    config,
    interleave=found["interleave"] if config.interleave is None else config.interleave,
    seed=found["seed"] if config.seed is None else config.seed,
  )


def _tokenize(documents: Documents, tokenizer: Tokenizer, config: DataConfig) -> Tokenize:
  """Raises ConfigError if the tokenizer lacks a BOS that is needed, or is not the one of the token shards."""
  if config.bos and tokenizer.bos_id is None:
    raise ConfigError(f"DataConfig.bos is True; the tokenizer {config.tokenizer} has no BOS")
  made_with = documents.tokenizer
  if made_with is not None and made_with != digest(tokenizer):
    raise ConfigError(
      f"DataConfig.tokenizer is {config.tokenizer}, with the digest {digest(tokenizer)}; the tokens of "
      f"{documents.name} were made with {made_with}; name that tokenizer, or tokenise again"
    )
  return Tokenize(documents, tokenizer, config.bos, config.min_tokens, config.max_tokens)


class Batches(grain.DatasetIterator[Batch]):
  """One process's rows of every batch, read from the shares that contain them.

  A batch is the concatenation of its shares, of which there are as many as there were processes when the stream began.
  So the stream stays the same when it is continued by fewer processes, which read several shares each, or by more,
  which read the same share and take different rows. The state holds the shares that this process reads; `set_state`
  takes the states of all processes, joined by `join_states`.
  """

  def __init__(
    self,
    open_share: Callable[[int, int], grain.DatasetIterator[Batch]],
    batch_size: int,
    index: int,
    count: int,
    content: Content,
  ):
    super().__init__()
    self.content = content
    self._open_share, self._batch_size = open_share, batch_size
    self._first, self._last = batch_size * index // count, batch_size * (index + 1) // count  # rows of this process
    self._shares: dict[int, grain.DatasetIterator[Batch]] = {}
    self._go_to(count)

  def _go_to(self, count: int) -> None:
    self.close()
    rows = self._batch_size // count
    self._count, self._skipped = count, self._first % rows  # rows of the first share that belong to another process
    needed = range(self._first // rows, -(-self._last // rows))
    self._shares = {index: self._open_share(index, count) for index in needed}

  def __next__(self) -> Batch:
    parts = [next(share) for share in self._shares.values()]
    mine = slice(self._skipped, self._skipped + self._last - self._first)
    return {name: np.concatenate([part[name] for part in parts])[mine] for name in parts[0]}

  def get_state(self) -> dict[str, Any]:
    states = {str(index): share.get_state() for index, share in self._shares.items()}
    return {"shares": self._count, "states": states, "content": self.content.state}

  def set_state(self, state: dict[str, Any]) -> None:
    self.content.check(state.get("content"))
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
  """Joins the states of all processes to that of the whole stream. Raises ValueError if one is missing."""
  states = list(states)
  if "next_batch" in states[0]:  # of windows.py: the same on all hosts
    if len({state["next_batch"] for state in states}) != 1:
      raise ValueError(f"the processes are at different batches: {[state['next_batch'] for state in states]}")
    return states[0]
  shares = states[0]["shares"]
  found: dict[str, Any] = {}
  for state in states:
    found |= state["states"]
  if {state["shares"] for state in states} != {shares} or len(found) != shares:
    raise ValueError(f"of {shares} shares of the data there are the positions of {sorted(found)}")
  content = {"content": states[0]["content"]} if "content" in states[0] else {}
  return {"shares": shares, "states": found, **content}


def evaluation_documents(
  source: Iterable[str], tokenizer: Tokenizer, minimum_tokens: int, limit: int
) -> list[np.ndarray]:
  """The first `limit` documents of at least `minimum_tokens` tokens, complete and without EOS: int32.

  Raises:
    ConfigError: if there is none.
  """
  long_enough: list[np.ndarray] = []
  longest = -1
  for text in source:
    if len(long_enough) == limit:
      break
    ids = tokenizer.encode(text)
    longest = max(longest, len(ids))
    if len(ids) >= minimum_tokens:
      long_enough.append(np.asarray(ids, np.int32))
  if longest < 0:
    raise ConfigError(NOTHING_HELD_OUT)
  if not long_enough:
    raise ConfigError(
      f"no document has {minimum_tokens} tokens or more (the longest has {longest}); evaluate at a shorter length, or "
      "name longer documents as --data=PATH,heldout=OTHER"
    )
  return long_enough


def _check_fills_a_row(tokenize: Tokenize, config: DataConfig) -> None:
  """Raises ConfigError unless there are enough tokens for one row."""
  tokens = 0
  for document in tokenize.documents:
    tokens += len(tokenize.tokens(document))
    if tokens > config.context:
      return
  where = f"the split {config.split!r}" if config.source is None else "the source"
  absent = left_out(config.directory, config.split) if config.source is None else ""
  raise ConfigError(
    f"{config.directory or config.source}: {where} has {tokens} tokens, fewer than one row (DataConfig.context is "
    f"{config.context}){absent}"
  )


def _tokens_only(batch: Batch) -> Batch:
  return {"tokens": batch["tokens"]}
