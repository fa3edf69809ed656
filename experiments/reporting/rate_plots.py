"""The loss in context against the peak learning rate, for studies whose runs differ in that alone."""

import re
from collections.abc import Sequence
from itertools import takewhile

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure as Canvas

from drope_jax.evaluate.figures import LOSS
from experiments.plan import Row
from experiments.reporting.axes import STYLE, error_bars, label_ends, plain_ticks
from experiments.reporting.groups import kinds_drawn
from experiments.reporting.looks import looks_of
from experiments.reporting.spread import Spread, over_seeds
from experiments.reporting.summary import Summary

Line = dict[float, Spread]  # by peak rate, ascending, with the ends of its bar


def rate_lines(summary: Summary) -> dict[Row, Line]:
  """The held-out loss in context of each sweep of rates, by its first row; a control without a sweep has no line."""
  found = {}
  for rows in _sweeps(summary):
    line = {rate: point for rate, row in rows.items() if (point := _loss(summary, row)) is not None}
    if len(line) > 1:
      found[min(rows.values(), key=summary.rows.index)] = line
  return found


def draw_rates(summary: Summary) -> Canvas | None:
  """One line per sweep, and one across for a control at a single rate; None for a study without sweeps."""
  lines = rate_lines(summary)
  if not lines:
    return None
  names = {}
  for rows in _sweeps(summary):
    in_order = [row for row in summary.rows if row in rows.values()]
    names[in_order[0]] = sweep_label([row.label for row in in_order])
  across = {row: point for row in _single_controls(summary, lines) if (point := _loss(summary, row)) is not None}
  styles = looks_of([row for row in summary.rows if row in lines or row in across], kinds_drawn(summary))
  rates = sorted({rate for line in lines.values() for rate in line})
  span = np.log(rates[-1] / rates[0])
  with plt.rc_context(STYLE):
    canvas, axes = plt.subplots(figsize=(8.6, 4.4))
    axes.set_xscale("log")
    axes.set_xlim(rates[0] * np.exp(-0.06 * span), rates[-1] * np.exp(0.06 * span))
    for index, (row, line) in enumerate(lines.items()):
      means = np.array([point.mean for point in line.values()])
      ends = np.array([[np.nan if end is None else end for end in (p.low, p.high)] for p in line.values()])
      axes.plot(list(line), means, **styles[row].line)
      beside = np.exp(0.006 * span * (index - (len(lines) - 1) / 2))  # so that bars of equal values do not overlap
      error_bars(axes, np.array(list(line)) * beside, means, ends, styles[row].color)
    for row, point in across.items():
      axes.axhline(point.mean, color=styles[row].color, linestyle="--", linewidth=1.4, zorder=2)
    plain_ticks(axes.xaxis, rates)
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("loss in context (nats per token)")
    canvas.subplots_adjust(right=0.66)
    canvas.draw_without_rendering()
    ended = [(list(line.values())[-1].mean, names[row], styles[row]) for row, line in lines.items()]
    label_ends(axes, [*ended, *((point.mean, row.label, styles[row]) for row, point in across.items())])
  return canvas


def sweep_label(labels: Sequence[str]) -> str:
  """The beginning and the end that the labels of a sweep share, in whole words; without a beginning, the first."""
  start = _shared_start(labels)
  if any(re.match(r"[\w.]", label[len(start) :]) for label in labels):
    start = re.sub(r"[\w.]*$", "", start)
  rest = [label[len(start) :] for label in labels]
  end = _shared_start([text[::-1] for text in rest])[::-1]
  if any(re.search(r"[\w.]$", text.removesuffix(end)) for text in rest):
    end = re.sub(r"^[\w.]*", "", end)
  start, end = start.rstrip(" ,×"), end.strip()
  if not start:
    return labels[0]
  return start + (", " if re.match(r"\w", end) else "") + end


def _shared_start(texts: Sequence[str]) -> str:
  return "".join(one[0] for one in takewhile(lambda one: len(set(one)) == 1, zip(*texts, strict=False)))


def _sweeps(summary: Summary) -> list[dict[float, Row]]:
  """By peak rate, the row of each run of a sweep as it was trained."""
  rows = {row.run: row for row in reversed(summary.rows) if row.plain}
  found = []
  for sweep in summary.sweeps:
    by_rate = {rate: rows[run] for run, rate in sorted(sweep.items(), key=lambda one: one[1]) if run in rows}
    found += [by_rate] if len(by_rate) > 1 else []
  return found


def _single_controls(summary: Summary, lines: dict[Row, Line]) -> list[Row]:
  """The controls of the sweeps' rows that are in no sweep themselves."""
  swept = {run for sweep in summary.sweeps for run in sweep}
  controls = [summary.control(row) for row in lines]
  return list(dict.fromkeys(row for row in controls if row is not None and row.run not in swept))


def _loss(summary: Summary, row: Row) -> Spread | None:
  """In context; its ends: the standard deviation over seeds, or the interval over documents of a single seed."""
  for task in summary.tasks:
    figures = summary.at(row, task, summary.train_context, LOSS) if summary.metrics(task)[0] == LOSS else None
    if figures is not None:
      return over_seeds(figures)
  return None
