"""The kind of an arm follows from its config, also with a user's transition, and every arm has a look of its own."""

import dataclasses
import importlib
import math
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
from support.study_records import LOSSES, MODEL, figures, study_of, write_run, write_study

from drope_jax.config import InitConfig
from drope_jax.model_config import QKNorm
from drope_jax.objective import Distill
from drope_jax.positions import ALiBi, RoPE
from drope_jax.scalings import YaRN
from drope_jax.transitions import Drop, Fade, Keep, KeepWindows, PartialDrop, Replace, Transition
from experiments import studies
from experiments.models import run_models
from experiments.plan import Arm, Pretrained, Row
from experiments.reporting import arms
from experiments.reporting.looks import UNTEMPERED, arm_looks, looks
from experiments.reporting.records import Records, Run


@dataclasses.dataclass(unsafe_hash=True)
class SlowGoodbye(Transition):
  """The embedding leaves slowly: nobody notices."""

  pace: int = 3


def described(tmp_path, init, **settings):
  """The kind of a run that starts so, and how a report describes it."""
  write_run(tmp_path / "runs" / "new", init=init, **settings)
  (tmp_path / "study.json").write_text(
    '{"title": "", "command": "", "seed": 0, "train_context": 128, "machine": "", "versions": {}, '
    '"arms": [{"label": "New", "runs": ["new"]}], "rows": [{"run": "new", "method": "nope", "label": "New"}]}'
  )
  found = [dataclasses.replace(figures(LOSSES, {})[0], run="new", method="nope")]
  study = study_of(tmp_path, found)
  return arms.kind(study.runs["new"]), arms.described(study, study.rows[0])


def test_a_run_that_has_not_begun_is_not_described_as_from_scratch(tmp_path):
  """As with --only."""
  write_study(tmp_path)
  shutil.rmtree(tmp_path / "runs" / "rope_continued")
  study = study_of(tmp_path, figures(LOSSES, {}))
  row = next(row for row in study.rows if row.run == "rope_continued")
  assert arms.described(study, row) == "`rope_continued`, which has not begun"


@pytest.mark.parametrize(
  ("transition", "kind", "said"),
  [
    (None, "from scratch", ["`new`, from scratch, without any positional embedding"]),
    (Keep(), "control", ["the control"]),
    (Drop(), "DroPE", ["the paper's method"]),
    (PartialDrop(turns=math.inf), "partial drop", ["the paper's method", "all rotations"]),
    (PartialDrop(turns=1.0), "partial drop", ["ours and not the paper's", "less than 1 full turn within"]),
    (PartialDrop(fastest=5), "partial drop", ["ours and not the paper's", "all rotations but the 5 fastest"]),
    (Fade(share=0.25), "fade", ["not the paper's method", "25 % of the steps"]),
    (
      Replace(RoPE(theta=500_000.0, scaling=YaRN(8.0, 128))),
      "replace",
      ["not the paper's method", "base 500,000", "YaRN"],
    ),
    (KeepWindows(window=64), "keep windows", ["RNoPE-SWA, not the paper's method", "64 tokens", "one layer of 4"]),
    (SlowGoodbye(), "slow goodbye", ["slow goodbye, not the paper's method: the embedding leaves slowly (pace=3)"]),
  ],
)
def test_a_run_is_what_its_transition_says_and_whose_method_it_is(tmp_path, transition, kind, said):
  init = None if transition is None else InitConfig(checkpoint="runs/rope", transition=transition)
  found, text = described(tmp_path, init)
  assert found == kind and all(part in text for part in said), text
  paper, not_papers = "DroPE, the paper's method" in text, "not the paper's" in text
  assert (paper, not_papers) == ("the paper's method" in said, "not the paper's" in said[0])


@pytest.mark.parametrize(
  ("start", "objective", "said"),
  [
    ({"token_shift": True}, None, "token shift"),
    ({"keep_optimizer": True}, None, "moments"),
    ({"qk_norm": QKNorm(keys=False)}, None, "QK-norm of queries as a whole"),
    ({"model": dataclasses.replace(MODEL, positions=ALiBi())}, None, "ALiBi"),
    ({}, Distill(what="attention"), "attention outputs"),
  ],
)
def test_a_drop_that_does_more_is_not_called_the_papers(tmp_path, start, objective, said):
  _, text = described(tmp_path, InitConfig(checkpoint="runs/rope", **start), objective=objective)
  assert "a variant of DroPE, not as in the paper" in text and said in text


