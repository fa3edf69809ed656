"""The kind of an arm follows from its config, also with a user's transition, and every arm has a look of its own."""

import dataclasses

import pytest
from support.study_records import LOSSES, figures, study_of, write_run

from drope_jax.config import InitConfig
from drope_jax.positions import RoPE
from drope_jax.transitions import Drop, Fade, Keep, PartialDrop, Transition
from experiments.plan import Arm, Row
from experiments.reporting import arms
from experiments.reporting.looks import UNTEMPERED, arm_looks, looks


@dataclasses.dataclass(unsafe_hash=True)
class SlowGoodbye(Transition):
  """The embedding leaves slowly: nobody notices."""

  pace: int = 3


@pytest.mark.parametrize(
  ("transition", "kind"),
  [
    (None, "from scratch"),
    (Keep(), "control"),
    (Drop(), "DroPE"),
    (PartialDrop(turns=0.5), "partial drop"),
    (Fade(share=0.5), "fade"),
    (SlowGoodbye(), "slow goodbye"),
  ],
)
def test_a_run_is_what_its_transition_says(tmp_path, transition, kind):
  init = None if transition is None else InitConfig(checkpoint="runs/rope", transition=transition)
  write_run(tmp_path / "runs" / "new", init=init)
  (tmp_path / "study.json").write_text(
    '{"title": "", "command": "", "seed": 0, "train_context": 128, "machine": "", "versions": {}, '
    '"arms": [{"label": "New", "runs": ["new"]}], "rows": [{"run": "new", "method": "nope", "label": "New"}]}'
  )
  found = [dataclasses.replace(figures(LOSSES, {})[0], run="new", method="nope")]
  study = study_of(tmp_path, found)
  assert arms.kind(study.runs["new"]) == kind
  described = arms.described(study, study.rows[0])
  assert kind in described and ("pace=3" in described) == (kind == "slow goodbye")
  assert ("not the method of the paper" in described) == (kind not in ("from scratch", "control", "DroPE"))


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
