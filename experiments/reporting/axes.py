"""What the plots share: colours and markers of rows, axes of lengths and of logarithms, labels, and saving."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from experiments.plan import Arm, Row
from experiments.reporting import arms
from experiments.reporting.lengths import Lengths
from experiments.reporting.records import Records

# Okabe and Ito's colours, which the colour-blind can tell apart; the yellow is left out, too pale for a line. The grey
# is dark, since purple and green look like a lighter one to some of them.
INK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
  "#1f1f1f", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#555555",
)  # fmt: skip
# The usual ones keep their looks from report to report; whatever else is measured takes the spare ones in turn.
METHOD_LOOKS = {"pi": (ORANGE, "s"), "ntk": (SKY, "^"), "yarn": (GREEN, "D"), "crop": (GREY, "X")}
KIND_LOOKS = {arms.CONTROL: (INK, "o"), "DroPE": (VERMILION, "o"), "partial drop": (PURPLE, "o")}
SPARE_LOOKS = (
  (BLUE, "v"), (PURPLE, "P"), ("#5A3A1E", "<"), ("#332288", ">"), ("#9AD0C2", "h"), ("#6020e0", "p"), ("#2F6F6F", "d"),
)  # fmt: skip
STYLE: dict[Any, Any] = {
  "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
  "text.parse_math": False,
  "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.labelcolor": "#333333",
  "xtick.color": "#555555", "ytick.color": "#555555", "axes.grid": True, "axes.axisbelow": True,
  "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "legend.frameon": False, "figure.facecolor": "white",
}  # fmt: skip
CONTEXT_SHADE = "#f1f1f1"


@dataclasses.dataclass(frozen=True)
class Look:
  """How a row is drawn; with the temperature and without it, a model keeps its colour."""

  color: str
  marker: str
  dashed: bool = False
  heavy: bool = False

  @property
  def line(self) -> dict[str, Any]:
    return {
      "color": self.color,
      "marker": self.marker,
      "linestyle": (0, (4, 1.8)) if self.dashed else "-",
      "linewidth": 2.4 if self.heavy else 1.6,
      "markersize": 5.5,
      "markerfacecolor": "white" if self.dashed else self.color,
      "markeredgewidth": 1.3,
      "zorder": 4 if self.heavy else 3,
    }


def looks(records: Records) -> dict[Row, Look]:
  """A look for each row of a report."""
  return looks_of(records.rows, {name: arms.kind(run) for name, run in records.runs.items()})


def looks_of(rows: Sequence[Row], kinds: Mapping[str, str]) -> dict[Row, Look]:
  """By method for a control's rows, by kind of run for others; a spare one if that is taken."""
  chosen: dict[tuple[str, str], tuple[str, str]] = {}
  found = {}
  for row in rows:
    kind = kinds.get(row.run)
    whole = row.plain or row.method == "drope"  # with the temperature and without it, a model keeps its colour
    key = (row.run, "" if whole else row.method)
    if key not in chosen:
      usual = (
        KIND_LOOKS.get(kind or "") if whole else METHOD_LOOKS.get(row.method) if kind in (None, arms.CONTROL) else None
      )
      chosen[key] = _free(usual, list(chosen.values()))
    tempered = any(other.run == row.run and other.method == "drope" for other in rows)
    found[row] = Look(*chosen[key], dashed=row.plain and tempered, heavy=whole and kind in KIND_LOOKS)
  return found


def _free(wanted: tuple[str, str] | None, taken: Sequence[tuple[str, str]]) -> tuple[str, str]:
  """The look that is wanted, or a spare one, of a colour that nobody has while there is one."""
  if wanted is not None and wanted not in taken:
    return wanted
  colors = {color for color, _ in taken}
  spare = [look for look in SPARE_LOOKS if look not in taken]
  return next((look for look in spare if look[0] not in colors), next(iter(spare), (GREY, ".")))


