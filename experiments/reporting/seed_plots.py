"""Pictures over seeds: every task by length, or by row where it has one, and curves of the held-out loss with bands."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from drope_jax.evaluate.figures import BITS_PER_BYTE, LOSS
from experiments.plan import Row
from experiments.reporting.axes import (
  LEGEND_BELOW,
  STYLE,
  Point,
  error_bars,
  label_ends,
  length_axis,
  limit_to,
  token_axis,
  value_axis,
)
from experiments.reporting.dots import Dots, at_one_length, draw_dots, draw_panel, length_in_words
from experiments.reporting.groups import Group, groups_of, whole
from experiments.reporting.looks import Look, looks_of
from experiments.reporting.seed_curves import recovery, token_gap
from experiments.reporting.spread import Spread, over_seeds, spread, within_sd
from experiments.reporting.summary import TOKENS, Summary

COLUMNS = 3  # panels beside each other


def lengths_groups(summary: Summary) -> list[Group]:
  """The rows of each picture of all tasks: one picture is enough where no task has a second length."""
  return [whole(summary)] if _without_lengths(summary) else groups_of(summary)


def draw_lengths(summary: Summary, group: Group) -> Canvas:
  """The main metric of every task by length; bars: standard deviation over seeds, or interval over samples."""
  tasks, rows = summary.tasks, group.rows
  if _without_lengths(summary):
    return draw_dots([_dots(summary, group, task) for task in tasks], rows, group.looks)
  columns = min(COLUMNS, len(tasks))
  lines = -(-len(tasks) // columns)
  with plt.rc_context(STYLE):
    canvas, panels = plt.subplots(lines, columns, figsize=(max(4.6 * columns, 6), 3.8 * lines), squeeze=False)
    drawn: dict[Row, Line2D] = {}
    for axes, task in zip(panels.flat, tasks, strict=False):
      if at_one_length(summary, task):
        drawn |= draw_panel(axes, _dots(summary, group, task), rows, group.looks)
      else:
        drawn |= _draw_task(axes, summary, group, task)
    for axes in panels.flat[len(tasks) :]:
      axes.axis("off")
    canvas.tight_layout()
    named = [row for row in rows if row in drawn]
    canvas.legend([drawn[row] for row in named], [row.label for row in named], ncols=min(3, len(named)), **LEGEND_BELOW)
  return canvas


def _without_lengths(summary: Summary) -> bool:
  return all(at_one_length(summary, task) for task in summary.tasks)


def _dots(summary: Summary, group: Group, task: str) -> Dots:
  (context,) = summary.contexts(task)
  points = {row: point for row in group.rows if (point := _point(summary, row, task, context)) is not None}
  return Dots(_title(summary, task), points, length_in_words(summary, task), _as_perplexity(summary, task))


def _as_perplexity(summary: Summary, task: str) -> bool:
  return summary.metrics(task)[0] == LOSS and BITS_PER_BYTE in summary.metrics(task)


def _title(summary: Summary, task: str) -> str:
  metric = summary.metrics(task)[0]
  return "perplexity" if _as_perplexity(summary, task) else metric if metric == task else f"{task}: {metric}"


def _draw_task(axes: Axes, summary: Summary, group: Group, task: str) -> dict[Row, Line2D]:
  contexts, styles = summary.contexts(task), group.looks
  drawn: dict[Row, Line2D] = {}
  every: list[Point] = []
  for index, row in enumerate(group.rows):
    found = {at: point for at in contexts if (point := _point(summary, row, task, at)) is not None}
    if not found:
      continue
    lengths, points = list(found), np.array(list(found.values()))
    (drawn[row],) = axes.plot(lengths, points[:, 0], **styles[row].line)
    beside = 2 ** (0.04 * (index - (len(group.rows) - 1) / 2))  # so that the bars of equal values do not overlap
    error_bars(axes, np.array(lengths) * beside, points[:, 0], points[:, 1:], styles[row].color)
    every += found.values()
  axes.set_title(_title(summary, task))
  value_axis(axes, every, logarithmic=_as_perplexity(summary, task))
  length_axis(axes, summary, contexts)
  axes.set_xlabel("length, as a multiple of the training context")
  return drawn


def _point(summary: Summary, row: Row, task: str, context: int) -> Point | None:
  """The main metric of a task, with its bar; None if it was not measured."""
  figures = summary.at(row, task, context, summary.metrics(task)[0])
  if figures is None:
    return None
  found = over_seeds(figures)
  point = [np.nan if value is None else value for value in (found.mean, found.low, found.high)]
  value, low, high = np.exp(point) if _as_perplexity(summary, task) else point
  return value, low, high


def recovery_groups(summary: Summary) -> list[dict[Row, Look]]:
  """The rows whose runs have a recovery curve, each run's first, by panel."""
  found = []
  for group in groups_of(summary):
    runs: dict[str, Row] = {}
    for row in group.rows:
      if row.run not in runs and recovery(summary, row.run):
        runs[row.run] = row
    if runs:
      found.append({row: group.looks[row] for row in runs.values()})
  return found


