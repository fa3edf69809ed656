"""Pictures over seeds draw every row, beside what it is compared with, and no two of a panel look alike."""

import dataclasses

import matplotlib.pyplot as plt
import pytest
from support.study_records import ACCURACIES, LOSSES, figures, study_of, write_study

from experiments.plan import Row
from experiments.reporting.groups import MOST, groups_of
from experiments.reporting.seed_plots import draw_lengths, draw_recovery
from experiments.reporting.summary import Place
from experiments.seeds import summary_of


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("study")
  write_study(workdir)
  study_of(workdir, figures(LOSSES, ACCURACIES))
  return summary_of([workdir], "study")


def with_more(summary, drops, partial):
  """The study with copies of its dropped model, some of them of another kind."""
  names = {f"drop_{i}": "DroPE" for i in range(drops)} | {f"partial_{i}": "partial drop" for i in range(partial)}
  copied = {}
  for place, found in summary.figures.items():
    if place.run == "drope" and place.method in ("nope", ""):
      copied |= {Place(name, *place[1:]): found for name in names}
  return dataclasses.replace(
    summary,
    rows=(*summary.rows, *(Row(name, "nope", f"{name}, β = 1") for name in names)),
    kinds={**summary.kinds, **names},
    controls={**summary.controls, **dict.fromkeys(names, "RoPE, continued")},
    figures={**summary.figures, **copied},
  )


def test_few_rows_share_one_panel(summary):
  (group,) = groups_of(summary)
  assert group.rows == summary.rows


@pytest.mark.parametrize(("drops", "partial"), [(5, 0), (15, 0), (11, 5), (30, 30)])
def test_every_row_is_in_a_group_with_its_control(summary, drops, partial):
  whole = with_more(summary, drops, partial)
  groups = groups_of(whole)
  assert {row for group in groups for row in group.rows} == set(whole.rows)
  for group in groups:
    assert len(group.rows) <= MOST
    assert {whole.control(row) for row in group.rows} - {None} <= set(group.rows)
    assert len({(look.color, look.dashes) for look in group.looks.values()}) == len(group.rows)


def test_the_pictures_name_every_row_and_every_recovery(summary):
  whole = with_more(summary, 11, 5)
  canvases = [draw_lengths(whole, group) for group in groups_of(whole)]
  named = {text.get_text() for canvas in canvases for text in canvas.legends[0].get_texts()}
  assert len(canvases) > 1 and named == {row.label for row in whole.rows}
  recovery = draw_recovery(whole)
  labels = [text.get_text() for axes in recovery.axes for text in axes.texts]
  assert sorted(labels) == sorted(["DroPE, β = 1", *(row.label for row in whole.rows[len(summary.rows) :])])
  assert len({axes.get_ylim() for axes in recovery.axes}) == 1 < len(recovery.axes)
  plt.close("all")
