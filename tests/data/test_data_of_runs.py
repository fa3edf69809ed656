"""Runs and their data: what goes on, what is refused, and what a recalibration reads."""

import dataclasses
import json
import shutil

import pytest
from support.stored_documents import Numbered
from support.tiny_run import losses, tiny_run

from drope_jax.config import InitConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import Cut, Text
from drope_jax.data.splits import documents
from drope_jax.errors import CheckpointError
from drope_jax.serialization import load_config
from drope_jax.train import train


@pytest.fixture(scope="module")
def config(corpus):
  return tiny_run(corpus, steps=6, checkpoint_every=3)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  train(config, workdir)
  return workdir


@pytest.fixture
def half(finished, tmp_path):
  """A copy of the run, as if it had been killed after step 3."""
  workdir = shutil.copytree(finished, tmp_path / "half")
  shutil.rmtree(workdir / "checkpoints" / "6")
  return workdir


def reading(config, **changes):
  return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def test_a_dataset_that_was_moved_goes_on(config, finished, half, corpus, tmp_path):
  shutil.copytree(corpus, tmp_path / "elsewhere")
  train(reading(config, directory=str(tmp_path / "elsewhere")), half)
  assert losses(half)[-3:] == losses(finished)[-3:]


def test_a_dataset_that_was_changed_is_refused_and_nothing_is_lost(config, half, corpus, tmp_path):
  texts = list(documents(corpus, "train"))
  build_corpus(tmp_path / "changed", {"train": [*texts, "one more"]})
  before = (half / "metrics.jsonl").read_bytes()
  with pytest.raises(CheckpointError, match=r"the data has changed .* number of documents is 81, and was 80"):
    train(reading(config, directory=str(tmp_path / "changed")), half)
  assert (half / "metrics.jsonl").read_bytes() == before and (half / "checkpoints" / "3").exists()


def test_a_run_of_an_earlier_version_goes_on_as_it_began(config, tmp_path, corpus):
  """Its config.json and checkpoints know neither the new fields nor the content of the data, nor digests."""
  old = reading(config, interleave=1, seed=0)
  train(old, tmp_path / "whole")
  workdir = shutil.copytree(tmp_path / "whole", tmp_path / "old")
  shutil.rmtree(workdir / "checkpoints" / "6")
  new = ("source", "bos", "min_tokens", "max_tokens", "interleave", "seed")
  for path in (workdir / "config.json", workdir / "checkpoints" / "3" / "meta" / "metadata"):
    data = json.loads(path.read_text())
    fields = data.get("config", data)["data"]
    for name in new:
      del fields[name]
    for name in ("digest", "digests"):
      data.pop(name, None)
    path.write_text(json.dumps(data))
  (state,) = (workdir / "checkpoints" / "3" / "data").glob("process_*.json")
  data = json.loads(state.read_text())
  del data["content"]
  state.write_text(json.dumps(data))
  train(config, workdir)  # whose own interleave and seed are None
  assert losses(workdir) == losses(tmp_path / "whole")


def test_a_recalibration_does_not_read_its_pretraining_again(config, finished, tmp_path):
  again = dataclasses.replace(config, model=None, init=InitConfig(checkpoint=str(finished)))
  train(again, tmp_path / "recalibration")
  one, two = (load_config(type(config), path / "config.json").data for path in (finished, tmp_path / "recalibration"))
  assert (one.seed, two.seed) == (0, 1)
  first, second = (next(train_batches(data, 0))["tokens"].tolist() for data in (one, two))
  assert first != second


def test_a_source_of_the_users_trains_and_goes_on(config, tmp_path):
  (tmp_path / "texts.json").write_text(json.dumps([f"a text of the user's, number {i}" for i in range(50)]))
  mine = reading(config, directory="", source=Cut(Numbered(str(tmp_path / "texts.json")), 0.1, 0.1))
  train(mine, tmp_path / "whole")
  recorded = json.loads((tmp_path / "whole" / "config.json").read_text())["data"]["source"]
  assert recorded["source"]["type"] == "support.stored_documents:Numbered"
  half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
  shutil.rmtree(half / "checkpoints" / "6")
  train(mine, half)
  assert losses(half)[-3:] == losses(tmp_path / "whole")[-3:]


def test_any_source_is_measured_on_by_its_path(tmp_path):
  for i in range(300):
    (tmp_path / f"{i}.txt").write_text(f"text {i}")
  heldout, fit, rest = (set(documents(str(tmp_path), name)) for name in ("heldout", "fit", "train"))
  assert heldout and fit and len(heldout | fit | rest) == 300
  assert set(documents(Cut(Text(f"{tmp_path}/**/*.txt")), "heldout")) == heldout
