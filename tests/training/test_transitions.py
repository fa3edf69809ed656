"""Transitions while a run trains: the table of each step, the model that is saved, and that resuming is exact."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.interrupting import terminate, when_step_is_logged
from support.tiny_run import losses, tiny_model, tiny_run

from drope_jax import checkpoint
from drope_jax.config import InitConfig, QKNorm
from drope_jax.errors import ConfigError
from drope_jax.model import hidden_states
from drope_jax.model_config import ModelConfig
from drope_jax.positions import RoPE, RoPETable, layer_cycle
from drope_jax.rotation import Frequencies
from drope_jax.scalings import PI
from drope_jax.serialization import from_dict, to_dict
from drope_jax.train import train
from drope_jax.training.run import resolve
from drope_jax.training.step import MicroBatch, step_number
from drope_jax.transitions import Drop, Fade, Keep, Transition, drop, while_under_way


@dataclasses.dataclass(unsafe_hash=True)
class Halve(Transition):
  """A user's own: frequencies are halved at the middle of the run; what is saved has theta as it was."""

  by: float = 2.0

  def apply(self, model, context):
    return model

  def frequencies(self, model, step, steps):
    table = model.positions.frequencies(model.head_dim)
    omega = jnp.asarray(table.omega, jnp.float32)
    return Frequencies(jnp.where(step < steps // 2, omega, omega / self.by), table.factor)


def fading(corpus, rope, transition, **changes):
  init = InitConfig(checkpoint=str(rope), transition=transition, **changes)
  return tiny_run(corpus, init=init, steps=6)


@pytest.fixture(scope="module")
def faded(corpus, rope, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "faded"
  config = fading(corpus, rope, Fade(share=0.5), qk_norm=QKNorm())
  train(dataclasses.replace(config, checkpoint_every=1, keep_latest=6), workdir)
  return workdir


@functools.partial(jax.jit, static_argnums=0)
def student(run, params, step):
  rows = jnp.asarray(np.random.default_rng(0).integers(0, 257, (2, 17)), jnp.int32)
  inputs = MicroBatch(run, params, None, {"tokens": rows}, step)
  plain = {model: hidden_states(params, model, rows[:, :-1], compute=run.config.compute) for model in models_of(run)}
  return inputs.student().states_BTD, *(found.states_BTD for found in plain.values())


def models_of(run):
  return dataclasses.replace(run.source, qk_norm=run.model.qk_norm), run.model


def test_the_step_starts_with_the_checkpoints_embedding_and_ends_without_one(corpus, rope, faded):
  run = resolve(fading(corpus, rope, Fade(share=0.5), qk_norm=QKNorm()))
  assert run.model.positions is None and run.source.positions == run.trained.positions == RoPE()
  params = checkpoint.load(faded).params
  for step, expected in ((0, "rope"), (1, "between"), (3, "nope"), (5, "nope")):
    found, with_rope, without = map(np.asarray, student(run, params, step_number(step)))
    apart = {"rope": abs(found - with_rope).max(), "nope": abs(found - without).max()}
    if expected == "between":
      assert min(apart.values()) > 1e-3
    else:
      assert apart[expected] < 1e-5 < 1e-3 < max(apart.values())


def test_what_is_saved_is_the_transitions_model_and_the_config_keeps_the_checkpoints(faded, rope):
  saved = checkpoint.open_step(faded)
  assert saved.model == dataclasses.replace(drop(checkpoint.open_step(rope).model), qk_norm=QKNorm())
  assert saved.config.init.model == checkpoint.open_step(rope).model
  assert saved.config.init.transition == Fade(share=0.5)


def test_a_checkpoint_within_the_fade_is_of_the_model_that_was_trained(corpus, rope, faded):
  """Such a checkpoint used to call itself the model of the last step, which its weights do not belong to."""
  run = resolve(fading(corpus, rope, Fade(share=0.5), qk_norm=QKNorm()))
  for step in (1, 2):
    found = checkpoint.load(faded, step=step)
    assert isinstance(found.model.positions, RoPETable)
    assert found.model.qk_norm == QKNorm() and found.config.model == run.model
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 257, (2, 17)), jnp.int32)[:, :-1]
    expected, _, without = student(run, found.params, step)
    states = hidden_states(found.params, found.model, rows, compute=run.config.compute).states_BTD
    np.testing.assert_allclose(states, expected, atol=1e-5)
    assert abs(np.asarray(states - without)).max() > 1e-3
  assert checkpoint.open_step(faded, step=3).model == run.model  # from here on there is no embedding


@pytest.mark.parametrize("order", ["all", "slow_first", "late_first", "theta"])
def test_the_model_under_way_has_the_frequencies_of_its_step(order):
  source, fade = tiny_model(num_layers=3, positions=RoPE(500.0, scaling=PI(2.0))), Fade(share=0.5, order=order)
  run = drop(source)
  assert while_under_way(fade, source, run, 0, 8).positions == RoPETable(
    tuple(np.asarray(source.positions.frequencies(source.head_dim).omega, np.float32).tolist())
  )
  found = while_under_way(fade, source, run, 2, 8)
  table = np.asarray(fade.frequencies(source, jnp.int32(2), 8).omega)
  for index, omega in enumerate(table):
    positions = layer_cycle(found.positions)[index % len(layer_cycle(found.positions))].positions
    left = np.zeros_like(omega) if positions is None else positions.frequencies(source.head_dim).omega
    np.testing.assert_array_equal(np.asarray(left, np.float32), omega)
  assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(found)))) == found
  assert while_under_way(fade, source, run, 4, 8) == while_under_way(fade, source, run, 8, 8) == run


