"""Which rows are level with the best: paired where the samples were recorded, else by the intervals."""

import numpy as np
import pytest
from support.study_records import ACCURACIES, CONTEXT, LOSSES, cells, figures, study_of

from drope_jax.evaluate.figures import Figure, mean_figure
from drope_jax.evaluate.results import Result
from experiments.reporting import tables
from experiments.reporting.level import difference, standings

RNG = np.random.default_rng(0)
HARDNESS = RNG.normal(3.0, 1.0, 30)  # of documents: it is the same for every row


def test_a_small_difference_on_the_same_samples_is_seen_and_on_others_is_not():
  worse, better = (mean_figure("loss", HARDNESS + shift + RNG.normal(0, 0.05, 30)) for shift in (0.1, 0.0))
  value, low, high = difference(worse, better, same_samples=True)
  assert value == pytest.approx(worse.value - better.value) and 0.05 < low < value < high < 0.15
  _, low, high = difference(worse, better, same_samples=False)
  assert low < 0 < high and high - low > 0.5


def test_the_unpaired_interval_covers_as_often_as_it_says():
  held = 0
  for _ in range(200):
    one, other = (mean_figure("loss", RNG.normal(0.0, 1.0, 40)) for _ in range(2))
    _, low, high = difference(one, other, same_samples=False)
    held += low <= 0 <= high
  assert 0.88 < held / 200 <= 1.0


def test_without_samples_and_intervals_nothing_can_be_said():
  assert difference(Figure("loss", 3.0, 1), Figure("loss", 2.0, 1), same_samples=True) is None


def row(run, method, values, samples="same", **changes):
  common = {"task": "toy", "context": 256, "extension": 2.0, "seed": 0, "settings": {"text": samples, "weights": run}}
  figure = mean_figure("loss", values)
  return Result(run=run, method=method, **common, **{**figure._asdict(), **changes})


def test_pairing_wants_the_same_samples_whatever_the_weights(workdir):
  near = HARDNESS + 0.1 + RNG.normal(0, 0.05, 30)
  for samples, level in (("same", "–"), ("others", "2×")):
    (workdir / "results.jsonl").unlink(missing_ok=True)
    study = study_of(workdir, [row("nope", "nope", HARDNESS), row("drope", "nope", near, samples)])
    table = cells(tables.results_table(study, "toy", "loss").markdown)
    assert table["NoPE from scratch"][-1] == "2×" and table["DroPE, β = 1"][-1] == level


def test_the_column_names_the_lengths_and_the_best_stands_out(workdir):
  study = study_of(workdir, figures(LOSSES, ACCURACIES))
  needles = cells(tables.results_table(study, "needles", "accuracy").markdown)
  assert needles["accuracy"][-1] == tables.LEVEL
  assert needles["RoPE + YaRN"][-1] == "1×, 2×, 4×, 8×"
  assert needles["RoPE, continued"][-1] == "1×" and needles["DroPE"][-1] == "–"
  assert needles["RoPE + YaRN"][3] == "**0.900 (0.858 to 0.942)**" and needles["DroPE"][3] == "0.440 (0.371 to 0.509)"
  losses = cells(tables.results_table(study, "perplexity", "loss").markdown)
  assert losses["RoPE, cropped"][-1] == "1×, 2×, 4×, 8×" and losses["RoPE + YaRN"][-1] == "1×, 2×"


def test_a_metric_of_which_neither_more_nor_less_is_better_has_no_best(workdir):
  study = study_of(workdir, [row("nope", "nope", HARDNESS, better=None), row("drope", "nope", HARDNESS, better=None)])
  assert standings(study, "toy", "loss") == {}
  assert tables.LEVEL not in tables.results_table(study, "toy", "loss").markdown


def test_rows_with_the_same_value_are_level_and_none_stands_out(workdir):
  same = {label: (3.0,) * 4 for label in LOSSES}
  table = tables.results_table(study_of(workdir, figures(same, {})), "perplexity", "loss").markdown
  assert "**" not in table
  assert {line[-1] for name, line in cells(table).items() if name in LOSSES} == {"1×, 2×, 4×, 8×"}
  assert f"1× ({CONTEXT})" in table
