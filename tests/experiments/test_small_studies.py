"""Studies at size `small` without a GPU: with their budgets cut they are the same studies, and run to their reports."""

import dataclasses
from pathlib import Path

import pytest
from support import cut_studies

from drope_jax.config import TrainConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.splits import documents

NAMES = cut_studies.with_size("small")
WORKDIR = Path("study")


def cut(name):
  changes = cut_studies.CUT | cut_studies.CUT_OF_STUDY.get(name, {})
  return dataclasses.replace(cut_studies.whole(name), **changes)


def kept(run):
  """What no budget changes: of a run, or of a checkpoint that stands in the place of one."""
  if not isinstance(run, TrainConfig):
    return run.transition
  batch = dataclasses.replace(run.data, batch_size=1)
  init = None if run.init is None else dataclasses.replace(run.init, checkpoint="start")
  rates = (run.optim.peak_lr, run.optim.schedule, run.optim.floor, type(run.optim.optimizer))
  return run.model, init, run.compute, run.objective, batch, rates, run.seed


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_study_has_the_models_arms_tasks_and_lengths_of_the_whole(name):
  whole, less = cut_studies.whole(name).study(WORKDIR), cut(name).study(WORKDIR)
  assert [kept(run) for run in less.runs.values()] == [kept(run) for run in whole.runs.values()]
  assert [row.method for row in less.rows] == [row.method for row in whole.rows]
  assert (less.lengths, less.tasks) == (whole.lengths, whole.tasks)
  assert max(run.steps for run in less.runs.values() if isinstance(run, TrainConfig)) <= 4


def test_a_tokenised_study_trains_on_the_batches_of_its_text(tmp_path):
  """At `small` the corpus is tokenised once: runs read tokens, held-out documents stay text."""
  cut_studies.prose(tmp_path / "prose", ("absl",))
  batches, held_out = {}, {}
  for tokenize in (True, False):
    settings = dataclasses.replace(
      cut("fig2_recovery"), data=str(tmp_path / "data"), text=str(tmp_path / "prose"), tokenize=tokenize
    )
    study = settings.study(tmp_path / "study")
    study.prepare()
    data = study.runs["control"].data
    stream = train_batches(data, seed=1)
    batches[tokenize] = [next(stream)["tokens"].tolist() for _ in range(3)]
    held_out[tokenize] = list(documents(data.dataset, "heldout"))
    assert list(documents(study.eval_data().dataset, "heldout")) == held_out[tokenize]
  assert (tmp_path / "data" / "tokens" / "meta.json").exists()
  assert batches[True] == batches[False] and held_out[True] == held_out[False]


@pytest.mark.slow
def test_a_cut_study_runs_to_its_report(tmp_path):
  """Of the studies, the quickest with a trunk, a control, a drop, and runs from scratch with RoPE and without."""
  cut_studies.prose(tmp_path / "prose", ("absl", "optax", "flax"))
  found = cut_studies.run("fig2_recovery", tmp_path)
  assert found["ok"], found
  assert (found["runs"], found["rows"]) == (5, 4)
