"""A task with one length has a dot per row at its value, beside the row's label, and none is left out."""

import dataclasses
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from support.study_records import CONTEXT, LOSSES, figures, study_of

from drope_jax.evaluate.results import Result
from experiments.plan import Row
from experiments.reporting import plots
from experiments.reporting.dots import Dots, draw_dots
from experiments.reporting.groups import MOST
from experiments.reporting.looks import Look
from experiments.reporting.measured_plots import plot_summary
from experiments.reporting.seed_plots import draw_lengths, lengths_groups
from experiments.reporting.summary import Place
from experiments.seeds import summary_of


@pytest.fixture(autouse=True)
def closed():
  yield
  plt.close("all")


def in_context():
  return [one for one in figures(LOSSES, {}) if one.context == CONTEXT and one.by is None]


def dots_of(axes, label):
  """The value across and the height of the dot, and of the ends of its bar, for the row with this label."""
  labels = [text.get_text() for text in axes.get_yticklabels()]
  height = axes.get_yticks()[labels.index(label)]
  dots = [line for line in axes.lines if line.get_marker() not in "|_"]  # which are the caps of bars
  values = [line.get_xdata()[0] for line in dots if line.get_ydata()[0] == height]
  (bar,) = (part for one in axes.collections for part in one.get_segments() if part[0, 1] == part[1, 1] == height)
  return values, bar[:, 0]


def test_a_report_of_one_length_has_its_values_beside_the_labels(workdir):
  study = study_of(workdir, in_context())
  (axes,) = plot_summary(study).axes
  assert [text.get_text() for text in axes.get_yticklabels()] == list(LOSSES)
  assert axes.yaxis_inverted() and "128 tokens" in axes.get_xlabel()
  values, bar = dots_of(axes, "DroPE")
  np.testing.assert_allclose(values, [math.exp(3.27)])
  np.testing.assert_allclose(bar, [math.exp(3.22), math.exp(3.32)])
  assert "each at one length" in plots.of_summary(study).caption


def test_a_task_of_one_length_beside_others_has_no_axis_of_lengths(workdir):
  shared = {"context": 256, "extension": 2.0, "n": 50, "seed": 0, "task": "arc_easy", "metric": "accuracy"}
  pairs = {("drope", "nope"): 0.25, ("rope_continued", "rope"): 0.5}
  found = [Result(run=run, method=how, value=value, **shared) for (run, how), value in pairs.items()]
  study = study_of(workdir, [*figures(LOSSES, {}), *found])
  by_length, single = plot_summary(study).axes
  assert "multiple" in by_length.get_xlabel() and "2× the training context" in single.get_xlabel()
  assert [line.get_xdata()[0] for line in single.lines] == [0.5, 0.25]  # in the order of the study's rows
  caption = plots.of_summary(study).caption
  assert "by length" in caption and "one line per row" in caption and "each at one length" not in caption


def test_over_seeds_all_rows_of_one_length_share_a_picture(workdir):
  study_of(workdir, in_context())
  few = summary_of([workdir], "study")
  more = {f"drop_{i}": 3.3 + i / 100 for i in range(2 * MOST)}
  made = {}
  for place, (figure,) in few.figures.items():
    if (place.run, place.method, place.metric) == ("drope", "nope", "loss"):
      made |= {Place(run, *place[1:]): (figure._replace(value=loss),) for run, loss in more.items()}
  rows = (*few.rows, *(Row(run, "nope", f"dropped, {run}") for run in more))
  whole = dataclasses.replace(
    few, rows=rows, kinds={**few.kinds, **dict.fromkeys(more, "DroPE")}, figures=few.figures | made
  )
  (group,) = lengths_groups(whole)
  (axes,) = draw_lengths(whole, group).axes
  assert [text.get_text() for text in axes.get_yticklabels()] == [row.label for row in rows]
  np.testing.assert_allclose(dots_of(axes, "dropped, drop_7")[0], [math.exp(3.37)])


@pytest.mark.parametrize("values", [(1.21, 1.31), (-0.13, 0.1)])
def test_every_dot_is_within_the_axis_of_a_metric_that_is_no_share(workdir, values):
  shared = {"context": 256, "extension": 2.0, "n": 50, "seed": 0, "task": "toy", "metric": "bits_per_byte"}
  pairs = (("drope", "nope"), ("rope_continued", "rope"))
  found = [Result(run=run, method=how, value=one, **shared) for (run, how), one in zip(pairs, values, strict=True)]
  study = study_of(workdir, found)
  (group,) = lengths_groups(summary_of([workdir], "study"))
  for canvas in (plot_summary(study), draw_lengths(summary_of([workdir], "study"), group)):
    (axes,) = canvas.axes
    low, high = axes.get_xlim()
    assert low < min(values) and max(values) < high and sorted(line.get_xdata()[0] for line in axes.lines) == [*values]


def test_many_rows_with_long_labels_fit():
  rows = [Row(f"run_{i}", "nope", f"a partial drop of long words, kept from {i} turns on, " * 2) for i in range(15)]
  points = {row: (0.5, 0.4, math.nan) for row in rows}
  panels = [Dots(f"task {i}: accuracy", points, "at 1×") for i in range(4)]
  canvas = draw_dots(panels, rows, dict.fromkeys(rows, Look("#000000", "o")))
  canvas.draw_without_rendering()
  labelled = [axes for axes in canvas.axes if axes.get_yticklabels() and axes.get_yticklabels()[0].get_visible()]
  boxes = [text.get_window_extent() for text in labelled[0].get_yticklabels()]
  assert len(boxes) == 15 and not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
  assert min(box.x0 for box in boxes) >= 0
  panels_drawn = [axes.get_window_extent() for axes in canvas.axes if axes.axison]
  assert len(panels_drawn) == 4 and min(box.width for box in panels_drawn) > 2 * canvas.dpi  # at least two inches
