"""The report: numbers in the right cells, a finding that follows them, and nothing left out in silence."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from drope_jax.config import DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.errors import ReportError
from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from drope_jax.positions import RoPE
from drope_jax.serialization import save_config
from drope_jax.transitions import Keep
from experiments.report import main, write_report
from experiments.reporting import plots, tables
from experiments.reporting.finding import (
  PERPLEXITY,
  RETRIEVAL,
  Measure,
  compare_accuracies,
  compare_losses,
  finding,
  sides_note,
  spread_note,
)
from experiments.reporting.records import Figure, Study, read_study

CONTEXT = 128
CONTEXTS = (128, 256, 512, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TOKENS = 100_000  # behind each loss
PROMPTS = 200  # behind each accuracy
ARMS = [
  {"label": "RoPE, continued", "runs": ["rope", "rope_continued"], "role": "control"},
  {"label": "DroPE", "runs": ["rope", "drope"], "role": "drope"},
  {"label": "NoPE from scratch", "runs": ["nope"], "role": "baseline"},
]
ROWS = [
  ("rope_continued", "rope", "RoPE, continued"),
  ("rope_continued", "pi", "RoPE + PI"),
  ("rope_continued", "ntk", "RoPE + NTK"),
  ("rope_continued", "yarn", "RoPE + YaRN"),
  ("rope_continued", "crop", "RoPE, cropped"),
  ("drope", "nope", "DroPE, β = 1"),
  ("drope", "drope", "DroPE"),
  ("nope", "nope", "NoPE from scratch"),
]
# Loss at the four lengths, much as a prototype measured it.
LOSSES = {
  "RoPE, continued": (2.89, 3.00, 3.39, 3.91),
  "RoPE + PI": (2.89, 3.18, 3.61, 4.03),
  "RoPE + NTK": (2.89, 2.91, 3.06, 3.44),
  "RoPE + YaRN": (2.89, 2.98, 3.12, 3.35),
  "RoPE, cropped": (2.89, 2.93, 2.95, 2.97),
  "DroPE, β = 1": (3.27, 3.39, 3.59, 3.84),
  "DroPE": (3.27, 3.36, 3.47, 3.60),
  "NoPE from scratch": (3.25, 3.32, 3.50, 3.71),
}
ACCURACIES = {
  "RoPE, continued": (1.0, 0.62, 0.3, 0.12),
  "RoPE + PI": (1.0, 1.0, 0.95, 0.8),
  "RoPE + NTK": (1.0, 0.98, 0.8, 0.55),
  "RoPE + YaRN": (1.0, 1.0, 0.97, 0.9),
  "RoPE, cropped": (1.0, 0.5, 0.25, 0.13),
  "DroPE, β = 1": (0.9, 0.7, 0.5, 0.3),
  "DroPE": (0.9, 0.8, 0.66, 0.44),
  "NoPE from scratch": (0.88, 0.75, 0.5, 0.31),
}


def _write_run(workdir: Path, name: str, steps: int, start: float, end: float, init: InitConfig | None = None) -> None:
  directory = workdir / "runs" / name
  directory.mkdir(parents=True)
  model = ModelConfig(
    vocab_size=1024, d_model=128, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384,
    positions=RoPE() if name.startswith("rope") else None,
  )  # fmt: skip
  data, optim = DataConfig(directory="corpus", context=CONTEXT, batch_size=32), OptimConfig(peak_lr=1e-3)
  save_config(TrainConfig(model=model, init=init, data=data, optim=optim, steps=steps), directory / "config.json")
  lines = []
  for step in range(10, steps + 1, 10):
    noise = 0.03 * math.sin(step * 12.9898 + len(name)) + 0.02 * math.sin(step * 78.233)
    loss = end + (start - end) * math.exp(-12 * step / steps) + noise
    record = {"step": step, "tokens": step * 4096, "loss": loss, "grad_norm": 0.5, "learning_rate": 1e-3}
    record |= {"tokens_per_second": None if step == 10 else 21_000.0, "mfu": None, "seconds": step * 0.2}
    lines.append(json.dumps(record) + "\n")
  (directory / "metrics.jsonl").write_text("".join(lines))


def _figures(losses: Mapping[str, Any], accuracies: Mapping[str, Any]) -> list[Result]:
  """Every figure of the evaluation; a row left out of a mapping, or a None in it, was not measured."""
  found: list[Result] = []
  for run, method, label in ROWS:
    for i, context in enumerate(CONTEXTS):
      common = {"run": run, "method": method, "context": context, "extension": context / CONTEXT, "seed": 0}
      loss, accuracy = (values.get(label, (None,) * 4)[i] for values in (losses, accuracies))
      if loss is not None:
        metrics = {"loss": loss}
        for start in range(0, context, 64):
          drift = loss - losses[label][0]  # what is lost beyond the training context grows with the position
          share = 1.6 * max(start - CONTEXT + 64, 0) / context - 0.25 * math.exp(-start / 60) - 0.15
          metrics[results.loss_between(start, start + 64)] = (
            losses[label][0] + drift * share + 0.5 * math.exp(-start / 40)
          )
        found += [Result(task="perplexity", metric=name, value=v, n=TOKENS, **common) for name, v in metrics.items()]
      if accuracy is not None:
        metrics = {"accuracy": accuracy}
        metrics |= {
          results.at_depth(results.ACCURACY, d): min(max(accuracy + 0.3 * (d - 0.5), 0.0), 1.0) for d in DEPTHS
        }
        found += [Result(task="needles", metric=name, value=v, n=PROMPTS, **common) for name, v in metrics.items()]
  return found


def _temperature(best: Mapping[int, float], grid: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8)) -> list[Result]:
  found = []
  for context, beta in best.items():
    metrics = {f"loss@beta={b:.2f}": 3.4 + (b - beta) ** 2 for b in grid} | {"beta": beta}
    common = {"run": "drope", "method": "drope", "task": "temperature", "context": context, "seed": 0, "n": 5000}
    found += [Result(metric=k, value=v, extension=context / CONTEXT, **common) for k, v in metrics.items()]
  return [*found, Result(metric="c", value=0.29, extension=1.0, **{**common, "context": CONTEXT})]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
  """A study that was trained and never evaluated."""
  workdir = tmp_path_factory.mktemp("trained")
  study = {
    "title": "Dropping positional embeddings, in small",
    "command": "python -m experiments.quickstart --workdir=runs/quickstart",
    "seed": 0,
    "train_context": CONTEXT,
    "machine": "2 CPU cores, 4 GiB",
    "versions": {"jax": "0.9.0", "flax": "0.12.0"},
    "seconds": 512.3,
    "tasks": ["perplexity", "needles"],
    "arms": ARMS,
    "rows": [dict(zip(("run", "method", "label"), row, strict=True)) for row in ROWS],
  }
  (workdir / "study.json").write_text(json.dumps(study))
  _write_run(workdir, "rope", 800, 7.0, 3.0)
  _write_run(workdir, "rope_continued", 400, 2.95, 2.85, InitConfig(checkpoint="runs/rope", transition=Keep()))
  _write_run(workdir, "drope", 400, 6.2, 3.2, InitConfig(checkpoint="runs/rope"))
  _write_run(workdir, "nope", 1200, 7.0, 3.2)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
  """The same with room for results of a test's own."""
  (tmp_path / "study.json").write_text((trained / "study.json").read_text())
  (tmp_path / "runs").symlink_to(trained / "runs")
  return tmp_path


