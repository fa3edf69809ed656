"""Tasks by name; and one that a user defines in a file of their own: measured, recorded and in the report."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from support.counting_task import TOKENIZER, dropped_checkpoint

from drope_jax.errors import ConfigError
from drope_jax.evaluate import tasks
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import figures_by, mean_figure
from drope_jax.evaluate.measure import evaluate
from drope_jax.evaluate.task import Task
from drope_jax.evaluate.tasks import allowed_names, make_tasks
from experiments.report import write_report

DATA = EvalData(tokenizer=TOKENIZER, longest=64, num_samples=3)
HERE = sys.modules[__name__].__name__


@dataclasses.dataclass(frozen=True)
class Guessing(Task):
  """A stranger's task: errors of a coin, by the phase of the moon."""

  num_samples: int
  name = "guessing"
  about = "A coin is tossed: chance errs in half of all samples."

  @classmethod
  def make(cls, name, data):
    return cls(data.num_samples)

  def settings(self, length):
    return {"samples": self.num_samples}

  def measure(self, subject, length):
    rng = np.random.default_rng(length)
    errors_N = rng.random(self.num_samples) < 0.5 + 0.4 * (subject.how.logit_scale > 1)
    phases = [(phase, errors_N[phase::4]) for phase in range(4)]
    return [mean_figure("errors", errors_N, lower_is_better=True), *figures_by("errors", "phase", phases)]


def test_tasks_and_groups_by_name():
  names = [task.name for task in make_tasks(["niah", "vt", "niah_single_1", "probes"], DATA)]
  assert len(names) == len(set(names)) == 12 and names[8] == "vt"
  assert set(names[9:]) == {"order", "induction", "copy"}
  with pytest.raises(ConfigError, match=r"task is 'needle'; allowed: .*needles") as error:
    make_tasks(["needle"], DATA)
  assert allowed_names() in str(error.value)


@pytest.mark.parametrize("name", ["guessing", f"{HERE}:Guessing"])
def test_a_users_task_goes_by_its_name_and_by_that_of_its_class(name):
  assert make_tasks([name, "guessing"], DATA) == [Guessing(3)]
  assert "guessing" in allowed_names()


def test_a_task_of_a_module_that_is_not_imported_is_said_to_be():
  with pytest.raises(ConfigError, match=r"'moon:Phases', which is not imported: import moon .*--import=moon"):
    make_tasks(["moon:Phases"], DATA)


def test_a_name_that_two_tasks_share_is_refused(monkeypatch):
  other = type("Other", (), {"names": Guessing.names, "groups": Guessing.groups, "make": Guessing.make})
  both = {"moon:Guessing": Guessing, "sun:Other": other}
  monkeypatch.setattr(tasks, "members", lambda kind: both)
  with pytest.raises(ConfigError, match=r"task is 'guessing', which .*Guessing and .*Other share"):
    make_tasks(["guessing"], DATA)
  assert make_tasks(["moon:Guessing"], DATA) == [Guessing(3)]


def test_a_users_task_is_measured_and_has_its_table_and_pictures_in_the_report(tmp_path):
  data = dataclasses.replace(DATA, num_samples=40)
  made, out = make_tasks(["guessing"], data), tmp_path / "results.jsonl"
  evaluate("run", dropped_checkpoint(), ["nope", "drope:0.5"], [16, 64], made, data, out)
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert {(r["metric"], r["by"], r["at"]) for r in records} == {
    ("errors", None, None),
    ("beta", None, None),
    *(("errors", "phase", phase) for phase in range(4)),
  }
  before = out.read_bytes()
  evaluate("run", dropped_checkpoint(), ["nope", "drope:0.5"], [16, 64], made, data, out)
  assert out.read_bytes() == before

  report = write_report(tmp_path).read_text()
  section = report.split("## guessing")[1].split("\n## ")[0]
  assert Guessing.about in section
  value = {(r["method"], r["context"]): r["value"] for r in records if r["metric"] == "errors" and r["by"] is None}
  line = next(line for line in section.splitlines() if line.startswith("| nope |"))
  assert f"{value['nope', 16]:.3f} (" in line and f"{value['nope', 64]:.3f} (" in line
  assert line.endswith("| 1×, 4× |")  # fewer errors are better
  tempered = next(line for line in section.splitlines() if line.startswith("| drope:0.5 |"))
  assert tempered.endswith("| 1× |")  # beyond the context it errs more, by more than chance
  assert {path.name for path in tmp_path.glob("*.png")} == {"summary.png", "guessing_by_phase.png"}
  assert all(f"]({name})" in report for name in ("summary.png", "guessing_by_phase.png"))
