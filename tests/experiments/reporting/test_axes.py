"""Axes have ticks even in a narrow range, and hold every value."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.reporting.axes import error_bars, log_axis, log_ticks, value_axis

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


@pytest.mark.parametrize(
  ("points", "share"),
  [
    ([(0.0, 0.0, 0.02), (0.98, 0.9, 1.06)], True),  # the interval of a share may leave 0 to 1
    ([(0.4, math.nan, math.nan), (0.6, math.nan, math.nan)], True),
    ([(1.21, 1.2, 1.22), (1.31, 1.3, 1.32)], False),
    ([(0.9, 0.85, 0.95), (1.05, 1.0, 1.1)], False),
    ([(-0.13, -0.2, -0.06), (0.1, 0.03, 0.17)], False),
  ],
)
@pytest.mark.parametrize("name", ["x", "y"])
def test_an_axis_of_values_is_that_of_shares_for_shares_alone_and_holds_them_all(name, points, share):
  canvas, axes = plt.subplots()
  values = [value for value, _, _ in points]
  axes.plot(values, values)
  value_axis(axes, points, logarithmic=False, name=name)
  low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
  plt.close(canvas)
  assert low <= min(values) and max(values) <= high and ((low, high) == (-0.04, 1.04)) == share