def _study(workdir: Path, figures: Sequence[Result]) -> Study:
  results.append(workdir / "results.jsonl", figures)
  return read_study(workdir)


def _with(values: Mapping[str, tuple[float, ...]], **changes: tuple[float, ...]) -> dict[str, Any]:
  """`values` with some rows changed; keyword names are the rows' short names."""
  short = {"control": "RoPE, continued", "pi": "RoPE + PI", "yarn": "RoPE + YaRN", "crop": "RoPE, cropped"}
  short |= {"drope": "DroPE", "beta1": "DroPE, β = 1", "ntk": "RoPE + NTK", "nope": "NoPE from scratch"}
  return {**values, **{short[name]: value for name, value in changes.items()}}


def _cells(study: Study, measure: Measure) -> dict[str, list[str]]:
  """The table by its first column."""
  lines = tables.results_table(study, measure).splitlines()
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory) -> Path:
  """A whole study with its report."""
  workdir = tmp_path_factory.mktemp("written")
  (workdir / "study.json").write_text((trained / "study.json").read_text())
  (workdir / "runs").symlink_to(trained / "runs")
  fitted = _temperature({256: 1.2, 512: 1.4, 1024: 1.8})
  results.append(workdir / "results.jsonl", [*_figures(LOSSES, ACCURACIES), *fitted])
  assert write_report(workdir) == workdir / "report.md"
  return workdir


