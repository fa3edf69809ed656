"""Means over seeds with their standard deviation and 95 % interval, also of paired differences."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import scipy.special

from drope_jax.evaluate.figures import Figure


class Spread(NamedTuple):
  """The mean of one value per seed. With a single seed there is no `sd` and no interval."""

  mean: float
  n: int  # seeds
  sd: float | None = None
  low: float | None = None  # of the 95 % interval of the mean, by Student's t with n - 1 degrees of freedom over seeds
  high: float | None = None

  @property
  def above_zero(self) -> bool:
    return self.low is not None and self.low > 0

  @property
  def below_zero(self) -> bool:
    return self.high is not None and self.high < 0


def spread(values: Sequence[float]) -> Spread:
  """The spread of one or more values."""
  mean, n = statistics.mean(values), len(values)
  if n == 1:
    return Spread(mean, 1)
  sd = statistics.stdev(values)
  half = float(scipy.special.stdtrit(n - 1, 0.975)) * sd / n**0.5
  return Spread(mean, n, sd, mean - half, mean + half)


def paired(values: Sequence[float], base: Sequence[float]) -> Spread:
  """The spread of the differences within each seed, which cancel what a seed does to both sides."""
  return spread([value - other for value, other in zip(values, base, strict=True)])


def within_sd(found: Spread) -> Spread:
  """With the standard deviation over seeds as its ends, where there are several seeds.

  For pictures: seeds move all rows alike, and intervals of single means would hide what paired differences show.
  """
  return found if found.sd is None else found._replace(low=found.mean - found.sd, high=found.mean + found.sd)


def over_seeds(figures: Sequence[Figure]) -> Spread:
  """One figure per seed, `within_sd`; of a single seed, with its interval over samples."""
  found = spread([figure.value for figure in figures])
  return found._replace(low=figures[0].low, high=figures[0].high) if found.sd is None else within_sd(found)


def show_spread(found: Spread) -> str:
  """`3.500 ± 0.500`."""
  return f"{found.mean:.3f}" + ("" if found.sd is None else f" ± {found.sd:.3f}")


def show_difference(found: Spread) -> str:
  """`+0.200 ± 0.100 (-0.048 to +0.448)`; as `show_mean` for a single seed."""
  if found.sd is None or found.low is None or found.high is None:
    return show_mean(found)
  return f"{found.mean:+.3f} ± {found.sd:.3f} ({found.low:+.3f} to {found.high:+.3f})"


def show_mean(found: Spread) -> str:
  """`+0.200 (-0.048 to +0.448)`; without the interval where there is none."""
  if found.low is None or found.high is None:
    return f"{found.mean:+.3f}"
  return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def show_interval(found: Spread) -> str:
  """As `show_mean`, bold where the interval excludes 0; `0` where no seed has any difference."""
  if found.mean == 0 and not found.sd:
    return "0"
  return f"**{show_mean(found)}**" if found.above_zero or found.below_zero else show_mean(found)
