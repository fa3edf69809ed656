"""What makes many studies cheap to run: shared runs, workdirs that move, parts of a study, several seeds, dry runs."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from support.tiny_run import contents, tiny_run

from drope_jax.config import InitConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.objective import Distill, InTurn
from drope_jax.serialization import save_config
from drope_jax.train import train
from drope_jax.transitions import Drop, Keep, PartialDrop
from experiments import costs
from experiments import study as study_module
from experiments.dry_run import dry_run
from experiments.plan import Arm, EvalPlan, Pretrained, Row, Study, needed_runs, run_directory
from experiments.reporting.arms import control_of
from experiments.reporting.records import read_study
from experiments.study import run_seeds, run_study

KEYS = ["a596e05b1fef9d1b", "cc5fb3561144c493"]  # as commit 812e35b computed them


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Branched:
  """A trunk, a control and a drop of two steps each, and the control clipped; context 16. The corpus is in `text`."""

  text: str
  title: str = "Branched"
  seed: int = 0

  def study(self, workdir: Path) -> Study:
    corpus = str(workdir / "data" / "corpus")
    trunk, control = (str(run_directory(workdir, name)) for name in ("trunk", "control"))
    settings = {"steps": 2, "seed": self.seed, "checkpoint_every": 1}
    starts = {"control": Keep(), "drop": Drop()}
    tails = {
      name: tiny_run(corpus, init=InitConfig(checkpoint=trunk, transition=how), **settings)
      for name, how in starts.items()
    }
    return Study(
      title=self.title,
      seed=self.seed,
      train_context=16,
      prepare=lambda: None if Path(corpus).exists() else shutil.copytree(self.text, corpus),
      runs={"trunk": tiny_run(corpus, **settings), **tails, "clipped": Pretrained(control, Drop())},
      arms=(Arm("RoPE", ("trunk", "control")), Arm("DroPE", ("trunk", "drop")), Arm("clipped", ("clipped",))),
      rows=(Row("control", "rope", "RoPE"), Row("drop", "nope", "DroPE"), Row("clipped", "nope", "clipped")),
      lengths=(16,),
      tasks=("perplexity",),
      eval_data=EvalPlan(tokenizer="byte", longest=16, dataset=corpus, num_documents=1, seed=self.seed),
    )


@pytest.fixture(scope="module")
def settings(study_corpus):
  return Branched(text=study_corpus)


@pytest.fixture(scope="module")
def shared(settings, tmp_path_factory):
  """The workdir of a study whose runs are in a store, and the store."""
  directory = tmp_path_factory.mktemp("shared")
  run_study(settings, directory / "first", runs=directory / "runs")
  return directory / "first", directory / "runs"


def never(*_):
  pytest.fail("it trains")


def test_a_second_study_finds_the_runs_of_the_first(settings, shared, tmp_path, monkeypatch):
  first, store = shared
  before = contents(store)
  assert len([path for path in store.iterdir() if path.is_dir()]) == 3  # trunk, control, drop
  monkeypatch.setattr(study_module, "train", never)
  run_study(dataclasses.replace(settings, title="Another"), tmp_path / "second", runs=store)
  assert contents(store) == before
  losses = [
    [(r.run, r.method, m[16].figures) for (r, m) in rows(directory)] for directory in (first, tmp_path / "second")
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 3
  records = read_study(tmp_path / "second")
  assert control_of(records, records.runs["drop"]).name == "control"  # though its paths are those of the first study


def rows(directory):
  records = read_study(directory)
  return [(row, records.measured[row.run, row.method, "perplexity"]) for row in records.rows]


def test_another_seed_or_another_text_is_another_run(settings, shared, tmp_path):
  first, store = shared
  study = settings.study(first)
  keys = study_module.store.keys(study, first)
  assert len(set(keys.values())) == 3 and all((store / key).is_dir() for key in keys.values())
  other = dataclasses.replace(settings, seed=1).study(first)
  assert not set(study_module.store.keys(other, first).values()) & set(keys.values())
  changed = build_corpus(tmp_path / "data" / "corpus", {"train": ["some other text, which is long enough"]})
  assert changed and not set(study_module.store.keys(settings.study(tmp_path), tmp_path).values()) & set(keys.values())


def test_the_key_of_a_run_is_that_of_earlier_versions():
  """For runs that use nothing newer, so that existing stores remain usable."""
  scratch = tiny_run("corpus")
  tail = tiny_run("corpus", init=InitConfig(checkpoint="runs/trunk", transition=Drop()))
  by_path = {"runs/trunk": "a trunk"}
  assert [study_module.store.run_key(run, {"documents": 1}, by_path) for run in (scratch, tail)] == KEYS
  added = dataclasses.replace(tail, init=dataclasses.replace(tail.init, token_shift=True))
  assert study_module.store.run_key(added, {"documents": 1}, by_path) not in KEYS


def test_a_teacher_is_known_by_its_content_and_not_by_its_path(settings, shared, tmp_path):
  store, first = study_module.store, shared[0]

  def key(teacher, by_path=None, objective=lambda distill: distill):
    taught = tiny_run("corpus", objective=objective(Distill(teacher=str(teacher))))
    return store.run_key(taught, {"documents": 1}, by_path or {})

  trunk, moved = first / "runs" / "trunk", tmp_path / "moved"
  shutil.copytree(trunk, moved)
  assert key(trunk) == key(moved) != key(first / "runs" / "control")
  assert key("a/trunk", {"a/trunk": "its key"}) == key("b/trunk", {"b/trunk": "its key"}) != key(trunk)

  def in_turn(distill):
    return InTurn(first=dataclasses.replace(distill, what="attention"), then=distill, share=0.5)

  assert key(trunk, objective=in_turn) == key(moved, objective=in_turn) != key(trunk)


def test_a_workdir_that_was_moved_goes_on(settings, tmp_path, monkeypatch):
  """Part of it was done before the move: the tails find the trunk in its new place."""
  run_study(settings, tmp_path / "began", only=["control"])
  assert [path.name for path in sorted((tmp_path / "began" / "runs").iterdir())] == ["control", "trunk"]
  shutil.rmtree(tmp_path / "began" / "runs" / "control" / "checkpoints" / "2")  # as if it had been stopped at step 1
  (tmp_path / "began").rename(tmp_path / "moved")
  run_study(settings, tmp_path / "moved")
  assert len(rows(tmp_path / "moved")) == 3
  monkeypatch.setattr(study_module, "train", train)
  before = contents(tmp_path / "moved")
  run_study(settings, tmp_path / "moved")
  assert contents(tmp_path / "moved") == before


def test_weights_of_another_trunk_are_not_mistaken_for_those_it_began_with(settings, shared, tmp_path):
  """A trunk with the same config at another path, trained again."""
  first, _ = shared
  trunk = settings.study(first).runs["trunk"]
  train(trunk, tmp_path / "trunk")
  tail = settings.study(first).runs["control"]
  moved = dataclasses.replace(tail, init=dataclasses.replace(tail.init, checkpoint=str(tmp_path / "trunk")))
  with pytest.raises(CheckpointError, match=r"belongs to another run: init\.checkpoint"):
    train(moved, first / "runs" / "control")


def test_what_is_asked_for_alone_brings_what_it_starts_from(settings, tmp_path):
  study = settings.study(tmp_path)
  assert needed_runs(study, tmp_path, ["clipped"]) == ["trunk", "control", "clipped"]
  with pytest.raises(ConfigError, match="--only has 'rope'; allowed: trunk, control, drop, clipped"):
    needed_runs(study, tmp_path, ["rope"])
  taught = dataclasses.replace(study.runs["drop"], objective=Distill(teacher=str(run_directory(tmp_path, "control"))))
  study = dataclasses.replace(study, runs={**study.runs, "drop": taught})
  assert needed_runs(study, tmp_path, ["drop"]) == ["trunk", "control", "drop"]


def test_what_a_run_was_settled_to_is_kept_by_a_start_that_does_not_measure_it(settings, shared, tmp_path, monkeypatch):
  """The study itself only has the transition that stands for it until then, as in table 10."""
  first, store = shared
  workdir = shutil.copytree(first, tmp_path / "study", symlinks=True)
  found = PartialDrop(turns=math.inf)
  monkeypatch.setattr(Pretrained, "settled", lambda run, directory: dataclasses.replace(run, transition=found))
  for only in ([], ["drop"], ["clipped"]):
    run_study(settings, workdir, runs=store, only=only)
    clipped = read_study(workdir).runs["clipped"].pretrained
    assert clipped == Pretrained(str(run_directory(workdir, "control")), found)


def test_a_dry_run_says_what_is_there_and_writes_nothing(settings, shared, tmp_path):
  first, store = shared
  said = dry_run(settings, first, 3, [], store)
  cells = {
    line.split("|")[1].strip(): [c.strip() for c in line.split("|")] for line in said.splitlines() if "|" in line
  }
  assert cells["trunk"][2] == "scratch" and cells["drop"][2] == "trunk"
  assert [cells[name][-2] for name in ("trunk", "control", "drop")] == ["done"] * 3
  assert cells["trunk"][-3] == "2"  # runs that start from it
  fresh = dry_run(settings, tmp_path / "none", 3, [], None)
  assert said.splitlines()[-1] == fresh.splitlines()[-1] and "From the start, with all runs above" in said
  assert "for 3 seeds" in said and "shared" not in said
  alone = dry_run(settings, tmp_path / "none", 1, ["control"], store)
  assert "| drop" not in alone and "to do" in alone and "known once the data is there" in alone
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  ("seconds", "shown"),
  [(90, "1.5 min"), (5400, "90.0 min"), (86_400, "24.0 hours"), (30 * 86_400, "30.0 days"), (1e9, "31.7 years")],
)
def test_a_long_time_is_not_told_in_minutes(seconds, shown):
  assert costs.show_time(seconds) == shown and costs.show_time(float("nan")) == "unknown"


@pytest.mark.slow
def test_seeds_lie_side_by_side_and_are_compared(settings, tmp_path):
  run_seeds(settings, [0, 1], tmp_path, formats=("svg",))
  assert {path.name for path in tmp_path.iterdir()} == {
    "seed-0", "seed-1", "seeds.md", "seeds.files", "seeds_lengths.png", "seeds_lengths.svg", "tables",
  }  # fmt: skip
  assert (tmp_path / "seed-0" / "summary.svg").exists()
  assert [json.loads((tmp_path / f"seed-{seed}" / "study.json").read_text())["seed"] for seed in (0, 1)] == [0, 1]
  report = (tmp_path / "seeds.md").read_text()
  assert "over seeds 0, 1" in report and "difference from “RoPE” of the same seed" in report


def test_a_shared_run_that_is_gone_is_named_before_it_would_be_trained_anew(settings, tmp_path):
  for run in settings.study(tmp_path).runs:
    place = run_directory(tmp_path, run)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "gone" / run)
  save_config(settings, tmp_path / "config.json")  # as if it had begun
  with pytest.raises(
    ConfigError, match=rf"--runs: {tmp_path}/runs/\w+ is a link to {tmp_path}/gone/\w+, which is gone"
  ):
    run_study(settings, tmp_path)
  assert not (tmp_path / "gone").exists()


def test_a_study_without_seed_has_no_seeds(tmp_path):
  @dataclasses.dataclass
  class Seedless:
    name: str = "none"

  with pytest.raises(ConfigError, match="--seeds: Seedless has no field `seed`"):
    run_seeds(Seedless(), [0], tmp_path)
  assert not list(tmp_path.iterdir())