# --- what is level -----------------------------------------------------------------------------


def test_losses_are_level_within_the_seed_and_with_few_tokens_within_those():
  assert compare_losses(Figure(3.00, TOKENS), Figure(3.06, TOKENS)) == 1
  assert compare_losses(Figure(3.06, TOKENS), Figure(3.00, TOKENS)) == -1
  assert compare_losses(Figure(3.00, TOKENS), Figure(3.049, TOKENS)) == 0
  assert compare_losses(Figure(3.00, 400), Figure(3.09, TOKENS)) == 0  # 1.96 / sqrt(400) = 0.098
  assert compare_losses(Figure(3.00, 400), Figure(3.11, TOKENS)) == 1


def test_accuracies_are_level_unless_their_difference_is_significant():
  assert compare_accuracies(Figure(0.60, 200), Figure(0.50, 200)) == 1  # z = 2.01
  assert compare_accuracies(Figure(0.50, 200), Figure(0.60, 200)) == -1
  assert compare_accuracies(Figure(0.59, 200), Figure(0.50, 200)) == 0  # z = 1.81
  assert compare_accuracies(Figure(0.60, 20), Figure(0.40, 20)) == 0
  assert compare_accuracies(Figure(1.0, 7), Figure(1.0, 3)) == 0
  assert compare_accuracies(Figure(0.0, 50), Figure(0.0, 50)) == 0


# --- the finding -------------------------------------------------------------------------------


def _words(sentence: str) -> int:
  return len(sentence.replace(" %", "%").split())


def test_finding_of_a_drop_that_is_not_repaid(workdir):
  study = _study(workdir, _figures(LOSSES, ACCURACIES))
  first, second = finding(study).split(" At the training context ")
  assert first == (
    "With one seed, at 8× the training context, DroPE finds 44 % of needles, more than its control "
    "(RoPE, continued: 12 %) but fewer than the best training-free method (90 %); in perplexity (36.6) it is better "
    "than the control (49.9) but worse than the best such method (19.5)."
  )
  assert second == (
    "of 128 tokens, DroPE is worse than the control in needle retrieval (90 % against 100 %) and in perplexity "
    "(26.3 against 18.0); at 8×, NoPE from scratch is worse than DroPE in needle retrieval (31 %) and in perplexity "
    "(40.9)."
  )
  assert max(_words(first), 4 + _words(second)) <= 46
  assert sides_note(study) == (
    "The control (RoPE, continued) keeps the positional embedding. The best dropped row at 8×: DroPE in needle "
    "retrieval (44 %) and DroPE in perplexity (36.6). The best training-free method at 8×: RoPE + YaRN in needle "
    "retrieval (90 %) and RoPE, cropped in perplexity (19.5)."
  )


def test_finding_of_the_papers_ordering(workdir):
  losses = _with(LOSSES, drope=(2.90, 2.88, 2.86, 2.85), beta1=(2.90, 2.9, 2.95, 3.2))
  accuracies = _with(ACCURACIES, drope=(1.0, 1.0, 1.0, 0.99), beta1=(1.0, 0.9, 0.8, 0.6))
  text = finding(_study(workdir, _figures(losses, accuracies)))
  assert "finds 99 % of needles, more than its control (RoPE, continued: 12 %) and the best training-free" in text
  assert "(17.3) it is better than the control (49.9) and the best such method (19.5)." in text
  assert "is level with the control in needle retrieval (100 % against 100 %) and in perplexity (18.2 against" in text


