"""Dot plots of tasks that are measured at one length: the value across, one line per row of the study."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from experiments.plan import Row
from experiments.reporting.axes import STYLE, Point, error_bars, value_axis
from experiments.reporting.looks import Look
from experiments.reporting.records import Records
from experiments.reporting.summary import Summary

COLUMNS = 3  # panels beside each other
LABEL_CHARACTERS = 44  # of a line of a row's label
CHARACTER, LINE, PANEL = 0.085, 0.17, 3.1  # inches: width of a character, height of a line of text, width of a panel


class Dots(NamedTuple):
  """A panel: a task at its one length."""

  title: str
  points: Mapping[Row, Point]  # of the rows that were measured
  where: str  # the length, in words
  logarithmic: bool = False


def at_one_length(measured: Records | Summary, task: str) -> bool:
  return len(measured.contexts(task)) == 1


def about_lengths(measured: Records | Summary, part: str = "") -> str:
  """The first sentence of a caption of all tasks; `part`: such as " (1 of 2)"."""
  single = [at_one_length(measured, task) for task in measured.tasks]
  if all(single):
    return f"All tasks, each at one length{part}: one line per row, its value across."
  beside = (
    "; where a task has one length, one line per row in the legend's order, its value across" if any(single) else ""
  )
  return f"All tasks by length{part}{beside}."


def length_in_words(measured: Records | Summary, task: str) -> str:
  """`at 1× the training context (128 tokens)`."""
  (context,) = measured.contexts(task)
  return f"at {measured.extension(context):g}× the training context ({context:,} tokens)"


def draw_dots(panels: Sequence[Dots], rows: Sequence[Row], looks: Mapping[Row, Look]) -> Canvas:
  """All panels, whose lines are the measured ones of `rows`, labelled at the left."""
  shown = [row for row in rows if any(row in panel.points for panel in panels)]
  labels = [textwrap.fill(row.label, LABEL_CHARACTERS) for row in shown]
  columns = min(COLUMNS, len(panels))
  lines = -(-len(panels) // columns)
  text_lines = max(label.count("\n") + 1 for label in labels)
  width = 0.3 + CHARACTER * max(len(line) for label in labels for line in label.split("\n")) + PANEL * columns
  height = 0.9 + (0.1 + LINE * text_lines) * len(shown)
  with plt.rc_context(STYLE):
    canvas, grid = plt.subplots(
      lines, columns, figsize=(max(width, 6), lines * height), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
      draw_panel(axes, panel, shown, looks)
    for axes in grid.flat[len(panels) :]:
      axes.axis("off")
    grid[0, 0].set_yticks(range(len(shown)), labels)
    for axes in grid.flat:
      axes.tick_params(axis="y", length=0)
  return canvas


def draw_panel(axes: Axes, panel: Dots, rows: Sequence[Row], looks: Mapping[Row, Look]) -> dict[Row, Line2D]:
  """One panel, the first of `rows` at its top, without labels; returns the marker of each row."""
  drawn: dict[Row, Line2D] = {}
  for y, row in enumerate(rows):
    if row not in panel.points:
      continue
    value, *ends = panel.points[row]
    (drawn[row],) = axes.plot([value], [y], **{**looks[row].line, "linestyle": "none"})
    error_bars(axes, np.array([value]), np.array([y]), np.array([ends]), looks[row].color, across=True)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_yticks([])
  value_axis(axes, [panel.points[row] for row in drawn], logarithmic=panel.logarithmic, name="x")
  axes.set_title(panel.title)
  axes.set_xlabel(panel.where)
  return drawn
