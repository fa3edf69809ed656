"""Needle retrieval: can a model answer from a fact somewhere in its context?

A sample is a prompt that ends with a question, the tokens of the answer, and the depth of the fact (see
`drope_jax.data.recall.needle_sample`). An answer is right if greedy generation begins with exactly its tokens. The
prompt alone has the length that is measured; a BOS and the answer come on top.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from drope_jax.data.recall import Lines, NeedleSample, needle_sample
from drope_jax.evaluate.answers import continuations
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import ACCURACY, DEPTH_BINS, Figure, figures_by_depth, mean_figure
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task


def retrieve(subject: Subject, samples: Sequence[NeedleSample]) -> np.ndarray:
  """Which samples are answered exactly: bool, in the order of `samples`.

  A cropped model sees the last tokens of a prompt that leave room for the answer within its window.

  Raises:
    ValueError: if there is no sample, or a crop has no room for an answer.
  """
  if not samples:
    raise ValueError("samples is empty; there is nothing to measure")
  prompts = [subject.how.seen(subject.begin(sample.tokens), len(sample.answer)) for sample in samples]
  # EOS does not stop generation, because only the first tokens of an answer are compared.
  rows = continuations(subject, prompts, max(len(sample.answer) for sample in samples), eos_ids=None)
  return np.array([tuple(row[: len(one.answer)]) == one.answer for row, one in zip(rows, samples, strict=True)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(Task):
  """The task: facts among the fillers of `lines`, one of which is queried."""

  lines: Lines
  depths: tuple[float, ...] = DEPTH_BINS
  per_depth: int = 40  # samples
  facts: int = 4
  seed: int = 0
  name = "needles"
  about: ClassVar[str] = (
    "A fact (“color -> teal”) lies somewhere in a long text, as do facts of other topics, and is asked for at the end "
    "(“color ->”). Which values a topic can have, eight of them, is learnt in training; which one it has here must be "
    "found: a guess is right 12.5 % of the time. Accuracy is the share answered exactly, over all depths: a depth of 0 "
    "is the start of the text. n counts prompts."
  )

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    return cls(lines=data.lines, per_depth=data.needles_per_depth, seed=data.seed)

  def settings(self, length: int) -> dict[str, Any]:
    where = {"per_depth": self.per_depth, "depths": list(self.depths), "facts": self.facts}
    return {**where, "text": self.lines.fingerprint}

  def check(self, length: int, crop: int | None) -> None:
    self.samples(length)  # all of them, since facts differ in length

  def samples(self, length: int) -> list[NeedleSample]:
    return _needle_samples(self.lines, length, self.depths, self.per_depth, self.seed, self.facts)

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    samples = self.samples(length)
    correct_N = retrieve(subject, samples)
    return [mean_figure(ACCURACY, correct_N), *accuracy_by_depth(samples, correct_N, self.depths)]


@functools.lru_cache(maxsize=8)  # every method is asked the same, at each of a few lengths
def _needle_samples(
  lines: Lines, length: int, depths: tuple[float, ...], per_depth: int, seed: int, facts: int
) -> list[NeedleSample]:
  return [needle_sample(lines, length, depth, seed, index, facts) for depth in depths for index in range(per_depth)]


def accuracy_by_depth(samples: Sequence[NeedleSample], correct_N: np.ndarray, depths: Sequence[float]) -> list[Figure]:
  """Accuracy at each of `depths` that has samples; a sample is assigned to the nearest one."""
  return figures_by_depth(ACCURACY, [sample.depth for sample in samples], correct_N, depths)
