"""The tables: numbers are in the right cells, and nothing is left out silently."""

import math

import pytest
from support.study_records import (
  ACCURACIES,
  CONTEXT,
  CONTEXTS,
  LOSSES,
  cells,
  figures,
  study_of,
  temperature_fit,
  write_run,
)

from drope_jax.config import InitConfig
from drope_jax.evaluate.figures import Figure
from drope_jax.evaluate.results import Result
from drope_jax.objective import Distill
from drope_jax.positions import RoPE
from drope_jax.transitions import Drop
from experiments.reporting import tables, training_tables
from experiments.reporting.table import MISSING
from experiments.reporting.writing import markdown

NEEDLE = {"run": "drope", "method": "nope", "task": "needles", "context": 128, "extension": 1.0, "metric": "accuracy"}
WHOLE = ("accuracy", None, None)


def test_a_table_holds_every_figure(workdir):
  study = study_of(workdir, figures(LOSSES, ACCURACIES))
  perplexities = cells(tables.results_table(study, "perplexity", "loss", as_perplexity=True).markdown)
  assert perplexities["perplexity"][:4] == [f"{c // CONTEXT}× ({c:,}), n = 100,000" for c in CONTEXTS]
  shown = [cell.strip("*").split(" ")[0] for cell in perplexities["DroPE"][:4]]
  assert shown == [f"{math.exp(loss):.1f}" for loss in LOSSES["DroPE"]]
  assert study.metrics("perplexity") == ["loss", "bits_per_byte"] and study.tasks == ["perplexity", "needles"]


def test_what_is_missing_is_shown_as_missing(workdir):
  losses = {**LOSSES, "RoPE + YaRN": (2.89, None, None, 3.44)}
  del losses["DroPE"]
  table = cells(tables.results_table(study_of(workdir, figures(losses, {})), "perplexity", "loss").markdown)
  assert table["RoPE + YaRN"][1:3] == [MISSING, MISSING]
  assert "DroPE" not in table and "DroPE, β = 1" in table


def test_samples_are_counted_by_cell_where_they_differ(workdir):
  found = [Result(value=0.5, n=n, seed=0, **{**NEEDLE, "method": m}) for n, m in ((50, "nope"), (200, "drope"))]
  table = cells(tables.results_table(study_of(workdir, found), "needles", "accuracy").markdown)
  assert table["accuracy"][0] == "1× (128)"
  assert table["DroPE"][0] == "0.500, n = 200" and table["DroPE, β = 1"][0] == "0.500, n = 50"


def test_parts_have_a_table_of_the_longest_length_in_their_order(workdir):
  study = study_of(workdir, figures(LOSSES, ACCURACIES))
  assert tables.divisions(study, "perplexity") == [("loss", "position")]
  table = cells(tables.parts_table(study, "perplexity", "loss", "position").markdown)
  first, *others = table
  assert "perplexity by position" in first and "1,024" in first and others[1:3] == ["0–64", "64–128"]
  assert len(others) == 1 + 1024 // 64
  assert table["64–128"][0] == tables.show_perplexity(LOSSES["RoPE, continued"][3] - 64 / 5000)


@pytest.mark.parametrize(
  ("at", "shown"), [(0.25, "0.25"), (64, "64"), ((128, 192), "128–192"), ((8000, None), "8,000–"), (None, MISSING)]
)
def test_a_part_is_written_as_what_it_is(at, shown):
  assert tables.show_at(at) == shown


def test_evaluation_seeds_are_pooled_with_their_samples(workdir):
  halves = [((0.0, 1.0) * 50, 0), ((1.0, 1.0, 0.0, 1.0) * 50, 1)]
  found = [
    Result(value=sum(values) / len(values), n=len(values), seed=seed, values=values, better="higher", **NEEDLE)
    for values, seed in halves
  ]
  study = study_of(workdir, found)
  figure = study.figure(study.rows[3], "needles", 128, WHOLE)
  assert (figure.value, figure.n) == (pytest.approx(200 / 300), 300) and 0.6 < figure.low < figure.high < 0.73


def test_seeds_without_their_samples_are_pooled_without_an_interval(workdir):
  found = [Result(value=0.4, n=100, seed=0, low=0.3, high=0.5, **NEEDLE), Result(value=0.7, n=200, seed=1, **NEEDLE)]
  study = study_of(workdir, found)
  assert study.figure(study.rows[3], "needles", 128, WHOLE) == Figure("accuracy", pytest.approx(0.6), 300)