def test_finding_that_differs_between_perplexity_and_retrieval(workdir):
  losses = _with(LOSSES, drope=(2.80, 3.0, 3.5, 4.2), beta1=(2.80, 3.0, 3.5, 4.3), nope=(2.80, 3.0, 3.5, 4.1))
  accuracies = _with(ACCURACIES, drope=(0.9, 0.9, 0.9, 0.91), beta1=(0.9, 0.8, 0.7, 0.6))
  text = finding(_study(workdir, _figures(losses, accuracies)))
  assert "91 % of needles, more than its control (RoPE, continued: 12 %) but level with the best training-" in text
  assert "in perplexity (66.7) it is worse than the control (49.9) and the best such method (19.5)." in text
  assert "worse than the control in needle retrieval (90 % against 100 %) but better in perplexity (16.4 aga" in text
  assert "NoPE from scratch is worse than DroPE in needle retrieval (31 %) but better in perplexity (60.3)." in text


def test_finding_where_the_temperature_helps_one_and_hurts_the_other(workdir):
  study = _study(workdir, _figures(_with(LOSSES, beta1=(3.27, 3.3, 3.4, 3.5)), ACCURACIES))
  assert "DroPE at its best finds 44 % of needles" in finding(study) and "in perplexity (33.1) it" in finding(study)
  assert "row at 8×: DroPE in needle retrieval (44 %) and DroPE, β = 1 in perplexity (33.1)." in sides_note(study)


def test_finding_takes_the_dropped_row_that_is_level_with_the_best_in_both(workdir):
  losses = _with(LOSSES, beta1=(3.27, 3.36, 3.47, 3.61))
  accuracies = _with(ACCURACIES, beta1=(0.9, 0.8, 0.66, 0.6))
  text = finding(_study(workdir, _figures(losses, accuracies)))
  assert "DroPE finds 60 % of needles" in text and "in perplexity (37.0) it is" in text


def test_finding_of_ties_among_all_and_among_many(workdir):
  level = {label: (3.0, 3.0, 3.0, 3.0 + 0.002 * i) for i, label in enumerate(LOSSES)}
  accuracies = {label: (0.5, 0.5, 0.5, 0.5) for label in list(ACCURACIES)[:4]}
  accuracies |= {label: (0.5, 0.5, 0.5, 0.1) for label in list(ACCURACIES)[4:]}
  study = _study(workdir, _figures(level, accuracies))
  text = finding(study)
  assert "10 % of needles, fewer than its control (RoPE, continued: 50 %) and the best training-free method" in text
  assert "it is level with the control (20.1) and the best such method (20.1)." in text
  assert "at 8×, NoPE from scratch is level with DroPE in needle retrieval (10 %) and in perplexity (20.4)." in text
  assert "RoPE + PI in needle retrieval (50 %; level with it: RoPE + NTK, RoPE + YaRN) and" in sides_note(study)


def test_finding_where_nobody_retrieves(workdir):
  study = _study(workdir, _figures(LOSSES, {label: (0.0,) * 4 for label in LOSSES}))
  text = finding(study)
  assert "no row finds a single needle; in perplexity (36.6) DroPE is better than its control (RoPE, cont" in text
  assert "level with the control in needle retrieval (0 % against 0 %) but worse in perplexity" in text
  assert "retrieval" not in sides_note(study)


def test_finding_of_what_was_not_measured(workdir):
  text = finding(_study(workdir, _figures(LOSSES, {})))
  assert "needle retrieval was not measured there; in perplexity (36.6) DroPE is better than its control" in text
  assert "but worse than the best training-free method (19.5)." in text
  assert "DroPE is worse than the control in perplexity (26.3 against 18.0); at 8×, NoPE" in text
  assert "needles" not in text


def test_finding_within_the_training_context_alone(workdir):
  losses = {label: values[:1] + (None,) * 3 for label, values in LOSSES.items()}
  study = _study(workdir, _figures(losses, {}))
  assert finding(study) == (
    "With one seed, at the training context of 128 tokens, DroPE is worse than the control in perplexity "
    "(26.3 against 18.0); NoPE from scratch is level with DroPE in perplexity (25.8). "
    "Nothing was measured beyond the training context."
  )
  assert sides_note(study) == "The control (RoPE, continued) keeps the positional embedding."


