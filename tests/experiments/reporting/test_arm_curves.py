"""Held-out losses of whole arms by tokens: joined over an arm's runs, and less those of a run from scratch."""

import json

import numpy as np
import pytest
from support.study_records import CONTEXT, cells, write_run

from drope_jax.config import InitConfig
from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from drope_jax.positions import RoPE
from drope_jax.transitions import Drop
from experiments.report import write_report
from experiments.reporting import arms, seed_curves
from experiments.reporting.heldout import arm_curves, arm_gaps
from experiments.reporting.records import read_study
from experiments.reporting.study_page import DATA
from experiments.reporting.summary_files import read_summary
from experiments.seeds import summary_of, write_seeds, write_study_page

TOKENS = 4096  # of a step, in write_run
ROPE = [(0, 7.0), (200, 4.0), (400, 3.0)]
NOPE = [(0, 7.0), (200, 4.25), (400, 3.5)]


def scratch_study(workdir, seed=0, *, shift=0.0, tail=False):
  """RoPE and NoPE from scratch, NoPE worse by up to 0.5 + `shift`; `tail`: and DroPE from step 200 of a third run."""
  made = [("rope", "RoPE", ROPE), ("nope", "NoPE", [(step, loss + shift * (step > 0)) for step, loss in NOPE])]
  for name, _, curve in made:
    write_run(workdir / "runs" / name, heldout={1: curve}, positions=RoPE() if name == "rope" else None)
  described = [{"label": label, "runs": [name]} for name, label, _ in made]
  if tail:
    write_run(workdir / "runs" / "trunk", steps=300, heldout={1: [(0, 7.0), (100, 5.0), (200, 4.1)]}, positions=RoPE())
    init = InitConfig(checkpoint="runs/trunk", step=200, transition=Drop())
    write_run(workdir / "runs" / "drop", steps=200, heldout={1: [(0, 6.0), (200, 3.75)]}, init=init)
    described.append({"label": "DroPE", "runs": ["trunk", "drop"]})
  rows = [{"run": name, "method": "rope" if name == "rope" else "nope", "label": label} for name, label, _ in made]
  rows += [{"run": "drop", "method": "nope", "label": "DroPE"}] if tail else []
  said = {"title": "From scratch", "command": "", "seed": seed, "train_context": CONTEXT, "machine": "", "versions": {}}
  (workdir / "study.json").write_text(json.dumps(said | {"arms": described, "rows": rows}))
  common = {"context": CONTEXT, "extension": 1.0, "n": 10, "seed": seed, "task": "perplexity", "metric": "loss"}
  found = [Result(run=row["run"], method=row["method"], value=3.0, **common) for row in rows]
  results.append(workdir / "results.jsonl", found)
  return workdir


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
  """Two, in which NoPE ends 0.5 and 0.7 above RoPE."""
  return [scratch_study(tmp_path_factory.mktemp(f"seed-{i}"), i, shift=0.2 * i) for i in (0, 1)]


def test_among_runs_from_scratch_the_first_is_the_control(tmp_path):
  study = read_study(scratch_study(tmp_path))
  assert arms.control_of(study, study.runs["nope"]) is study.runs["rope"]
  assert arms.main_control(study).label == "RoPE"
  (gap,) = arm_gaps(study).values()
  assert gap.tokens_N.tolist() == [0, 200 * TOKENS, 400 * TOKENS] and gap.losses_N.tolist() == [0, 0.25, 0.5]


def test_a_report_shows_the_gap_by_tokens(tmp_path):
  text = write_report(scratch_study(tmp_path)).read_text()
  assert "](heldout_by_tokens.png)" in text and (tmp_path / "heldout_by_tokens.png").exists()
  (row,) = [line for line in text.splitlines() if line.startswith("| NoPE | +")]
  assert cells(row)["NoPE"][-2:] == ["+0.250", "+0.500"]


def test_the_curve_of_an_arm_follows_its_runs_from_where_they_branched_off(tmp_path):
  """The trunk's own point at the branch, 4.1, gives way to what the drop made of it."""
  study = read_study(scratch_study(tmp_path, tail=True))
  curve = next(curve for arm, curve in arm_curves(study).items() if arm.label == "DroPE")
  assert (curve.tokens_N / TOKENS).tolist() == [0, 100, 200, 400] and curve.losses_N.tolist() == [7, 5, 6, 3.75]
  gap = next(gap for arm, gap in arm_gaps(study).items() if arm.label == "DroPE")
  assert (gap.tokens_N / TOKENS).tolist() == [0, 200, 400] and gap.losses_N.tolist() == [0, 2, 0.75]


def test_an_arm_that_was_not_measured_on_the_way_has_no_curve(tmp_path):
  scratch_study(tmp_path, tail=True)
  path = tmp_path / "runs" / "trunk" / "metrics.jsonl"
  path.write_text("".join(line for line in path.open() if "heldout" not in line))
  assert {arm.label for arm in arm_curves(read_study(tmp_path))} == {"RoPE", "NoPE"}


def test_over_seeds_gaps_are_paired_and_have_intervals(seeds):
  summary = summary_of(seeds, "study")
  gap = seed_curves.token_gap(summary, "nope")
  end = gap[400 * TOKENS]
  # 0.5 and 0.7: t(0.975, 1) is 12.706, and sd / sqrt(2) is 0.1.
  assert (end.mean, end.low, end.high) == pytest.approx((0.6, -0.6706, 1.8706), abs=1e-4)
  assert not seed_curves.token_gap(summary, "rope")
  other = summary_of(seeds, "study", control="NoPE")
  assert seed_curves.token_gap(other, "rope")[400 * TOKENS].mean == pytest.approx(-0.6)


def test_pages_and_seeds_md_show_curves_by_tokens(seeds, tmp_path):
  page = write_study_page(seeds, tmp_path / "gap.md")
  text = page.read_text()
  assert f"]({DATA}/gap_tokens.png)" in text and (tmp_path / DATA / "gap_tokens.png").exists()
  (row,) = [line for line in text.splitlines() if line.startswith("| NoPE | 3.600 ± 0.141 |")]
  assert row.endswith("| +0.600 (-0.671 to +1.871) |")
  assert seed_curves.token_gap_table(read_summary(tmp_path / DATA / "gap.json")).csv == (
    seed_curves.token_gap_table(summary_of(seeds, "gap")).csv
  )
  write_seeds(seeds, tmp_path)
  stored = (tmp_path / "tables" / "heldout_by_tokens.csv").read_text().splitlines()
  assert np.isclose(float(stored[1].split(",")[-5]), 0.6) and stored[1].startswith("nope,0,")


def test_of_one_seed_the_interval_is_over_documents_and_paired(tmp_path):
  scratch_study(tmp_path)
  for name, factor in (("rope", 1), ("nope", 1.01)):
    path = tmp_path / "runs" / name / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
      if record.get("kind") == "eval":
        record["loss_by_group"] = list(record["loss"] + factor * np.linspace(-0.7, 0.7, 8))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
  end = seed_curves.token_gap(summary_of([tmp_path], "study"), "nope")[400 * TOKENS]
  half = 2.364624 * 0.00489898 / 8**0.5
  assert (end.low, end.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))
