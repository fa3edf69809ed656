"""Weights from another run: what a transition makes of them, and what becomes of the optimizer."""

import dataclasses
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support.interrupting import terminate, when_step_is_logged
from support.tiny_run import WORDS, contents, losses, tiny_model, tiny_run

from drope_jax import checkpoint
from drope_jax.config import InitConfig, QKNorm
from drope_jax.data.tokenizers import load_tokenizer, train_bpe
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.positions import RoPE
from drope_jax.train import train
from drope_jax.training.preflight import warn_of_another_context, warn_of_another_tokenizer, warn_of_idle_settings
from drope_jax.training.run import resolve
from drope_jax.transitions import Keep


def equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def stands_still(corpus, init):
  """One step from `init` at a learning rate of zero: its checkpoint holds what the run began with."""
  return tiny_run(corpus, init=init, optim={"peak_lr": 0.0, "warmup_steps": 0}, steps=1)


def optimizer_state(workdir, step):
  with checkpoint.open_manager(workdir) as manager:
    args = ocp.args.Composite(opt_state=ocp.args.StandardRestore())
    flat = jax.tree.leaves_with_path(manager.restore(step, args=args)["opt_state"])
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.parametrize("qk_norm", [None, QKNorm(scope="head", queries=False)])
def test_init_takes_the_weights_drops_the_positions_and_inserts_qk_norm(corpus, finished, tmp_path, qk_norm):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished), qk_norm=qk_norm)), tmp_path)
  source, found = checkpoint.load(finished), checkpoint.load(tmp_path)
  assert source.model.positions == RoPE()
  assert found.model == dataclasses.replace(source.model, positions=None, qk_norm=qk_norm)
  layers = dict(found.params["layers"])
  new = {name: layers.pop(name) for name in layers.keys() - source.params["layers"].keys()}
  assert len(new) == (0 if qk_norm is None else qk_norm.queries + qk_norm.keys)
  assert all((weight == 1).all() for weight in new.values())
  equal({**found.params, "layers": layers}, source.params)
  assert found.step == 1 and found.tokens == 8 * 16  # counted anew


def test_init_keeps_the_positions_when_asked_to(corpus, finished, tmp_path):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished), transition=Keep())), tmp_path)
  assert checkpoint.load(tmp_path).model == checkpoint.load(finished).model
  # The first batch of another order of the same corpus: the loss goes on where it was, not where it began.
  assert losses(tmp_path)[0][1] < losses(finished)[5][1]


def test_init_from_an_earlier_step(corpus, finished, tmp_path):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished), step=5)), tmp_path)
  equal(checkpoint.load(tmp_path).params, checkpoint.load(finished, 5).params)
  assert not np.array_equal(
    checkpoint.load(tmp_path).params["embedding"], checkpoint.load(finished, 10).params["embedding"]
  )


def test_the_optimizer_is_fresh_or_its_moments_are_carried_over(corpus, finished, tmp_path):
  init = InitConfig(checkpoint=str(finished), qk_norm=QKNorm())
  for name, keep in (("fresh", False), ("kept", True)):
    train(stands_still(corpus, dataclasses.replace(init, keep_optimizer=keep)), tmp_path / name)
  source = optimizer_state(finished, 10)
  fresh, kept = optimizer_state(tmp_path / "fresh", 1), optimizer_state(tmp_path / "kept", 1)
  assert fresh.keys() == kept.keys()
  mu = [name for name in source if "/mu/" in name]
  assert len(mu) == 11 and all(np.any(source[name]) for name in mu)
  for name in mu:  # one step on: mu = beta1 * mu + (1 - beta1) * gradient, with the same gradient in both
    np.testing.assert_allclose(kept[name] - fresh[name], 0.9 * source[name], atol=1e-6)
  inserted = [name for name in fresh if name.endswith(("mu/layers/q_norm", "mu/layers/k_norm"))]
  assert len(inserted) == 2
  for name in inserted:
    np.testing.assert_array_equal(kept[name], fresh[name])
  counts = sorted(int(kept[name]) for name in kept if name.endswith("count"))
  assert counts == [1, 11]  # of the schedule, which starts anew, and of Adam's bias correction
  assert {int(fresh[name]) for name in fresh if name.endswith("count")} == {1}