def test_no_row_of_any_study_is_described_in_python():
  """A report is read by people: not RoPE(theta=10000.0, scaling=None)."""
  for module in pkgutil.iter_modules(studies.__path__):
    sizes = getattr(importlib.import_module(f"experiments.studies.{module.name}"), "SIZES", None)
    if sizes is None:
      continue
    study = sizes["mini"]().study(Path("study"))
    models = run_models(study, Path("study"))
    runs = {
      name: Run(
        name, *((None, (), (), models[name], run) if isinstance(run, Pretrained) else (run, (), (), models[name]))
      )
      for name, run in study.runs.items()
    }
    records = Records(directory=Path("study"), title="", train_context=study.train_context, rows=study.rows, runs=runs)
    for row in study.rows:
      text = arms.described(records, row)
      assert not re.search(r"\w\(|\w=|None", text), text


def test_the_control_is_the_run_from_the_same_weights_that_keeps_the_embedding(workdir):
  study = study_of(workdir, figures(LOSSES, {}))
  assert arms.control_of(study, study.runs["drope"]) is study.runs["rope_continued"]
  assert arms.control_of(study, study.runs["rope_continued"]) is study.runs["rope_continued"]
  assert arms.control_of(study, study.runs["nope"]) is None
  assert arms.first_drop(study, study.arms) == 800 * 4096


def test_of_several_controls_that_of_as_many_steps_is_taken(workdir):
  (workdir / "runs").unlink()
  runs = (("rope_continued", 200, Keep()), ("nope", 400, Keep()), ("drope", 400, Drop()), ("rope", 300, Drop()))
  for name, steps, transition in runs:
    write_run(workdir / "runs" / name, steps=steps, init=InitConfig(checkpoint="runs/trunk", transition=transition))
  study = study_of(workdir, figures(LOSSES, {}))
  assert arms.control_of(study, study.runs["drope"]) is study.runs["nope"]
  assert arms.control_of(study, study.runs["rope"]) is study.runs["rope_continued"]  # of none: the first
  assert arms.main_control(study).label == "RoPE, continued"


def test_of_several_controls_of_as_many_steps_that_at_the_same_rate_is_taken(workdir):
  """Also where a run that studies share knows its trunk by another path."""
  (workdir / "runs").unlink()
  runs = (("rope", 3e-4, Keep()), ("rope_continued", 1e-3, Keep()), ("nope", 2e-3, Drop()), ("drope", 1e-3, Drop()))
  for name, rate, transition in runs:
    checkpoint = "runs/trunk" if name == "rope" else "elsewhere/runs/trunk"
    init = InitConfig(checkpoint=checkpoint, source="abc", transition=transition)
    write_run(workdir / "runs" / name, init=init, peak_lr=rate, positions=RoPE() if transition == Keep() else None)
  study = study_of(workdir, figures(LOSSES, {}))
  rope, continued, dropped, nope = (study.runs[name] for name in ("rope", "rope_continued", "drope", "nope"))
  assert arms.control_of(study, dropped) is continued
  assert arms.control_of(study, nope) is rope  # none at its rate: the first
  assert arms.control_of(study, continued) is rope and arms.control_of(study, rope) is rope
  assert arms.rate_sweeps(study) == [{"rope": 3e-4, "rope_continued": 1e-3}, {"nope": 2e-3, "drope": 1e-3}]


def test_without_a_control_from_the_same_step_there_is_none(workdir):
  (workdir / "runs").unlink()
  write_run(workdir / "runs" / "rope", positions=RoPE())
  for name, step, transition in (("rope_continued", 200, Keep()), ("drope", 300, Drop())):
    init = InitConfig(checkpoint="runs/rope", step=step, transition=transition)
    write_run(workdir / "runs" / name, init=init)
  study = study_of(workdir, figures(LOSSES, {}))
  assert arms.control_of(study, study.runs["drope"]) is None


def test_every_row_has_a_look_of_its_own(workdir):
  found = looks(study_of(workdir, figures(LOSSES, {})))
  assert len({(look.color, look.dashes) for look in found.values()}) == len(LOSSES)
  by_label = {row.label: look for row, look in found.items()}
  plain, tempered = by_label["DroPE, β = 1"], by_label["DroPE"]
  assert plain.color == tempered.color and (plain.dashes, tempered.dashes) == (UNTEMPERED, ())


@pytest.mark.parametrize("measured", [True, False])
def test_thirty_arms_can_be_told_apart(workdir, measured):
  """By their lines alone, whether or not there is a row for each."""
  study, names = study_of(workdir, figures(LOSSES, {})), [f"drop_{i}" for i in range(30)]
  study = dataclasses.replace(
    study,
    runs={name: dataclasses.replace(study.runs["drope"], name=name) for name in names},
    arms=tuple(Arm(name, (name,)) for name in names),
    rows=tuple(Row(name, "nope", name) for name in names) if measured else (),
  )
  assert len({(look.color, look.linestyle) for look in arm_looks(study).values()}) == 30
