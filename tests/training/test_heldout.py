"""The held-out loss of a run while it trains: which numbers, when, and that nothing else changes."""

import dataclasses
import json

import numpy as np
import pytest
from support.interrupting import terminate, when_step_is_logged
from support.tiny_run import WORDS, records, tiny_model, tiny_run

from drope_jax import checkpoint, metrics
from drope_jax.config import InitConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.train import train
from drope_jax.training.heldout import group_means
from drope_jax.transitions import Fade


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """`heldout` has five documents of 65 tokens and more, and a short one between them."""
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(WORDS, size=10)) for _ in range(80)]
  long = [" ".join(rng.choice(WORDS, size=30)) for _ in range(5)]
  return str(build_corpus(tmp_path_factory.mktemp("corpus") / "corpus", {"train": texts, "heldout": ["a", *long]}))


@pytest.fixture(scope="module")
def config(corpus):
  model = tiny_model(init_std=0.3)
  return tiny_run(corpus, model=model, steps=6, eval_every=2, eval_documents=3, eval_extensions=(1, 4))


@pytest.fixture(scope="module")
def evaluated(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "evaluated"
  train(config, workdir)
  return workdir


def evaluations(workdir):
  return [record for record in records(workdir) if not metrics.is_training(record)]


def trained(workdir):
  return [(record["step"], record["loss"]) for record in records(workdir) if metrics.is_training(record)]


def test_it_is_measured_at_the_start_at_every_so_many_steps_and_at_the_end(evaluated):
  found = evaluations(evaluated)
  assert [(record["step"], record["extension"]) for record in found] == [
    (step, extension) for step in (0, 2, 4, 6) for extension in (1, 4)
  ]
  assert all(record["kind"] == "eval" and record["split"] == "heldout" and record["documents"] == 3 for record in found)
  assert {record["extension"]: record["context"] for record in found} == {1: 16, 4: 64}
  first, last = found[0], found[-2]
  assert last["loss"] < first["loss"]


@pytest.mark.parametrize(("extension", "length"), [(1, 16), (4, 64)])
def test_the_loss_is_that_of_an_evaluation_of_the_checkpoint(evaluated, corpus, extension, length):
  loaded, tokenizer = checkpoint.load(evaluated), ByteTokenizer()
  texts = [tokenizer.encode(text) for text in documents(corpus, "heldout")]
  texts = [np.asarray(text) for text in texts if len(text) > 64][:3]
  expected = position_losses(loaded.params, Inference(loaded.model), texts, length=length)
  (found,) = [r for r in evaluations(evaluated) if (r["step"], r["extension"]) == (6, extension)]
  assert found["loss"] == pytest.approx(expected.mean(), rel=1e-5)
  assert found["loss_by_group"] == pytest.approx(expected.mean(axis=1).tolist(), rel=1e-5)  # of three documents: each


def test_groups_have_every_eighth_document():
  losses_N = np.arange(20.0)
  assert group_means(losses_N) == [8.0, 9.0, 10.0, 11.0, 8.0, 9.0, 10.0, 11.0]  # (0, 8, 16), ..., (4, 12), ...
  assert group_means(losses_N[:3]) == [0.0, 1.0, 2.0]


def test_training_is_the_same_without_it(config, evaluated, tmp_path):
  train(dataclasses.replace(config, eval_every=None), tmp_path)
  assert trained(tmp_path) == trained(evaluated) and not evaluations(tmp_path)


def test_a_run_that_goes_on_neither_repeats_nor_misses_one(config, evaluated, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 2, terminate)
  assert train(config, tmp_path) == (3, False)
  assert train(config, tmp_path) == (6, True)
  assert evaluations(tmp_path) == evaluations(evaluated)
  assert trained(tmp_path) == trained(evaluated)


def test_it_may_be_turned_on_for_a_run_that_has_begun(config, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 2, terminate)
  train(dataclasses.replace(config, eval_every=None), tmp_path)
  train(dataclasses.replace(config, eval_every=4, eval_extensions=(1,)), tmp_path)
  assert [record["step"] for record in evaluations(tmp_path)] == [4, 6]


def test_during_a_fade_it_has_the_embedding_of_the_step(config, evaluated, tmp_path):
  """At the start the checkpoint's own model, at the end the one that is saved: without embedding."""
  init = InitConfig(checkpoint=str(evaluated), transition=Fade(share=0.5))
  train(dataclasses.replace(config, model=None, init=init, eval_extensions=(1,)), tmp_path)
  first, *_, last = evaluations(tmp_path)
  assert first["loss"] == pytest.approx(evaluations(evaluated)[-2]["loss"], rel=1e-5)
  loaded, tokenizer = checkpoint.load(tmp_path), ByteTokenizer()
  texts = [np.asarray(tokenizer.encode(text)) for text in documents(config.data.directory, "heldout")]
  texts = [text for text in texts if len(text) > 16][:3]
  assert loaded.model.positions is None
  expected = position_losses(loaded.params, Inference(loaded.model), texts, length=16).mean()
  assert last["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured_is_refused_before_anything_is_written(config, tmp_path):
  for changes, message in (
    ({"eval_extensions": (64,)}, "TrainConfig.eval_every: .*, split 'heldout': no document has 1025 tokens or more"),
    ({"data": dataclasses.replace(config.data, directory="nowhere")}, "nowhere"),
  ):
    with pytest.raises(ConfigError, match=message):
      train(dataclasses.replace(config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("extensions", [(), (0,), (2, 2)])
def test_extensions_are_different_and_at_least_one(config, extensions):
  with pytest.raises(ConfigError, match=r"TrainConfig\.eval_extensions"):
    dataclasses.replace(config, eval_extensions=extensions)


def test_trackers_draw_it_under_a_name_of_its_own(evaluated):
  names = {name for record in records(evaluated) for name in metrics._scalars(record)}
  assert {"loss", "heldout/loss_1x", "heldout/loss_4x"} <= names
  assert not {"kind", "split", "step"} & names


def test_records_are_json_of_one_line(evaluated):
  for line in (evaluated / "metrics.jsonl").read_text().splitlines():
    assert isinstance(json.loads(line)["step"], int)
