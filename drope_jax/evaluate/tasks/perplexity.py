"""Loss on long documents, as a whole and by position, and in bits per byte of their text.

Each row is one long text, unless documents are concatenated (eval_data.EvalData). Perplexity is exp of the mean loss.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import BITS_PER_BYTE, LOSS, Figure, mean_figure
from drope_jax.evaluate.position_losses import documents_at_once, position_losses
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task


@dataclasses.dataclass(frozen=True)
class Perplexity(Task):
  """Loss on long documents up to a length, by position, and in bits per byte of their text.

  Args:
    documents: token ids, each longer than the longest length.
    tokenizer: counts the bytes.
    span: None: the first `length` tokens of each document are predicted. A number: this many tokens are predicted at
      every length, which is then the size of a sliding window (task "sliding_perplexity").
    block: positions per block of the loss by position; None: half the training context.
    concatenated: whether `documents` are made of several texts; it is only recorded.
  """

  documents: Sequence[np.ndarray]
  tokenizer: Tokenizer
  span: int | None = None
  block: int | None = None
  concatenated: bool = False
  about: ClassVar[str] = (
    "Perplexity is the number of tokens among which the model is, in effect, undecided when it predicts the next one: "
    "the exponential of the mean loss over all positions of documents of that length. n counts predicted tokens; the "
    "intervals are over documents."
  )

  @property
  def name(self) -> str:  # type: ignore[override]
    """ "sliding_perplexity" with a span, else "perplexity"."""
    return "perplexity" if self.span is None else "sliding_perplexity"

  @classmethod
  def names(cls) -> tuple[str, ...]:
    return ("perplexity", "sliding_perplexity")

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    how = {"block": data.block} if name == "perplexity" else {"span": data.longest}
    return cls(data.documents, data.tokenizer, **how, concatenated=data.concatenate)

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
      figures.append(mean_figure(LOSS, rows_N, n=len(rows_N) * (stop - start), by="position", at=(start, stop)))
    return figures


def blocks(length: int, size: int) -> list[tuple[int, int]]:
  """(start, stop) of blocks of `size` positions that make up `length`; the last one may be shorter."""
  return [(start, min(start + size, length)) for start in range(0, length, size)]


def text_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
  """The size in bytes of UTF-8 of the predicted tokens, which are all but the first; at least 1."""
  return max(sum(len(tokenizer.piece(token)) for token in tokens[1:].tolist()), 1)
