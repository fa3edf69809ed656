"""Needle retrieval: does a model answer from a fact that lies somewhere in its context?

A sample is a prompt that ends with a question, the tokens that answer it, and the depth at which the fact lies (see
`drope_jax.data.recall.needle_sample`). An answer counts if greedy generation begins with exactly its tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drope_jax.config import ComputeConfig
from drope_jax.data.recall import Lines, NeedleSample, needle_sample
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.results import ACCURACY, accuracy_at
from drope_jax.evaluate.tasks import Figure, Subject, mean_figure
from drope_jax.generate import generate
from drope_jax.model import Params


def retrieve(
  params: Params,
  inference: Inference,
  samples: Sequence[NeedleSample],
  *,
  batch_size: int = 32,
  compute: ComputeConfig | None = None,
) -> np.ndarray:
  """Which samples are answered exactly: bool, in the order of `samples`.

  With `inference.crop` = W the model sees the last tokens of a prompt that leave room for the answer within W.

  Args:
    inference: see methods.inference.
    batch_size: samples on the device at one time, of similar length; it does not change the result.

  Raises:
    ValueError: if there is no sample, or a crop has no room for an answer.
  """
  if not samples:
    raise ValueError("samples is empty; there is nothing to measure")
  prompts = [inference.seen(sample.tokens, len(sample.answer)) for sample in samples]
  by_length = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
  num_batches = -(-len(samples) // batch_size)
  size = -(-len(samples) // num_batches)
  correct_N = np.zeros(len(samples), bool)
  for start in range(0, len(samples), size):
    # The last batch is filled up with samples from the front, so that there is one compiled shape.
    batch = [by_length[i % len(samples)] for i in range(start, start + size)]
    continuations = generate(
      params,
      inference.config,
      [prompts[i] for i in batch],
      max_new_tokens=max(len(samples[i].answer) for i in batch),
      logit_scale=inference.logit_scale,
      compute=compute,
    )
    for i, continuation in zip(batch, continuations, strict=True):
      correct_N[i] = tuple(continuation[: len(samples[i].answer)]) == tuple(samples[i].answer)
  return correct_N


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles:
  """The task: facts among the fillers of `lines`, one of them asked for."""

  lines: Lines
  depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
  per_depth: int = 40  # samples
  facts: int = 4
  seed: int = 0
  name: str = "needles"

  def check(self, length: int, crop: int | None) -> None:
    needle_sample(self.lines, length, 0.0, self.seed, 0, self.facts)

  def samples(self, length: int) -> list[NeedleSample]:
    return _needle_samples(self.lines, length, self.depths, self.per_depth, self.seed, self.facts)

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    samples = self.samples(length)
    correct_N = retrieve(subject.params, subject.how, samples, compute=subject.compute)
    figures = [mean_figure(ACCURACY, correct_N)]
    for depth, group_N in grouped_by_depth(samples, correct_N, self.depths):
      figures.append(mean_figure(accuracy_at(depth), group_N))
    return figures


@functools.lru_cache(maxsize=1)  # every method is asked the same
def _needle_samples(
  lines: Lines, length: int, depths: tuple[float, ...], per_depth: int, seed: int, facts: int
) -> list[NeedleSample]:
  return [needle_sample(lines, length, depth, seed, index, facts) for depth in depths for index in range(per_depth)]


class DepthAccuracy(NamedTuple):
  """Share of the `n` samples near `depth` that were answered."""

  depth: float
  accuracy: float
  n: int


def by_depth(samples: Sequence[NeedleSample], correct_N: np.ndarray, depths: Sequence[float]) -> list[DepthAccuracy]:
  """Accuracy at each of `depths` that has samples; a sample counts for the one nearest to where its fact lies."""
  groups = grouped_by_depth(samples, correct_N, depths)
  return [DepthAccuracy(depth, float(group.mean()), group.size) for depth, group in groups]


def grouped_by_depth(
  samples: Sequence[NeedleSample], correct_N: np.ndarray, depths: Sequence[float]
) -> list[tuple[float, np.ndarray]]:
  """The parts of `correct_N` that belong to each of `depths`, where there are any."""
  actual_N = np.array([sample.depth for sample in samples])
  nearest_N = np.abs(actual_N[:, None] - np.asarray(depths)).argmin(axis=1)
  groups = [(depth, correct_N[nearest_N == i]) for i, depth in enumerate(depths)]
  return [(depth, group) for depth, group in groups if group.size]
