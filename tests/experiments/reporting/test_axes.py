"""Axes have ticks even in a narrow range."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.reporting.axes import error_bars, log_axis, log_ticks

RANGES = [
  (620, 720),
  (21.0, 24.5),
  (18.0, 50.0),
  (1.01, 1.02),
  (3.0, 4000.0),
  (0.2, 0.9),
  (599.0, 601.0),
  (99.9, 100.1),
]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_log_axis_has_a_few_ticks_within_its_range(low, high):
  ticks = log_ticks(low, high)
  assert 3 <= len(ticks) <= 8 and all(low <= tick <= high for tick in ticks) and ticks == sorted(set(ticks))


@pytest.mark.parametrize("seed", range(20))
def test_any_range_has_ticks(seed):
  rng = np.random.default_rng(seed)
  low = math.exp(rng.uniform(-2, 12))
  assert len(log_ticks(low, low * (1 + 10 ** rng.uniform(-3, 2)))) >= 3


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_tick_labels_tell_the_ticks_apart(low, high):
  canvas, axes = plt.subplots()
  log_axis(axes, [low, high])
  canvas.draw_without_rendering()
  labels = [label.get_text() for label in axes.get_yticklabels()]
  plt.close(canvas)
  assert len(labels) >= 3 and len(set(labels)) == len(labels)


def test_error_bars_reach_the_ends_of_the_intervals():
  canvas, axes = plt.subplots()
  ends = np.array([[0.5, 2.0], [math.nan, math.nan], [2.5, 3.25]])
  error_bars(axes, [1, 2, 3], np.array([1.0, 2.0, 3.0]), ends, "black")
  (bars,) = axes.containers
  drawn = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
  plt.close(canvas)
  assert drawn == [[0.5, 2.0], [2.5, 3.25]]