def arm_colors(records: Records) -> dict[Arm, str]:
  """The colour of the row that evaluates an arm as it was trained; without one, that of what it is, or a spare one."""
  by_run = {row.run: look.color for row, look in looks(records).items() if row.plain or row.method == "drope"}
  colors: dict[Arm, str] = {}
  for arm in records.arms:
    usual = KIND_LOOKS.get(arms.kind(records.runs[arm.runs[-1]]))
    taken = [look for look in (*SPARE_LOOKS, *KIND_LOOKS.values()) if look[0] in (*by_run.values(), *colors.values())]
    colors[arm] = by_run.get(arm.runs[-1]) or _free(usual, taken)[0]
  return colors


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
  """Writes (y, text, color) at the right edge at the height of y, moved apart where they would overlap."""
  if not ends:
    return
  height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
  gap = 12.5 / height
  to_share = axes.transData + axes.transAxes.inverted()
  x = axes.get_xlim()[1]
  wanted = sorted((float(to_share.transform((x, y))[1]), text, color) for y, text, color in ends)
  places = [min(max(share, 0.0), 1.0) for share, _, _ in wanted]
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + gap)
  top = 1.04
  for i in reversed(range(len(places))):
    places[i] = min(places[i], top)
    top = places[i] - gap
  for place, (share, text, color) in zip(places, wanted, strict=True):
    axes.annotate(
      text, xy=(1.0, share), xytext=(1.035, place), xycoords="axes fraction", textcoords="axes fraction",
      color=color, va="center", fontsize=9.5, annotation_clip=False,
      arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 1, "alpha": 0.7,
                  "relpos": (0, 0.5)},
    )  # fmt: skip


def log_ticks(low: float, high: float) -> list[float]:
  """Round numbers in [low, high], three to seven of them, spaced on a log axis as evenly as round numbers are."""
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
  # A narrow range, where a log axis is nearly linear.
  even = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
  return [float(f"{tick:.12g}") for tick in even if low <= tick <= high]


def plain_ticks(axis: Any, values: Sequence[float]) -> None:
  """Ticks at exactly `values`, written as numbers (a log axis would write powers)."""
  axis.set_major_locator(FixedLocator(list(values)))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"))


def log_axis(axes: Axes, values: Sequence[float]) -> None:
  """A log axis y around positive values, with ticks however narrow their range."""
  low, high = math.log(min(values)), math.log(max(values))
  margin = max(0.06 * (high - low), 0.03)
  axes.set_yscale("log")
  axes.set_ylim(math.exp(low - margin), math.exp(high + margin))
  plain_ticks(axes.yaxis, log_ticks(*axes.get_ylim()))


def length_axis(axes: Axes, records: Lengths, contexts: Sequence[int]) -> None:
  """Lengths on a log-2 axis, as multiples and in tokens, the training context marked."""
  axes.set_xscale("log", base=2)
  axes.set_xlim(min(contexts) / 2**0.25, max(contexts) * 2**0.25)
  axes.xaxis.set_major_locator(FixedLocator(list(contexts)))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{records.extension(value):g}×\n{value:,.0f}"))
  mark_context(axes, records)


def mark_context(axes: Axes, records: Lengths) -> None:
  """Shades what lies within the training context."""
  left, right = axes.get_xlim()
  if left < records.train_context < right:
    axes.axvspan(left, records.train_context, color=CONTEXT_SHADE, zorder=0)
    axes.axvline(records.train_context, color="#777777", linestyle="--", linewidth=1, zorder=1)


def error_bars(axes: Axes, x: Sequence[float] | np.ndarray, y: np.ndarray, ends: np.ndarray, color: str) -> None:
  """Bars from `ends` (N, 2), the lower and upper end of each interval, NaN where there is none."""
  known = np.isfinite(ends).all(axis=1)
  if known.any():
    spread = np.abs(ends[known].T - y[known])
    axes.errorbar(
      np.asarray(x)[known], y[known], spread, fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.5, zorder=2
    )