def test_without_a_table_the_model_under_way_is_that_of_the_run():
  source = tiny_model()
  assert while_under_way(Drop(), source, drop(source), 0, 8) == drop(source)
  assert while_under_way(Keep(), source, source, 1, 8) == source
  assert while_under_way(Halve(), source, source, 8, 8) == source  # at the end a user's transition says what it is


@pytest.mark.slow
def test_it_trains_otherwise_than_a_drop_and_than_the_embedding_kept(corpus, rope, faded, tmp_path):
  found = {"fade": losses(faded)}
  for name, transition in (("drop", Drop()), ("keep", Keep())):
    train(fading(corpus, rope, transition, qk_norm=QKNorm()), tmp_path / name)
    found[name] = losses(tmp_path / name)
  assert found["fade"][0][1] == pytest.approx(found["keep"][0][1], rel=1e-6)  # the first step has all of the embedding
  assert abs(found["fade"][0][1] - found["drop"][0][1]) > 1e-4
  assert len({tuple(values) for values in found.values()}) == 3


@pytest.mark.parametrize("order", ["late_first", pytest.param("all", marks=pytest.mark.slow)])
def test_resuming_within_a_fade_is_exact(corpus, rope, tmp_path, monkeypatch, order):
  config = fading(corpus, rope, Fade(share=0.8, order=order))
  train(config, tmp_path / "straight")
  when_step_is_logged(monkeypatch, 2, terminate)
  assert train(config, tmp_path / "stopped") == (3, False)
  assert train(config, tmp_path / "stopped") == (6, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
  ours, theirs = (checkpoint.load(tmp_path / name).params for name in ("stopped", "straight"))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_fade_cannot_be_made_longer_afterwards(corpus, rope, faded):
  config = dataclasses.replace(fading(corpus, rope, Fade(share=0.5), qk_norm=QKNorm()), steps=20)
  with pytest.raises(ConfigError, match="with other steps Fade would bring back what it has taken away"):
    train(config, faded, extend=True)
  assert json.loads((faded / "config.json").read_text())["steps"] == 6


def test_a_transition_of_ones_own_trains_is_recorded_and_resumes(corpus, rope, tmp_path, monkeypatch):
  config = fading(corpus, rope, Halve(by=3.0))
  train(config, tmp_path / "straight")
  written = json.loads((tmp_path / "straight" / "config.json").read_text())["init"]["transition"]
  assert written == {"type": f"{__name__}:Halve", "by": 3.0}
  train(fading(corpus, rope, Keep()), tmp_path / "kept")
  kept, straight = (dict(losses(tmp_path / name)) for name in ("kept", "straight"))
  apart = {step: abs(kept[step] - straight[step]) for step in kept}
  assert max(apart[step] for step in (1, 2, 3)) < 1e-5 < 1e-4 < apart[4]
  when_step_is_logged(monkeypatch, 2, terminate)
  assert train(config, tmp_path / "stopped") == (3, False)
  assert train(config, tmp_path / "stopped") == (6, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
