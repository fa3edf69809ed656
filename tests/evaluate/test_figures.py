"""Means with intervals, and what they are divided by."""

import numpy as np
import pytest

from drope_jax.evaluate.figures import Figure, bootstrap, figures_by_depth, mean_figure


def test_intervals_cover_the_true_mean_as_often_as_they_say():
  rng = np.random.default_rng(1)
  intervals = [bootstrap(rng.random(60) < 0.3, np.ones(60)) for _ in range(300)]
  covered = np.mean([low <= 0.3 <= high for low, high in intervals])
  assert 0.89 < covered < 0.99


def test_an_interval_is_that_of_the_samples_and_reproducible():
  values = np.random.default_rng(2).normal(5.0, 2.0, 400)
  figure = mean_figure("loss", values)
  assert figure.value == pytest.approx(values.mean()) and figure.n == 400
  assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
  assert mean_figure("loss", values) == figure
  assert mean_figure("loss", [3.0]) == Figure("loss", 3.0, 1, None, None, better="lower", values=(3.0,))
  with pytest.raises(ValueError, match="loss: there is no sample"):
    mean_figure("loss", [])


def test_weights_make_a_ratio_of_sums():
  figure = mean_figure("bits", [1.0, 4.0], weights_N=np.array([3.0, 1.0]), n=7)
  assert (figure.value, figure.n) == (1.75, 7) and 1.0 <= figure.low <= figure.high <= 4.0


def test_a_figure_says_what_is_better_and_keeps_the_samples_of_a_whole():
  assert mean_figure("loss", [1.0, 2.0]).better == "lower" and mean_figure("score", [1.0]).better == "higher"
  assert mean_figure("errors", [1.0], lower_is_better=True).better == "lower"
  assert mean_figure("accuracy", [True, False, True]).values == (1.0, 0.0, 1.0)
  assert mean_figure("bits", [1.0, 2.0], weights_N=np.array([1.0, 3.0])).values is None  # no mean of equal weights


def test_a_value_counts_for_the_nearest_depth_and_an_empty_depth_has_no_figure():
  figures = figures_by_depth("accuracy", [0.1, 0.2, 0.9], [1.0, 0.0, 1.0], (0.0, 0.25, 0.5, 1.0))
  assert [(one.by, one.at, one.value, one.n) for one in figures] == [
    ("depth", 0.0, 1.0, 1),
    ("depth", 0.25, 0.0, 1),
    ("depth", 1.0, 1.0, 1),
  ]


def test_several_values_of_a_sample_are_one_sample_of_their_depth():
  hits = np.random.default_rng(3).random(40) < 0.5
  each = np.arange(40)
  alone = figures_by_depth("score", np.zeros(40), hits, (0.0, 1.0))
  assert alone == [mean_figure("score", hits, by="depth", at=0.0)]
  fourfold = figures_by_depth("score", np.zeros(160), np.tile(hits, 4), (0.0, 1.0), np.tile(each, 4))
  assert fourfold == alone  # repetition makes nothing more certain
  uneven = figures_by_depth("score", [0.0, 0.1, 0.0, 1.0], [1, 1, 0, 1], (0.0, 1.0), [0, 0, 1, 1])
  assert [(one.at, one.value, one.n) for one in uneven] == [(0.0, 2 / 3, 2), (1.0, 1.0, 1)]