def test_finding_without_a_dropped_model_or_a_control(workdir):
  without_control = {label: values for label, values in LOSSES.items() if label in ("DroPE", "NoPE from scratch")}
  text = finding(_study(workdir, _figures(without_control, {})))
  assert "in perplexity (36.6) DroPE is without a comparison." in text
  assert "cannot be compared with its control: their figures are missing; at 8×, NoPE from scratch is worse" in text
  (workdir / "results.jsonl").unlink()
  kept = {label: values for label, values in LOSSES.items() if "DroPE" not in label}
  text = finding(_study(workdir, _figures(kept, {})))
  assert "context, the dropped model was not measured. At" in text
  assert text.endswith("cannot be compared with its control: their figures are missing.")
  data = json.loads((workdir / "study.json").read_text())
  data["arms"], data["rows"] = data["arms"][:1], data["rows"][:5]
  (workdir / "study.json").write_text(json.dumps(data))
  assert finding(read_study(workdir)) == (
    "Of dropping nothing can be said: no row of this study is of a dropped model. "
    "With one seed, at 8× the training context, the best are RoPE, cropped in perplexity (19.5)."
  )


def test_finding_tells_unequal_budgets(workdir):
  data = json.loads((workdir / "study.json").read_text())
  data["arms"][1]["runs"] = ["drope"]  # as if it had not been pretrained: a third of the others' tokens
  (workdir / "study.json").write_text(json.dumps(data))
  text = finding(_study(workdir, _figures(LOSSES, ACCURACIES)))
  assert text.startswith("With one seed and 3.00 times the training tokens for the control, at 8×")
  assert "NoPE from scratch (3.00 times the training tokens) is worse than DroPE" in text


# --- tables ------------------------------------------------------------------------------------


def test_tables_hold_the_figures_and_mark_the_best(workdir):
  study = _study(workdir, _figures(LOSSES, ACCURACIES))
  perplexities, needles = _cells(study, PERPLEXITY), _cells(study, RETRIEVAL)
  assert perplexities[""] == [f"{c // CONTEXT}× ({c:,}), n = 100,000" for c in CONTEXTS]
  assert perplexities["DroPE"] == [f"{math.exp(loss):.1f}" for loss in LOSSES["DroPE"]]
  assert perplexities["RoPE, continued"][0] == "**18.0**"  # shared by all five that are the same model in context
  assert [cell.startswith("**") for cell in perplexities["RoPE + NTK"]] == [True, True, False, False]
  assert needles[""][3] == "8× (1,024), n = 200"
  assert needles["RoPE + YaRN"][3] == "**90 ± 2**"
  assert needles["RoPE + PI"][2:] == ["**95 ± 2**", "80 ± 3"]  # 95 and 97 of 200 are level


def test_what_is_missing_is_shown_as_missing(workdir):
  losses = {**LOSSES, "RoPE + NTK": (2.89, None, None, 3.44)}
  del losses["RoPE + PI"]
  study = _study(workdir, _figures(losses, {}))
  assert _cells(study, PERPLEXITY)["RoPE + PI"] == ["–"] * 4
  assert _cells(study, PERPLEXITY)["RoPE + NTK"][1:3] == ["–", "–"]
  assert "no figure of the task “needles”" in tables.results_table(study, RETRIEVAL)
  assert "| – |" in tables.blocks_table(study)
  assert tables.temperature_section(study).startswith("–")


def test_a_figure_behind_which_other_rows_have_more_samples_says_so(workdir):
  figures = _figures({}, ACCURACIES)
  figures[0] = Result(**{**figures[0].__dict__, "n": 50})
  cells = _cells(_study(workdir, figures), RETRIEVAL)
  assert cells[""][0] == "1× (128)" and cells["RoPE, continued"][0] == "**100 ± 0 (n = 50)**"


def test_evaluation_seeds_are_pooled(workdir):
  common = {"run": "drope", "method": "nope", "task": "needles", "context": 128, "extension": 1.0, "metric": "accuracy"}
  figures = [Result(value=0.4, n=100, seed=0, **common), Result(value=0.7, n=200, seed=1, **common)]
  study = _study(workdir, figures)
  assert study.figure(study.rows[5], "needles", 128, "accuracy") == Figure(pytest.approx(0.6), 300)


def test_of_a_measurement_with_other_settings_only_the_last_counts(workdir):
  common = {"run": "drope", "method": "nope", "task": "needles", "context": 128, "extension": 1.0, "seed": 0}
  first = [Result(value=0.4, n=100, metric=metric, **common) for metric in ("accuracy", "accuracy@depth=0.25")]
  study = _study(workdir, [*first, Result(value=0.7, n=200, metric="accuracy", settings={"samples": 200}, **common)])
  assert study.figures(study.rows[5], "needles", 128) == {"accuracy": Figure(0.7, 200)}


