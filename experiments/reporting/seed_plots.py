"""Pictures over seeds: every task against length, and recovery curves with a band."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from drope_jax.evaluate.figures import BITS_PER_BYTE, LOSS
from experiments.plan import Row
from experiments.reporting.arms import CONTROL
from experiments.reporting.axes import STYLE, error_bars, label_ends, length_axis, log_axis
from experiments.reporting.looks import Look, looks_of
from experiments.reporting.seed_tables import recovery
from experiments.reporting.spread import spread
from experiments.reporting.summary import Summary

MOST_LINES = 9  # in one panel
COLUMNS = 3  # panels beside each other


def shown_rows(summary: Summary, most: int = MOST_LINES) -> list[Row]:
  """The rows that are drawn: the control's and the drop's first, then others as they were trained."""
  controls = set(summary.controls.values())
  controlling = {row.run for row in summary.rows if row.label in controls}

  def rank(row: Row) -> int:
    kind = summary.kinds.get(row.run)
    if row.label in controls or (row.run in controlling and len(controls) == 1):
      return 0
    return 1 if kind == "DroPE" and row.method in ("nope", "drope") else 2 if row.plain else 3 if kind == CONTROL else 4

  chosen = set(sorted(summary.rows, key=rank)[:most])
  return [row for row in summary.rows if row in chosen]


def _looks(summary: Summary) -> dict[Row, Look]:
  """Of the rows that are drawn, so that the others use up no colours."""
  return looks_of(shown_rows(summary), summary.kinds)


def draw_lengths(summary: Summary) -> Canvas:
  """The main metric of every task against length; bars: standard deviation over seeds, or interval over samples."""
  tasks, rows = summary.tasks, shown_rows(summary)
  columns = min(COLUMNS, len(tasks))
  lines = -(-len(tasks) // columns)
  with plt.rc_context(STYLE):
    canvas, panels = plt.subplots(lines, columns, figsize=(max(4.6 * columns, 6), 3.8 * lines), squeeze=False)
    drawn: dict[Row, Line2D] = {}
    for axes, task in zip(panels.flat, tasks, strict=False):
      drawn |= _draw_task(axes, summary, rows, task)
    for axes in panels.flat[len(tasks) :]:
      axes.axis("off")
    canvas.tight_layout()
    named = [row for row in rows if row in drawn]
    canvas.legend(
      handles=[drawn[row] for row in named], labels=[row.label for row in named], loc="upper center",
      bbox_to_anchor=(0.5, 0.0), ncols=min(3, len(named)), columnspacing=2.0, handlelength=2.8,
    )  # fmt: skip
  return canvas


def _draw_task(axes: Axes, summary: Summary, rows: Sequence[Row], task: str) -> dict[Row, Line2D]:
  contexts, metric, styles = summary.contexts(task), summary.metrics(task)[0], _looks(summary)
  as_perplexity = metric == LOSS and BITS_PER_BYTE in summary.metrics(task)
  drawn, every = {}, []
  for index, row in enumerate(rows):
    lengths = [context for context in contexts if summary.at(row, task, context, metric)]
    if not lengths:
      continue
    points = np.array([_point(summary, row, task, context, metric) for context in lengths])
    points = np.exp(points) if as_perplexity else points
    (drawn[row],) = axes.plot(lengths, points[:, 0], **styles[row].line)
    beside = 2 ** (0.04 * (index - (len(rows) - 1) / 2))  # so that bars of equal values can be told apart
    error_bars(axes, np.array(lengths) * beside, points[:, 0], points[:, 1:], styles[row].color)
    every += [float(value) for value in points.flat if np.isfinite(value)]
  axes.set_title("perplexity" if as_perplexity else metric if metric == task else f"{task}: {metric}")
  if as_perplexity:
    log_axis(axes, every)
  elif every and min(every) >= -0.5 and max(every) <= 1.5:  # a share, whose interval may leave 0 to 1
    axes.set_ylim(-0.04, 1.04)
  length_axis(axes, summary, contexts)
  axes.set_xlabel("length, as a multiple of the training context")
  return drawn


def _point(summary: Summary, row: Row, task: str, context: int, metric: str) -> tuple[float, float, float]:
  """A value with the ends of its bar, NaN where there is none."""
  figures = summary.at(row, task, context, metric) or ()
  found = spread([figure.value for figure in figures])
  # Seeds move all rows alike, so that intervals of single means would hide what paired differences show.
  low, high = (figures[0].low, figures[0].high) if found.sd is None else (found.mean - found.sd, found.mean + found.sd)
  return found.mean, np.nan if low is None else low, np.nan if high is None else high


def recovery_rows(summary: Summary) -> dict[str, Row]:
  """The runs whose recovery curve is drawn, each with its first row."""
  found: dict[str, Row] = {}
  for row in shown_rows(summary):
    if row.run not in found and recovery(summary, row.run):
      found[row.run] = row
  return found


def draw_recovery(summary: Summary) -> Canvas | None:
  """Held-out loss in context less the control's, by step, with its band (see `recovery`); None without curves."""
  rows = recovery_rows(summary)
  if not rows:
    return None
  styles = _looks(summary)
  with plt.rc_context(STYLE):
    canvas, axes = plt.subplots(figsize=(8.2, 3.9))
    named, settled = [], []
    for run, row in rows.items():
      steps, found = zip(*recovery(summary, run).items(), strict=True)
      means, look = [one.mean for one in found], styles[row]
      axes.plot(steps, means, color=look.color, linestyle=look.linestyle, marker=".", linewidth=1.8, zorder=3)
      ends = np.array([[np.nan if end is None else end for end in (one.low, one.high)] for one in found])
      axes.fill_between(steps, *ends.T, color=look.color, alpha=0.15)
      named.append((means[-1], row.label, look))
      settled += [value for one in found[1:] for value in (one.mean, one.low, one.high) if value is not None]
    axes.axhline(0, color="#777777", linewidth=1, zorder=2)
    margin = 0.08 * (max(*settled, 0) - min(*settled, 0)) + 1e-3
    axes.set_ylim(min(*settled, 0) - margin, max(*settled, 0) + margin)  # the first point, far off, may be cut
    axes.set_xlabel("step of the recalibration")
    axes.set_ylabel("held-out loss less the control's (nats)")
    canvas.subplots_adjust(right=0.72)
    canvas.draw_without_rendering()
    label_ends(axes, named)
  return canvas