def draw_recovery(summary: Summary) -> Canvas | None:
  """Held-out loss in context less the control's, by step, with its band (see `recovery`); None without curves."""
  groups = recovery_groups(summary)
  if not groups:
    return None
  curves = {row: recovery(summary, row.run) for group in groups for row in group}
  settled = [end for curve in curves.values() for one in list(curve.values())[1:] for end in _ends(one)]
  margin = 0.08 * (max(*settled, 0) - min(*settled, 0)) + 1e-3
  with plt.rc_context(STYLE):
    canvas, panels = plt.subplots(
      len(groups), 1, figsize=(8.2, max(3.9, 3.2 * len(groups))), squeeze=False, sharex=True, sharey=True
    )
    # The first point, far off, may be cut.
    panels[0, 0].set_ylim(min(*settled, 0) - margin, max(*settled, 0) + margin)
    for axes, group in zip(panels[:, 0], groups, strict=True):
      for row, look in group.items():
        _draw_band(axes, curves[row], look)
      axes.axhline(0, color="#777777", linewidth=1, zorder=2)
      axes.set_ylabel("held-out loss less\nthe control's (nats)")
    panels[-1, 0].set_xlabel("step of the recalibration")
    canvas.subplots_adjust(right=0.72, hspace=0.12)
    canvas.draw_without_rendering()
    for axes, group in zip(panels[:, 0], groups, strict=True):
      label_ends(axes, [(list(curves[row].values())[-1].mean, row.label, look) for row, look in group.items()])
  return canvas


def draw_tokens(summary: Summary) -> Canvas | None:
  """Held-out loss in context of whole arms by tokens, and less that of the base; None without several from scratch.

  Bands: standard deviation over seeds of the losses, and intervals of the differences. The first tenth of the tokens,
  where losses are far above the rest, may be cut.
  """
  curves, base = summary.curves(TOKENS), summary.base
  gaps = {run: gap for run in curves if (gap := token_gap(summary, run))}
  if base is None or not gaps:
    return None
  rows = {run: next((row for row in summary.rows if row.run == run), Row(run, "", run)) for run in (base, *gaps)}
  styles = looks_of(list(rows.values()), summary.kinds)
  losses = {run: {at: within_sd(spread(values)) for at, values in curves[run].items()} for run in rows}
  with plt.rc_context(STYLE):
    canvas, panels = plt.subplots(1, 2, figsize=(10, 3.9))
    for axes, shown in zip(panels, (losses, gaps), strict=True):
      for run, curve in shown.items():
        _draw_band(axes, curve, styles[rows[run]])
      first = 0.1 * max(max(curve) for curve in shown.values())
      limit_to(axes, [y for curve in shown.values() for at, one in curve.items() if at >= first for y in _ends(one)])
      token_axis(axes, "training tokens of the arm")
    panels[0].set_title("held-out loss in context")
    panels[0].set_ylabel("nats per token")
    panels[1].set_title(f"less that of “{rows[base].label}”")
    panels[1].axhline(0, color="#777777", linewidth=1, zorder=2)
    canvas.tight_layout()
    canvas.legend(
      [Line2D([], [], **_line(styles[row])) for row in rows.values()],
      [row.label for row in rows.values()],
      ncols=min(3, len(rows)),
      **LEGEND_BELOW,
    )
  return canvas


def _draw_band(axes: Axes, curve: Mapping[float, Spread], look: Look) -> None:
  """Means against steps or tokens, with the band of their intervals where there are any."""
  means = [one.mean for one in curve.values()]
  axes.plot(list(curve), means, **_line(look))
  ends = np.array([[np.nan if end is None else end for end in (one.low, one.high)] for one in curve.values()])
  axes.fill_between(list(curve), *ends.T, color=look.color, alpha=0.15, linewidth=0)


def _line(look: Look) -> dict[str, Any]:
  return {"color": look.color, "linestyle": look.linestyle, "marker": ".", "linewidth": 1.8, "zorder": 3}


def _ends(one: Spread) -> list[float]:
  return [value for value in (one.mean, one.low, one.high) if value is not None]