def test_the_temperature_fit_warns_at_the_edge_of_its_grid(workdir):
  text = tables.temperature_section(_study(workdir, _temperature({256: 1.2, 512: 1.4, 1024: 1.8})))
  assert "c = **0.290**" in text
  assert "| 4× (512) | 1 to 1.8 | 1.40 | 1.40 | 3.560 | 3.400 |" in text
  assert "| 8× (1,024) | 1 to 1.8 | 1.80* | 1.60 |" in text and "**Warning:** at 8× the best β" in text
  (workdir / "results.jsonl").unlink()
  text = tables.temperature_section(_study(workdir, _temperature({256: 1.2})))
  assert "Warning" not in text and "does not help" not in text


def test_a_temperature_that_does_not_sharpen_is_said_to_be_none(workdir):
  figures = [Result(**{**r.__dict__, "value": -0.05}) if r.metric == "c" else r for r in _temperature({256: 1.2})]
  assert "sharper attention does not help this model." in tables.temperature_section(_study(workdir, figures))


def test_runs_table_tells_what_was_trained(workdir, trained):
  study = _study(workdir, _figures(LOSSES, {}))
  last = study.runs["drope"].last
  assert last is not None
  row = f"| `drope` | `rope`, dropped | 1,312,384 | 400 | 1,638,400 | {last['loss']:.3f} | 1 min 20 s | 21,000 |"
  assert row in tables.runs_table(study)
  assert tables.arms_described(study).endswith("RoPE, continued 4.92M, DroPE 4.92M, NoPE from scratch 4.92M.")


def test_an_arm_that_branches_off_an_earlier_step_counts_the_tokens_before_it(workdir):
  (workdir / "runs").unlink()
  _write_run(workdir, "rope", 800, 7.0, 3.0)
  _write_run(workdir, "drope", 400, 6.2, 3.2, InitConfig(checkpoint="runs/rope", step=600))
  study = _study(workdir, _figures(LOSSES, {}))
  assert study.arm_tokens(study.arms[1]) == (600 + 400) * 4096
  assert study.arm_tokens(study.arms[0]) is None  # rope_continued has not begun
  assert "| `drope` | `rope` at step 600, dropped |" in tables.runs_table(study)
  assert "| `nope` | – | – | – | – | – | – | – |" in tables.runs_table(study)


def test_results_that_no_row_shows_are_named(workdir):
  common = {"method": "rope", "context": 128, "extension": 1.0, "metric": "loss", "value": 3.0, "n": 10, "seed": 0}
  study = _study(workdir, [*_figures(LOSSES, {}), Result(run="rope", task="perplexity", **common)])
  assert tables.unnamed_results(study) == ["`rope` / `rope` / `perplexity`"]


def test_what_is_known_of_other_seeds_is_said_where_it_is_known(workdir):
  study = _study(workdir, _figures(LOSSES, ACCURACIES))
  assert spread_note(study).endswith("from the number of prompts). Everything here is one seed.")
  assert spread_note(dataclasses.replace(study, spread="Another gives 7.")).endswith("one seed. Another gives 7.")
  assert "retrieval" not in spread_note(dataclasses.replace(study, tasks=("perplexity",)))


# --- plots and the whole -----------------------------------------------------------------------


def test_report_has_every_plot_and_section(written):
  text = (written / "report.md").read_text()
  for name in plots.PLOTS:
    assert (written / name).read_bytes().startswith(b"\x89PNG") and (written / name).stat().st_size > 15_000
    assert f"]({name})" in text
  assert text.startswith("# Dropping positional embeddings, in small\n\n**With one seed")
  for content in ("quickstart --workdir=runs/quickstart", "Seed 0", "2 CPU cores, 4 GiB", "8 min 32 s", "jax 0.9.0"):
    assert content in text


def test_report_is_the_same_when_written_again(written):
  names = ["report.md", *plots.PLOTS]
  before = {name: (written / name).read_bytes() for name in names}
  write_report(written)
  assert before == {name: (written / name).read_bytes() for name in names}


