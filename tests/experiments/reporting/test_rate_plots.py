"""The loss against the rate joins the runs that differ in it alone, under the name that they share."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from support.study_records import LOSSES, figures, study_of

from experiments.plan import Row
from experiments.reporting.rate_plots import draw_rates, rate_lines, sweep_label
from experiments.reporting.seed_tables import compared_with
from experiments.reporting.summary import Place
from experiments.reporting.summary_files import read_summary, write_summary
from experiments.seeds import summary_of


@pytest.fixture
def summary(workdir):
  """The dropped model at three rates; the control at one."""
  study_of(workdir, [one for one in figures(LOSSES, {}) if one.by is None])
  found = summary_of([workdir], "study")
  rates = {"drope": 1e-3, "drop_slow": 1e-4, "drop_fast": 1e-2}
  made, rows = {}, list(found.rows)
  for run, rate in list(rates.items())[1:]:
    rows.append(Row(run, "nope", f"DroPE, rate {rate:g}, β = 1"))
    for place, (figure,) in found.figures.items():
      if (place.run, place.method) == ("drope", "nope"):
        value = figure.value + rate
        made[Place(run, *place[1:])] = (figure._replace(value=value, low=value - 0.1, high=value + 0.2),)
  controls = {**found.controls, **dict.fromkeys(rates, "RoPE, continued")}
  return dataclasses.replace(found, rows=tuple(rows), figures=found.figures | made, controls=controls, sweeps=(rates,))


def test_a_sweep_is_a_line_and_its_control_a_level(summary):
  (row,) = rate_lines(summary)
  assert row.label == "DroPE, β = 1"
  (axes,) = draw_rates(summary).axes
  sweep, level = (line for line in axes.lines if line.get_marker() not in "|_")  # which are the caps of bars
  np.testing.assert_allclose(sweep.get_xdata(), [1e-4, 1e-3, 1e-2])
  np.testing.assert_allclose(sweep.get_ydata(), [3.2701, 3.27, 3.28])
  np.testing.assert_allclose(level.get_ydata(), 2.89)
  assert {text.get_text() for text in axes.texts} == {"DroPE, β = 1", "RoPE, continued"}
  plt.close("all")


def test_sweeps_are_stored_and_a_study_without_them_has_no_such_picture(summary, tmp_path):
  write_summary(summary, tmp_path / "data", "study")
  assert read_summary(tmp_path / "data" / "study.json").sweeps == summary.sweeps
  path = tmp_path / "data" / "study.json"
  text = path.read_text()
  start, end = text.index('"sweeps"'), text.index("]", text.index('"sweeps"'))
  path.write_text(text[:start].rstrip().removesuffix(",") + text[end + 1 :])  # as earlier versions wrote it
  earlier = read_summary(path)
  assert earlier.sweeps == () and draw_rates(earlier) is None


def test_a_page_says_that_controls_have_the_same_rate_only_where_they_do(summary):
  assert "rate" not in compared_with(summary)
  controls = {**summary.controls, "drope": "NoPE from scratch"}
  by_rate = dataclasses.replace(summary, controls=controls, sweeps=({"rope_continued": 1e-3, "nope": 1e-4},))
  assert "peak rate" in compared_with(by_rate)


@pytest.mark.parametrize(
  ("labels", "shared"),
  [
    (
      ["dropped (QK-norm: full, 0.0003), β = 1", "dropped (QK-norm: full, 0.003), β = 1"],
      "dropped (QK-norm: full), β = 1",
    ),
    (["RoPE, continued", "RoPE, continued, rate × 0.3", "RoPE, continued, rate × 2"], "RoPE, continued"),
    (["DroPE, β = 1", "DroPE, rate × 0.3, β = 1"], "DroPE, β = 1"),
    (["rate × 0.1, β = 1", "rate × 0.2, β = 1"], "rate, β = 1"),
    (["slow", "fast"], "slow"),
    (["dropped, β = 1", "rate × 2, β = 1"], "dropped, β = 1"),
  ],
)
def test_the_name_of_a_sweep_is_what_its_labels_share(labels, shared):
  assert sweep_label(labels) == shared
