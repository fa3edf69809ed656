"""Measured numbers: means over samples, with bootstrap intervals, and breakdowns of a mean into parts."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000  # bootstrap resamples behind an interval
DEPTH_BINS = (0.0, 0.25, 0.5, 0.75, 1.0)  # scores by depth assign a sample to the nearest of these

LOSS = "loss"  # nats per token
BITS_PER_BYTE = "bits_per_byte"  # of the text that the tokens spell
ACCURACY = "accuracy"  # share of samples answered right, 0 to 1
BETA = "beta"  # the factor on the attention logits

LOWER_IS_BETTER = frozenset({LOSS, BITS_PER_BYTE})
At = float | tuple[float, float | None] | None


class Figure(NamedTuple):
  """One measured number over `n` samples."""

  metric: str
  value: float
  n: int  # samples behind the value: tokens of a loss, prompts of an accuracy
  low: float | None = None  # lower end of the 95 % interval over samples; None: too few samples
  high: float | None = None  # upper end
  by: str | None = None  # the quantity that the metric is broken down by ("position", "depth"); None: not broken down
  at: At = None  # which part: a number, or an interval (start, stop), whose stop is exclusive, or None for no end
  better: str | None = None  # "higher" or "lower"; None: neither is better
  values: tuple[float, ...] | None = None  # one per sample, so that methods can be compared sample by sample


def mean_figure(
  metric: str,
  values_N: Sequence[float] | np.ndarray,
  *,
  weights_N: np.ndarray | None = None,
  n: int | None = None,
  by: str | None = None,
  at: At = None,
  lower_is_better: bool | None = None,
) -> Figure:
  """The mean of a metric over samples, with a bootstrap interval over samples.

  Args:
    values_N: one value per sample, all of equal weight unless `weights_N` says otherwise.
    weights_N: for the ratio of two sums: sum(weights * values) / sum(weights).
    n: the count to record; None: the number of samples.
    by, at: see Figure.
    lower_is_better: None: whether the metric is in LOWER_IS_BETTER.

  Raises:
    ValueError: if there is no sample.
  """
  values_N = np.asarray(values_N, np.float64)
  equal = weights_N is None
  weights_N = np.ones(len(values_N)) if weights_N is None else np.asarray(weights_N, np.float64)
  if not len(values_N):
    raise ValueError(f"{metric}: there is no sample to average")
  value = float((weights_N * values_N).sum() / weights_N.sum())
  low, high = bootstrap(values_N, weights_N) if len(values_N) > 1 else (None, None)
  lower = metric in LOWER_IS_BETTER if lower_is_better is None else lower_is_better
  kept = tuple(float(f"{one:.7g}") for one in values_N) if equal and by is None else None
  count = len(values_N) if n is None else n
  return Figure(metric, value, count, low, high, by, at, "lower" if lower else "higher", kept)


def figures_by(metric: str, by: str, parts: Iterable[tuple[At, Sequence[float] | np.ndarray]]) -> list[Figure]:
  """The mean of each part that has values; `parts` are pairs of `at` and the values there."""
  return [mean_figure(metric, values, by=by, at=at) for at, values in parts if len(values)]


def figures_by_depth(
  metric: str,
  actual_N: Sequence[float],
  values_N: Sequence[float] | np.ndarray,
  depths: Sequence[float] = DEPTH_BINS,
  samples_N: Sequence[int] | np.ndarray | None = None,
) -> list[Figure]:
  """The mean at each of `depths` that has values; a value counts for the depth nearest to its actual one.

  Args:
    samples_N: the index of the sample that each value is of, if samples have several: n counts samples, and intervals
      are over samples, since the values of one are not independent. None: each value is a sample.
  """
  values_N = np.asarray(values_N)
  samples_N = np.arange(len(values_N)) if samples_N is None else np.asarray(samples_N)
  nearest_N = np.abs(np.asarray(actual_N)[:, None] - np.asarray(depths)).argmin(axis=1)
  figures = []
  for i, depth in enumerate(depths):
    here_N = nearest_N == i
    if here_N.any():
      _, places, counts_S = np.unique(samples_N[here_N], return_inverse=True, return_counts=True)
      means_S = np.bincount(places, weights=values_N[here_N]) / counts_S
      figures.append(mean_figure(metric, means_S, weights_N=counts_S, by="depth", at=depth))
  return figures


def bootstrap(values_N: np.ndarray, weights_N: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The 2.5th and 97.5th percentile of the weighted mean over RESAMPLES resamples; deterministic."""
  size = len(values_N)
  rng = np.random.default_rng(seed)
  means = np.empty(RESAMPLES)
  rows = max(1, 1_000_000 // size)  # resamples drawn at a time
  for start in range(0, RESAMPLES, rows):
    draws = rng.integers(0, size, (min(rows, RESAMPLES - start), size))
    weights = weights_N[draws]
    means[start : start + len(draws)] = (weights * values_N[draws]).sum(axis=1) / weights.sum(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)