def test_report_of_a_study_that_has_hardly_begun(workdir):
  (workdir / "runs").unlink()
  (workdir / "loss.png").write_bytes(b"of an earlier study")
  results.append(workdir / "results.jsonl", _figures({"DroPE": (3.27, None, None, None)}, {}))
  text = write_report(workdir).read_text()
  assert "– (`loss.png`: there are no records to draw it from)" in text and not (workdir / "loss.png").exists()
  assert "No training record yet: `rope`, `rope_continued`, `drope`, `nope`." in text


def test_rows_keep_apart(workdir):
  looks = plots.looks(_study(workdir, _figures(LOSSES, {})))
  assert len({(look.color, look.dashed) for look in looks.values()}) == len(ROWS)
  plain, tempered = looks[list(looks)[5]], looks[list(looks)[6]]
  assert plain.color == tempered.color and plain.dashed and not tempered.dashed


# --- an evaluation that is no study's -----------------------------------------------------------


def test_an_evaluation_has_tables_with_intervals_and_heat_maps(tmp_path):
  common = {"run": "model", "context": 64, "extension": 2.0, "n": 50, "seed": 0, "command": "evaluate it"}
  needle = {**common, "method": "yarn", "task": "niah_single_1"}
  found = [
    Result(metric="string_match_all", value=0.5, low=0.375, high=0.625, **needle),
    Result(metric="beta", value=1.0, **needle),
    *(Result(metric=results.at_depth("string_match_all", depth), value=depth, **needle) for depth in DEPTHS),
    Result(metric="loss", value=2.5, method="rope", task="perplexity", **common),
    Result(metric="loss@0-16", value=2.75, method="rope", task="perplexity", **common),
  ]
  results.append(tmp_path / "results.jsonl", found)
  assert write_report(tmp_path) == tmp_path / "report.md"
  report = (tmp_path / "report.md").read_text()
  assert "training context of 32 tokens" in report and "evaluate it" in report
  assert "| yarn | 0.500 (0.375 to 0.625), 50 |" in report and "| rope | 2.500, 50 |" in report
  assert "| 0-16 | 2.750, 50 |" in report and "β" not in report  # no temperature was used
  assert {path.name for path in tmp_path.glob("*.png")} == {"niah_single_1.png"} and "](niah_single_1.png)" in report


# --- the command -------------------------------------------------------------------------------


def test_command(written):
  command = [sys.executable, "-m", "experiments.report"]
  root = Path(__file__).parents[2]
  done = subprocess.run([*command, str(written)], cwd=root, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout.strip()) == (0, str(written / "report.md"))


def test_bad_usage_exits_2(capsys):
  assert main([]) == 2
  assert "DIR" in capsys.readouterr().err


def _without_title(workdir: Path) -> None:
  data = json.loads((workdir / "study.json").read_text())
  del data["title"]
  (workdir / "study.json").write_text(json.dumps(data))


def _unknown_run(workdir: Path) -> None:
  data = json.loads((workdir / "study.json").read_text())
  data["rows"][0]["run"] = "rop"
  (workdir / "study.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda w: (w / "study.json").unlink(), "study.json: cannot be read"),
    (lambda w: (w / "study.json").write_text("{"), "study.json: not JSON"),
    (_without_title, "study.json: title is missing"),
    (_unknown_run, "study.json: row 'RoPE, continued' is of run 'rop', which no arm names"),
    (lambda w: (w / "results.jsonl").unlink(), "results.jsonl: holds no figure"),
    (lambda w: (w / "results.jsonl").write_text(""), "results.jsonl: holds no figure"),
    (lambda w: (w / "results.jsonl").write_text('{"run": 1}\n'), "results.jsonl:1: not a result"),
  ],
)
def test_spoilt_records_are_one_line_and_exit_1(workdir, capsys, spoil, message):
  _study(workdir, _figures(LOSSES, {}))
  spoil(workdir)
  assert main([str(workdir)]) == 1
  error = capsys.readouterr().err
  assert message in error and str(workdir) in error and error.count("\n") == 1
  assert not (workdir / "report.md").exists()


def test_an_unreadable_run_is_named(workdir):
  (workdir / "runs").unlink()
  _write_run(workdir, "rope", 10, 7.0, 3.0)
  (workdir / "runs/rope/config.json").write_text("{}")
  with pytest.raises(ReportError, match=r"runs/rope/config\.json: "):
    _study(workdir, _figures(LOSSES, {}))
