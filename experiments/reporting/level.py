"""Which rows are level with the best: the samples that were measured cannot tell their difference from chance."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from drope_jax.evaluate.figures import BITS_PER_BYTE, LOSS, Figure, bootstrap
from experiments.plan import Row
from experiments.reporting.records import Measured, Records


class Standing(NamedTuple):
  """How the rows of a table compare at one length."""

  best: Row
  level: frozenset[Row]  # the best included


def difference(a: Figure, b: Figure, *, same_samples: bool) -> tuple[float, float, float] | None:
  """a - b with its 95 % interval; None if too little was recorded.

  Paired, sample by sample, if both figures have values of the same samples. Otherwise the two intervals are combined as
  those of independent samples, which gives a wider interval.
  """
  value = a.value - b.value
  if same_samples and a.values and b.values and len(a.values) == len(b.values):
    differences_N = np.array(a.values) - np.array(b.values)
    if len(differences_N) < 2:
      return None
    return (value, *bootstrap(differences_N, np.ones(len(differences_N))))
  if a.low is None or a.high is None or b.low is None or b.high is None:
    return None
  below = math.hypot(a.value - a.low, b.high - b.value)
  above = math.hypot(a.high - a.value, b.value - b.low)
  return value, value - below, value + above


def standing(measured: Mapping[Row, Measured], metric: str) -> Standing | None:
  """The best row by a metric, and the rows whose difference from it has an interval that contains 0.

  None if nothing was measured, or if neither higher nor lower values of the metric are better.
  """
  figures = {row: one.whole()[metric] for row, one in measured.items() if metric in one.whole()}
  directions = {figure.better for figure in figures.values()}
  if len(directions) != 1 or None in directions:
    return None
  sign = 1 if directions == {"higher"} else -1
  best = max(figures, key=lambda row: sign * figures[row].value)

  def is_level(row: Row) -> bool:
    same = measured[row].samples == measured[best].samples
    found = difference(figures[row], figures[best], same_samples=same)
    return row is best or figures[row].value == figures[best].value or (found is not None and found[1] <= 0 <= found[2])

  return Standing(best, frozenset(row for row in figures if is_level(row)))


def standings(records: Records, task: str, metric: str) -> dict[int, Standing]:
  """The standing at each length; empty for a loss per token where the rows read different tokens."""
  found: dict[int, Standing] = {}
  if metric == LOSS and BITS_PER_BYTE in records.metrics(task) and not records.same_tokens(task):
    return found
  for context in records.contexts(task):
    rows = {row: one for row in records.rows if (one := records.at(row, task, context)) is not None}
    if (here := standing(rows, metric)) is not None:
      found[context] = here
  return found