def test_of_a_measurement_with_other_settings_only_the_last_counts(workdir):
  first = [Result(value=0.4, n=100, seed=0, by=by, at=at, **NEEDLE) for by, at in ((None, None), ("depth", 0.25))]
  study = study_of(workdir, [*first, Result(value=0.7, n=200, seed=0, settings={"samples": 200}, **NEEDLE)])
  assert study.at(study.rows[3], "needles", 128).figures == {WHOLE: Figure("accuracy", 0.7, 200)}


def test_what_was_measured_without_being_a_row_of_the_study_gets_one(workdir):
  more = Result(value=3.0, n=10, seed=0, **{**NEEDLE, "run": "rope", "method": "rope+0.1", "task": "another"})
  study = study_of(workdir, [*figures(LOSSES, {}), more])
  assert (study.rows[-1].run, study.rows[-1].method) == ("rope", "rope+0.1") and study.tasks[-1] == "another"
  assert list(cells(tables.results_table(study, "another", "accuracy").markdown))[-1] == study.rows[-1].label


def test_the_temperature_fit_warns_at_the_edge_of_its_grid(workdir):
  study = study_of(workdir, temperature_fit({256: 1.3, 512: 1.4, 1024: 1.8}))
  text = "\n\n".join(map(markdown, training_tables.temperature_section(study)))
  assert "c = **0.290**" in text
  assert "| 2× (256) | 1 to 1.8 | 1.30 | 1.20 | 3.490 | 3.410 |" in text  # between 1.2 and 1.4
  assert "| 4× (512) | 1 to 1.8 | 1.40 | 1.40 | 3.560 | 3.400 |" in text
  assert "| 8× (1,024) | 1 to 1.8 | 1.80* | 1.60 |" in text and "**Warning:** at 8× the best β" in text
  (workdir / "results.jsonl").unlink()
  text = map(markdown, training_tables.temperature_section(study_of(workdir, temperature_fit({256: 1.2}))))
  assert "Warning" not in "\n\n".join(text)


def test_runs_table_tells_what_was_trained_from_the_records_of_training_alone(workdir):
  study = study_of(workdir, figures(LOSSES, {}))
  last = study.runs["drope"].last
  assert last is not None and "kind" not in last
  row = cells(training_tables.runs_table(study).markdown)["`drope`"]
  flops = f"{1_638_400 * (6 * 1_310_720 + 12 * 6 * 4 * 32 * 128):.2e}"  # 1,664 of the parameters are of norms
  figures_of_run = ["400", "1,638,400", flops, f"{last['loss']:.3f}", "1 min 20 s", "21,000"]
  assert row == ["`rope`, DroPE", "1,312,384", *figures_of_run]
  described = training_tables.arms_described(study)
  assert "RoPE, continued 4.92M, DroPE 4.92M, NoPE from scratch 4.92M" in described


def test_a_teacher_that_runs_for_half_of_the_steps_costs_a_sixth(workdir):
  (workdir / "runs").unlink()
  init = InitConfig(checkpoint="runs/rope", transition=Drop())
  write_run(workdir / "runs" / "drope", init=init, objective=Distill(until=0.5))
  write_run(workdir / "runs" / "nope", steps=400)
  table = cells(training_tables.runs_table(study_of(workdir, figures(LOSSES, {}))).markdown)
  distilled, plain = (float(table[f"`{name}`"][4]) for name in ("drope", "nope"))
  assert distilled / plain == pytest.approx(7 / 6, rel=1e-2)


def test_an_arm_that_branches_off_an_earlier_step_counts_the_tokens_before_it(workdir):
  (workdir / "runs").unlink()
  write_run(workdir / "runs" / "rope", steps=800, positions=RoPE())
  write_run(workdir / "runs" / "drope", init=InitConfig(checkpoint="runs/rope", step=600, transition=Drop()))
  study = study_of(workdir, figures(LOSSES, {}))
  assert study.arm_tokens(study.arms[1]) == (600 + 400) * 4096
  assert study.arm_tokens(study.arms[0]) is None  # rope_continued has not begun
  table = cells(training_tables.runs_table(study).markdown)
  assert table["`drope`"][0] == "`rope` at step 600, DroPE" and set(table["`nope`"]) == {MISSING}
