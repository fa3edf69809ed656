"""What the plots share: their style, axes of lengths and of logarithms, error bars, and labels at the ends of lines."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from experiments.reporting.lengths import Lengths
from experiments.reporting.looks import Look
from experiments.reporting.training_tables import show_count

STYLE: dict[Any, Any] = {
  "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
  "text.parse_math": False,
  "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.labelcolor": "#333333",
  "xtick.color": "#555555", "ytick.color": "#555555", "axes.grid": True, "axes.axisbelow": True,
  "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "legend.frameon": False, "figure.facecolor": "white",
}  # fmt: skip
Point = tuple[float, float, float]  # a value and the ends of its bar; NaN: no bar
CONTEXT_SHADE = "#f1f1f1"
# Of a legend below all panels, beside its number of columns.
LEGEND_BELOW: dict[str, Any] = {
  "loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "columnspacing": 2.0, "handlelength": 2.8
}  # fmt: skip


def limit_to(axes: Axes, values: Sequence[float]) -> None:
  """Limits the y axis to these values, with a margin."""
  margin = 0.06 * (max(values) - min(values)) + 1e-3
  axes.set_ylim(min(values) - margin, max(values) + margin)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, Look]]) -> None:
  """Writes (y, text, look) at the right edge at the height of y, moved apart where they would overlap."""
  if not ends:
    return
  height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
  gap = 12.5 / height
  to_share = axes.transData + axes.transAxes.inverted()
  x = axes.get_xlim()[1]
  wanted = sorted(
    ((float(to_share.transform((x, y))[1]), text, look) for y, text, look in ends), key=lambda end: end[:2]
  )
  places = [min(max(share, 0.0), 1.0) for share, _, _ in wanted]
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + gap)
  top = 1.04
  for i in reversed(range(len(places))):
    places[i] = min(places[i], top)
    top = places[i] - gap
  for place, (share, text, look) in zip(places, wanted, strict=True):
    axes.annotate(
      text, xy=(1.0, share), xytext=(1.035, place), xycoords="axes fraction", textcoords="axes fraction",
      color=look.color, va="center", fontsize=9.5, annotation_clip=False,
      arrowprops={"arrowstyle": "-", "color": look.color, "linestyle": look.linestyle, "linewidth": 0.7, "shrinkA": 1,
                  "shrinkB": 1, "alpha": 0.7, "relpos": (0, 0.5)},
    )  # fmt: skip


def log_ticks(low: float, high: float) -> list[float]:
  """Three to seven round numbers in [low, high], as evenly spaced on a log axis as round numbers can be."""
  for mantissas in (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 3, 5),
    (1, 2, 5),
    (1, 3),
    (1,),
  ):
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in decades for m in mantissas if low <= m * 10.0**e <= high]
    if len(ticks) <= 7:
      break
  if len(ticks) >= 3:
    return ticks
  # In a range this narrow a log axis is nearly linear.
  even = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
  return [float(f"{tick:.12g}") for tick in even if low <= tick <= high]


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
  """Ticks at exactly `values`, written as numbers (a log axis would write powers)."""
  axis.set_major_locator(FixedLocator(list(values)))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"))


def log_axis(axes: Axes, values: Sequence[float], name: Literal["x", "y"] = "y") -> None:
  """A log axis around positive values, with ticks even in a narrow range."""
  low, high = math.log(min(values)), math.log(max(values))
  margin = max(0.06 * (high - low), 0.03)
  limits = math.exp(low - margin), math.exp(high + margin)
  axes.set(**{f"{name}scale": "log", f"{name}lim": limits})
  plain_ticks(axes.xaxis if name == "x" else axes.yaxis, log_ticks(*limits))


def are_shares(values: Iterable[float]) -> bool:
  """Whether these values can all be shares. The ends of a share's interval may leave 0 to 1, so they do not count."""
  return all(0 <= value <= 1 for value in values)


def value_axis(axes: Axes, points: Sequence[Point], *, logarithmic: bool, name: Literal["x", "y"] = "y") -> None:
  """An axis of measured values: from 0 to 1 if all are shares, otherwise around them and their bars."""
  if logarithmic and points:
    log_axis(axes, [one for point in points for one in point if math.isfinite(one)], name)
  elif points and are_shares(value for value, _, _ in points):
    axes.set(**{f"{name}lim": (-0.04, 1.04)})


def length_axis(axes: Axes, records: Lengths, contexts: Sequence[int]) -> None:
  """Lengths on a log-2 x axis, in multiples of the training context and in tokens; the training context is marked."""
  axes.set_xscale("log", base=2)
  axes.set_xlim(min(contexts) / 2**0.25, max(contexts) * 2**0.25)
  axes.xaxis.set_major_locator(FixedLocator(list(contexts)))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{records.extension(value):g}×\n{value:,.0f}"))
  mark_context(axes, records)


def token_axis(axes: Axes, label: str) -> None:
  """Tokens on a linear axis x, as 1.5M."""
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value) if value else "0"))
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.set_xlabel(label)


def mark_context(axes: Axes, records: Lengths) -> None:
  """Shades the training context."""
  left, right = axes.get_xlim()
  if left < records.train_context < right:
    axes.axvspan(left, records.train_context, color=CONTEXT_SHADE, zorder=0)
    axes.axvline(records.train_context, color="#777777", linestyle="--", linewidth=1, zorder=1)


def error_bars(
  axes: Axes, x: Sequence[float] | np.ndarray, y: np.ndarray, ends: np.ndarray, color: str, *, across: bool = False
) -> None:
  """Bars between `ends` (N, 2), the lower and upper end of each interval; NaN: no bar. `across`: of x, not of y."""
  known, x = np.isfinite(ends).all(axis=1), np.asarray(x)
  if known.any():
    spread = np.abs(ends[known].T - (x if across else y)[known])
    axes.errorbar(
      x[known], y[known], **{"xerr" if across else "yerr": spread}, fmt="none", ecolor=color, elinewidth=1, capsize=2,
      alpha=0.5, zorder=2,
    )  # fmt: skip
