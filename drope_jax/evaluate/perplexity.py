"""Loss by position on long documents.

Position i of a document is the prediction of token i + 1 from tokens 0 .. i, so a model trained at context C has learnt
the positions 0 .. C-1. Each row is one long text; documents are concatenated only where that is asked for
(catalog.EvalData). A BOS, if there is to be one, is token 0, and never predicted. Losses are in nats per token;
perplexity is exp of a mean loss.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.results import BITS_PER_BYTE, LOSS, loss_between
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.tasks import BATCH_TOKENS, Figure, Subject, batches, mean_figure
from drope_jax.loss import token_losses
from drope_jax.model import Array, Params, hidden_states, separate_frequencies
from drope_jax.positions import Frequencies
from drope_jax.sharding import divisible


def position_losses(
  params: Params,
  inference: Inference,
  documents: Sequence[Sequence[int] | np.ndarray],
  *,
  length: int,
  window: int | None = None,
  batch_size: int = 8,
  compute: ComputeConfig | None = None,
  progress: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
  """The loss at every position of every document: `nll_NT`, float32 of shape (documents, length), in nats.

  Its mean is the loss at that length; rows are independent samples, for intervals. Memory on the device is linear in
  `length`: neither logits nor scores of a whole sequence exist.

  With a `window` of W, or `inference.crop` = W, each prediction sees W tokens at most. Windows move by W/2, and each
  position is scored once, by the first window that reaches it: with W/2 tokens of context or more, save at the start.

  Args:
    inference: see methods.inference.
    documents: token ids; the first length + 1 of each are read.
    window: tokens that a prediction sees at most (sliding evaluation); None: all that precede it.
    batch_size: documents on the device at one time; it does not change the result.
    progress: told which share is done.

  Raises:
    ValueError: if there is no document, or one is too short.
  """
  if not documents:
    raise ValueError("documents is empty; there is nothing to measure")
  for i, document in enumerate(documents):
    if len(document) <= length:
      raise ValueError(f"documents[{i}] has {len(document)} tokens; length {length} needs {length + 1}")
  tokens_NS = np.stack([np.asarray(document[: length + 1], np.int32) for document in documents])
  nll_NT = np.empty((len(documents), length), np.float32)
  config, frequencies = separate_frequencies(inference.config)
  windows = _windows(length, min(inference.crop or length, window or length))
  for done, (start, stop, first_scored) in enumerate(windows):
    for batch in range(0, len(documents), batch_size):
      tokens_BS = tokens_NS[batch : batch + batch_size, start : stop + 1]
      # A last batch that is not full is filled up with zeros, so that there is one compiled shape; and on a mesh both
      # dimensions are, so that it divides them.
      rows, width = divisible(batch_size, "batch"), divisible(stop - start, "length")
      filled_BS = np.pad(tokens_BS, [(0, rows - len(tokens_BS)), (0, width - (stop - start))])
      nll_BT = _token_losses(
        params, filled_BS, inference.logit_scale, frequencies, config, compute or ComputeConfig(), stop - start
      )
      scored_BT = nll_BT[: len(tokens_BS), first_scored - start : stop - start]
      nll_NT[batch : batch + batch_size, first_scored:stop] = scored_BT
      progress((done + min((batch + batch_size) / len(documents), 1.0)) / len(windows))
  return nll_NT


def documents_at_once(inference: Inference, num_documents: int, length: int, tokens: int = BATCH_TOKENS) -> int:
  """Documents at one time for `position_losses` with windows of `length` tokens: see tasks.batches."""
  return batches([min(length, inference.crop or length)] * num_documents, tokens)[0].rows


def trace_losses(
  params: Params, inference: Inference, rows: int, length: int, compute: ComputeConfig
) -> jax.stages.Traced:
  """The program that `position_losses` runs on `rows` documents at a time, of abstract `params` (drope_jax.aot)."""
  tokens_BS = jax.ShapeDtypeStruct((rows, length + 1), np.int32)
  config, frequencies = separate_frequencies(inference.config)
  return _token_losses.trace(params, tokens_BS, inference.logit_scale, frequencies, config, compute, length)


def blocks(length: int, size: int) -> list[tuple[int, int]]:
  """(start, stop) of blocks of `size` positions that make up `length`; the last one may be shorter."""
  return [(start, min(start + size, length)) for start in range(0, length, size)]


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """Loss on long documents up to a length, by position, and in bits per byte of their text.

  Args:
    documents: token ids, each longer than the longest length.
    tokenizer: counts the bytes.
    span: None: the first `length` tokens of each document are predicted. A number: so many are, whatever the length,
      and the length is that of the window which slides over them (task "sliding_perplexity").
    block: positions of a block of the loss by position; None: half the training context.
    concatenated: whether `documents` are pieces of many texts; it is noted, and changes nothing here.
  """

  documents: Sequence[np.ndarray]
  tokenizer: Tokenizer
  span: int | None = None
  block: int | None = None
  concatenated: bool = False
  bounded: ClassVar[bool] = True

  @property
  def name(self) -> str:
    return "perplexity" if self.span is None else "sliding_perplexity"

  def settings(self, length: int) -> dict[str, Any]:
    read = [document[: (self.span or length) + 1] for document in self.documents]
    how = {"span": self.span, "block": self.block, "concatenated": self.concatenated}
    return {"documents": len(read), "text": fingerprint(read), **how}

  def check(self, length: int, crop: int | None) -> None:
    shortest = min(map(len, self.documents))
    needed = length if self.span is None else self.span
    if shortest <= needed:
      raise ConfigError(f"{self.name}: a document has {shortest} tokens; {needed + 1} are needed")
    if self.span is not None and length > self.span:
      raise ConfigError(f"{self.name}: a window of {length} tokens is longer than the {self.span} that are predicted")

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    predicted = self.span or length
    documents = [subject.begin(document) for document in self.documents]
    nll_NT = position_losses(
      subject.params,
      subject.how,
      documents,
      length=predicted,
      window=length,
      batch_size=documents_at_once(subject.how, len(documents), length, subject.batch_tokens),
      compute=subject.compute,
      progress=subject.progress,
    )
    means_N = nll_NT.mean(axis=1, dtype=np.float64)
    bytes_N = np.array([text_bytes(self.tokenizer, document[: predicted + 1]) for document in documents])
    figures = [
      mean_figure(LOSS, means_N, n=nll_NT.size),
      mean_figure(BITS_PER_BYTE, means_N * predicted / bytes_N / math.log(2), weights_N=bytes_N, n=int(bytes_N.sum())),
    ]
    if self.span is not None:
      return figures
    for start, stop in blocks(length, self.block or max(subject.train_context // 2, 1)):
      rows_N = nll_NT[:, start:stop].mean(axis=1, dtype=np.float64)
      figures.append(mean_figure(loss_between(start, stop), rows_N, n=len(rows_N) * (stop - start)))
    return figures


def concatenated(texts: Iterable[str], tokenizer: Tokenizer, size: int, limit: int) -> list[np.ndarray]:
  """Texts one after another, EOS behind each, cut into rows of `size` tokens: int32, the first `limit` of them.

  Raises:
    ConfigError: if all the texts together are shorter than a row.
  """
  rows: list[np.ndarray] = []
  tokens: list[int] = []
  for text in texts:
    tokens += [*tokenizer.encode(text), tokenizer.eos_id]
    while len(tokens) >= size and len(rows) < limit:
      rows.append(np.asarray(tokens[:size], np.int32))
      del tokens[:size]
    if len(rows) == limit:
      break
  if not rows:
    raise ConfigError(
      f"all documents together have {len(tokens)} tokens; {size} are needed: evaluate at a shorter length"
    )
  return rows


def text_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
  """Bytes of UTF-8 that the tokens after the first spell, which are those that are predicted."""
  whole, first = (len(tokenizer.decode(part.tolist()).encode()) for part in (tokens, tokens[:1]))
  return max(whole - first, 1)


def _windows(length: int, width: int) -> list[tuple[int, int, int]]:
  """(start, stop, first scored position) of windows of `width` positions that cover 0 .. length-1."""
  stops = [min(width, length)]
  while stops[-1] < length:
    stops.append(min(stops[-1] + max(width // 2, 1), length))
  return [(max(stop - width, 0), stop, scored) for scored, stop in zip([0, *stops[:-1]], stops, strict=True)]


@functools.partial(jax.jit, static_argnames=("config", "compute", "length"))
def _token_losses(
  params: Params,
  tokens_BS: Array,
  logit_scale: float | Array,
  frequencies: Frequencies | None,
  config: ModelConfig,
  compute: ComputeConfig,
  length: int,
) -> Array:
  """Losses (B, T) of sequences of `length` tokens, which is T unless they are padded."""
  x_BTD, *_ = hidden_states(
    params,
    config,
    tokens_BS[:, :-1],
    compute=compute,
    length=length,
    logit_scale=logit_scale,
    frequencies=frequencies,
  )
  return token_losses(params, x_BTD, tokens_BS[:, 1:], compute.loss_chunk).nll_BT