def test_its_own_checkpoint_wins_over_init(corpus, finished, tmp_path, monkeypatch):
  config = tiny_run(corpus, init=InitConfig(checkpoint=str(finished)))
  train(config, tmp_path / "straight")
  when_step_is_logged(monkeypatch, 3, terminate)
  assert train(config, tmp_path / "stopped") == (4, False)
  assert train(config, tmp_path / "stopped") == (10, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
  equal(checkpoint.load(tmp_path / "stopped").params, checkpoint.load(tmp_path / "straight").params)


def test_a_model_that_is_not_that_of_init(corpus, finished, tmp_path):
  dropped = tiny_model(positions=None)
  config = tiny_run(corpus, init=InitConfig(checkpoint=str(finished)), model=dataclasses.replace(dropped, d_ff=32))
  with pytest.raises(ConfigError, match=r"TrainConfig.model is not that of .*: d_ff: 24 there, 32 here"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  assert resolve(dataclasses.replace(config, model=dropped)).model == dropped


def test_there_must_be_something_to_start_from(corpus, tmp_path):
  with pytest.raises(CheckpointError, match=r"/nowhere/at/all: not the workdir of a run.*--config.init.checkpoint"):
    train(tiny_run(corpus, init=InitConfig(checkpoint="/nowhere/at/all")), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_dropped_run_has_nothing_left_to_drop(corpus, finished, tmp_path):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished))), tmp_path / "dropped")
  with pytest.raises(ConfigError, match="no positional embedding to drop"):
    train(stands_still(corpus, InitConfig(checkpoint=str(tmp_path / "dropped"))), tmp_path / "twice")


def test_the_source_is_not_touched(corpus, finished, tmp_path):
  source = shutil.copytree(finished, tmp_path / "source")
  before = contents(source)
  train(stands_still(corpus, InitConfig(checkpoint=str(source), keep_optimizer=True)), tmp_path / "run")
  assert contents(source) == before


def test_another_tokenizer_than_the_checkpoints_is_announced(corpus, finished, tmp_path, caplog):
  other = tmp_path / "tokenizer"
  train_bpe([" ".join(WORDS)] * 3, 260, other)
  init = InitConfig(checkpoint=str(finished))
  for tokenizer, times in ((str(other / "tokenizer.json"), 1), ("byte", 1), ("init", 1)):
    run = resolve(tiny_run(corpus, init=init, data={"tokenizer": tokenizer}))
    warn_of_another_tokenizer(run, load_tokenizer(run.config.data.tokenizer))
    assert caplog.text.count("whose weights know other tokens") == times


def test_another_context_than_the_checkpoints_is_announced(corpus, finished, caplog):
  init = InitConfig(checkpoint=str(finished))
  for context, times in ((16, 0), (32, 1)):
    warn_of_another_context(resolve(tiny_run(corpus, init=init, data={"context": context})))
    assert [record.levelname for record in caplog.records if "DataConfig.context" in record.getMessage()] == [
      "WARNING"
    ] * times
  assert "--config.data.context=16" in caplog.text


def test_settings_of_a_loss_that_nothing_measures_are_told(corpus, caplog):
  warn_of_idle_settings(tiny_run(corpus, eval_every=2, eval_extensions=(1, 2)))
  warn_of_idle_settings(tiny_run(corpus))
  assert not caplog.records
  warn_of_idle_settings(tiny_run(corpus, eval_extensions=(1, 2), eval_documents=3))
  assert [record.args for record in caplog.records] == [("eval_documents", 3), ("eval_extensions", (1, 2))]
