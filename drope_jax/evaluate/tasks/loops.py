"""Degenerate repetition: how many long greedy answers end in a loop.

A prompt is a piece of a held-out document, and the answer fills up the measured length. Models without positional
embedding have been seen to loop more often than others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from drope_jax.evaluate.answers import continuations
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import Figure, mean_figure
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task, check_room

REPEATS = 4  # a loop is a piece that is repeated at least this many times at the end
LONGEST_PERIOD = 64  # maximum length of that piece in tokens
LEAST = 16  # minimum number of generated tokens; with fewer, a few repeated words would be a loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loops(Task):
  """Greedy continuations of documents: the share that loop, and the share of distinct 4-grams of tokens."""

  documents: Sequence[np.ndarray]  # token ids
  num_samples: int = 100
  name = "loops"
  about: ClassVar[str] = (
    "A document is continued greedily by as many tokens as its beginning has. “looping”: the share of answers that end "
    f"in a piece of at most {LONGEST_PERIOD} tokens said {REPEATS} times or more; “distinct”: the share of different "
    "ones among the answers' sequences of four tokens."
  )

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    return cls(documents=data.documents, num_samples=data.num_samples)

  def settings(self, length: int) -> dict[str, Any]:
    return {"samples": self.num_samples, "text": fingerprint(self.prompts(length))}

  def check(self, length: int, crop: int | None) -> None:
    check_room(self.name, length, crop, max(2 * LEAST, length - length // 2))

  def prompts(self, length: int) -> list[np.ndarray]:
    """Pieces of half the length, taken from all documents in turn; int32."""
    size = length // 2
    pieces = [
      document[start : start + size]
      for start in range(0, max(map(len, self.documents)), size)
      for document in self.documents
      if len(document) >= start + size
    ]
    return pieces[: self.num_samples]

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    prompts = [subject.begin(prompt) for prompt in self.prompts(length)]
    new_tokens = length - max(map(len, prompts))
    seen = [subject.how.seen(prompt, new_tokens) for prompt in prompts]
    rows = continuations(subject, seen, new_tokens, eos_ids=None)
    looping_N = np.array([loop_period(row) is not None for row in rows])
    return [
      mean_figure("looping", looping_N, lower_is_better=True),
      mean_figure("distinct", np.array([distinct(row) for row in rows])),
    ]


def loop_period(tokens: Sequence[int]) -> int | None:
  """The length of the shortest piece that is repeated REPEATS times at the end; None if there is none."""
  row = np.asarray(tokens)
  for period in range(1, min(LONGEST_PERIOD, len(row) // REPEATS) + 1):
    end = row[len(row) - REPEATS * period :]
    if (end[period:] == end[:-period]).all():
      return period
  return None


def distinct(tokens: Sequence[int], size: int = 4) -> float:
  """The share of distinct n-grams of `size` tokens; 1 if the row is shorter than that."""
  found = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
  return len(set(found)) / len(found) if found else 1.0
