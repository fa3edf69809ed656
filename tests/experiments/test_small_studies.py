"""Studies at size `small` without a GPU: with their budgets cut they are the same studies, and run to their reports."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from support import cut_studies

from drope_jax.config import TrainConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError
from experiments import recall_corpus
from experiments.studies import partial_drop_rule
from experiments.studies.branching import BranchingStudy

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


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """The settings of a study at `small`, with the corpus that it has made of docstrings."""
  folder = tmp_path_factory.mktemp("shared")
  text = cut_studies.prose(folder / "prose", ("absl",))
  settings = dataclasses.replace(cut("fig2_recovery"), data=str(folder / "data"), text=str(text))
  settings.study(folder / "study").prepare()
  return settings


def test_a_tokenised_study_trains_on_the_batches_of_its_text(shared):
  """At `small` the corpus is tokenised once: runs read tokens, held-out documents stay text."""
  batches, held_out = {}, {}
  for tokenize in (True, False):
    study = dataclasses.replace(shared, tokenize=tokenize).study(WORKDIR)
    data = study.runs["control"].data
    stream = train_batches(data, seed=1)
    batches[tokenize] = [next(stream)["tokens"].tolist() for _ in range(3)]
    held_out[tokenize] = list(documents(data.dataset, "heldout"))
    assert list(documents(study.eval_data().dataset, "heldout")) == held_out[tokenize]
  assert (Path(shared.data) / "tokens" / "meta.json").exists()
  assert batches[True] == batches[False] and held_out[True] == held_out[False]


def test_a_study_refuses_a_corpus_that_another_has_made_for_itself(shared):
  shared.study(WORKDIR).prepare()
  for changes, field in (
    ({"text": "other"}, "text"),
    ({"text": "docstrings"}, "text"),
    ({"context": 512}, "context"),
    ({"model": dataclasses.replace(shared.model, vocab_size=1024)}, "vocab_size"),
  ):
    with pytest.raises(ConfigError, match=rf"data/corpus was made with {field} .*; name another folder of data"):
      dataclasses.replace(shared, **changes).study(WORKDIR).prepare()
  dataclasses.replace(shared, text="", context=512).study(WORKDIR).prepare()  # a corpus that is there, whatever it is


def test_sizes_that_share_a_folder_of_data_want_the_same_corpus():
  wanted = {}
  for path in cut_studies.STUDIES.glob("*.py"):
    module = importlib.import_module(f"experiments.studies.{path.stem}")
    for size in getattr(module, "SIZES", ()):
      settings = module.get_config(size)
      if isinstance(settings, BranchingStudy) and settings.data and settings.text:
        recipe = recall_corpus.small(settings.model.vocab_size, settings.context)
        wanted.setdefault(settings.data, set()).add((settings.text, recipe))
  assert set(map(len, wanted.values())) == {1} and len(wanted) == 2


def test_held_out_documents_are_long_enough_at_another_context(shared, tmp_path):
  settings = dataclasses.replace(
    partial_drop_rule.get_config("small_512"), data=str(tmp_path / "data"), text=shared.text, tokenize=False
  )
  study = settings.study(WORKDIR)
  study.prepare()
  data = study.eval_data()
  assert data.longest == 4096 and len(data.documents) == len(documents(data.dataset, "heldout"))


@pytest.mark.slow
def test_a_cut_study_runs_to_its_report(tmp_path):
  """Of the studies, the quickest with a trunk, a control, a drop, and runs from scratch with RoPE and without."""
  cut_studies.prose(tmp_path / "prose", ("absl", "optax", "flax"))
  found = cut_studies.run("fig2_recovery", tmp_path)
  assert found["ok"], found
  assert (found["runs"], found["rows"]) == (5, 4)
