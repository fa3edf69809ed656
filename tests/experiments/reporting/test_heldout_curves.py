"""Held-out curves: their points, their intervals over documents, and paired differences from the control's."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from support.study_records import LOSSES, cells, figures, study_of, write_study

from drope_jax.config import TrainConfig
from drope_jax.errors import ReportError
from drope_jax.serialization import load_config, save_config
from experiments.reporting import training_plots, training_tables
from experiments.reporting.axes import STYLE
from experiments.reporting.heldout import gap_curve, heldout_curve
from experiments.reporting.records import read_study
from experiments.reporting.seed_curves import recovery
from experiments.reporting.study_page import DATA
from experiments.reporting.summary_files import read_summary
from experiments.seeds import summary_of, write_study_page

STEPS = [0, 200 * 4096, 400 * 4096]  # in tokens
T7 = 2.364624  # Student's t(0.975) of eight groups, from a table
GROUPS = np.linspace(-0.7, 0.7, 8)  # what a group of documents is harder than their mean; sd 0.489898


def with_groups(workdir, groups):
  """The records of each run with losses by group: `groups(run, loss)`."""
  for name in ("rope_continued", "drope"):
    path = workdir / "runs" / name / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for record in found:
      if record.get("kind") == "eval":
        record["loss_by_group"] = list(groups(name, record["loss"]))
    path.write_text("".join(json.dumps(record) + "\n" for record in found))


@pytest.fixture
def own(tmp_path):
  """A study whose records a test may change."""
  write_study(tmp_path)
  study_of(tmp_path, figures(LOSSES, {}))
  return tmp_path


def test_records_without_groups_give_a_curve_without_intervals(workdir):
  study = study_of(workdir, figures(LOSSES, {}))
  curve, gap = heldout_curve(study.runs["drope"]), gap_curve(study, study.runs["drope"])
  assert curve.tokens_N.tolist() == STEPS and curve.losses_N.tolist() == [6.2, 3.4, 3.2]
  assert heldout_curve(study.runs["drope"], 8).losses_N.tolist() == [3.5]
  assert gap.tokens_N.tolist() == STEPS
  np.testing.assert_allclose(gap.losses_N, [3.25, 0.5, 0.35])
  assert np.isnan(curve.ends_N2).all() and np.isnan(gap.ends_N2).all()
  assert not gap_curve(study, study.runs["rope_continued"]) and not heldout_curve(study.runs["nope"])
  table = cells(training_tables.heldout_table(study).markdown)
  assert table["DroPE"] == ["DroPE", "1.64M", "6.200", "3.200", "+0.350"]
  assert table["RoPE, continued"][-2:] == ["2.850", "–"] and "NoPE from scratch" not in table


def test_the_difference_from_the_control_is_taken_at_the_same_step(own):
  """Also where the control has read twice as many tokens by then; the picture says so."""
  path = own / "runs" / "rope_continued" / "metrics.jsonl"
  found = [json.loads(line) for line in path.read_text().splitlines()]
  doubled = [record | ({"tokens": 2 * record["tokens"]} if "tokens" in record else {}) for record in found]
  path.write_text("".join(json.dumps(record) + "\n" for record in doubled))
  study = read_study(own)
  gap = gap_curve(study, study.runs["drope"])
  assert gap.steps_N.tolist() == [0, 200, 400] and gap.tokens_N.tolist() == STEPS
  np.testing.assert_allclose(gap.losses_N, [3.25, 0.5, 0.35])
  assert "step" in training_plots.plot_recovery(study).axes[1].get_title()


def test_intervals_are_over_documents_and_of_differences_they_are_paired(own):
  """Documents differ much, but in the same way for both runs: only the paired interval is narrow."""
  spread = {"rope_continued": GROUPS, "drope": GROUPS * 1.01}
  with_groups(own, lambda run, loss: loss + spread[run])
  study = read_study(own)
  curve, gap = heldout_curve(study.runs["rope_continued"]), gap_curve(study, study.runs["drope"])
  half = T7 * 0.489898 / 8**0.5
  np.testing.assert_allclose(curve.ends_N2 - curve.losses_N[:, None], [[-half, half]] * 3, rtol=1e-5)
  np.testing.assert_allclose(gap.ends_N2 - gap.losses_N[:, None], [[-half / 100, half / 100]] * 3, rtol=1e-5)
  assert cells(training_tables.heldout_table(study).markdown)["DroPE"][-1] == "+0.350 (+0.346 to +0.354)"


def test_runs_that_chose_other_documents_are_not_paired(own):
  with_groups(own, lambda run, loss: loss + GROUPS)
  path = own / "runs" / "drope" / "config.json"
  save_config(dataclasses.replace(load_config(TrainConfig, path), eval_extensions=(1, 8)), path)
  study = read_study(own)
  gap = gap_curve(study, study.runs["drope"])
  assert len(gap.losses_N) == 3 and np.isnan(gap.ends_N2).all()
  assert np.isfinite(heldout_curve(study.runs["drope"]).ends_N2).all()


@pytest.mark.parametrize("groups", [[3.0], [float("nan"), 3.0], [None, 3.0], []])
def test_too_little_to_say_leaves_the_interval_out(own, groups):
  with_groups(own, lambda run, loss: groups)
  assert np.isnan(heldout_curve(read_study(own).runs["drope"]).ends_N2).all()


def test_a_loss_that_was_not_finite_is_no_point_of_the_curve(own):
  before = list(read_study(own).runs["drope"].heldout_losses())
  path = own / "runs" / "drope" / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  last = next(line for line in reversed(lines) if line.get("kind") == "eval" and line["extension"] == 1)
  last |= {"loss": None, "loss_by_group": [None, 3.0]}
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  run = read_study(own).runs["drope"]
  assert list(run.heldout_losses()) == before[:-1] and last["step"] == before[-1]


def test_groups_that_are_no_numbers_are_named(own):
  with_groups(own, lambda run, loss: ["3.0"])
  with pytest.raises(ReportError, match=r"metrics\.jsonl: record 1 has loss_by_group = \['3.0'\]"):
    read_study(own)


def test_the_recovery_plot_of_one_seed_has_a_band_for_each_curve(own):
  with_groups(own, lambda run, loss: loss + GROUPS)
  with plt.rc_context(STYLE):
    canvas = training_plots.plot_recovery(read_study(own))
  losses, gaps = canvas.axes
  assert [len(panel.collections) for panel in (losses, gaps)] == [2, 1]
  low, high = losses.dataLim.intervaly
  assert low == pytest.approx(2.85 - T7 * 0.489898 / 8**0.5, abs=1e-4) and high > 6.2
  plt.close(canvas)


@pytest.mark.parametrize(
  ("last", "scale", "lines"), [(2.9, "log", []), (3.2, "linear", [[0, 0]]), (2.8, "linear", [[0, 0]])]
)
def test_positive_gaps_that_differ_more_than_tenfold_have_a_log_axis(own, last, scale, lines):
  path = own / "runs" / "drope" / "metrics.jsonl"
  records = [json.loads(line) for line in path.read_text().splitlines()]
  next(r for r in reversed(records) if r.get("kind") == "eval" and r["extension"] == 1)["loss"] = last
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  with plt.rc_context(STYLE):
    canvas = training_plots.plot_recovery(read_study(own))
  gaps = canvas.axes[1]
  assert gaps.get_yscale() == scale
  assert [list(line.get_ydata()) for line in gaps.lines if len(line.get_ydata()) == 2] == lines
  plt.close(canvas)


def test_the_page_of_one_seed_has_the_band_and_says_of_what(own, tmp_path_factory):
  with_groups(own, lambda run, loss: loss + GROUPS * (1.01 if run == "drope" else 1))
  path = write_study_page([own], tmp_path_factory.mktemp("results") / "quick.md")
  summary = read_summary(path.parent / DATA / "quick.json")
  half = T7 * 0.00489898 / 8**0.5
  found = recovery(summary, "drope")
  assert [(one.low, one.high) for one in found.values()] == [
    (pytest.approx(gap - half, abs=1e-5), pytest.approx(gap + half, abs=1e-5)) for gap in (3.25, 0.5, 0.35)
  ]
  assert "Band: 95 % interval over documents, paired with the control's" in path.read_text()
  other = summary_of([own], "quick", control="NoPE from scratch")  # with which no documents are paired
  assert all(one.low is None for one in recovery(other, "drope").values())
