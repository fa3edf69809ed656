"""Ruined numbers: refused in settings, never saved, skipped if that is asked for, and left in a file to look at."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.eight_devices import on_eight_devices
from support.interrupting import crash, when_step_is_logged
from support.objectives import PoisonedSteps
from support.tiny_run import losses, records, tiny_model, tiny_run
from support.training_mesh_script import run_that_skips

from drope_jax import checkpoint
from drope_jax import train as train_module
from drope_jax.checkpoint import TrainState
from drope_jax.config import InitConfig, OptimConfig
from drope_jax.errors import ConfigError, FileError
from drope_jax.objective import Distill, NextToken
from drope_jax.optimizers import AdamW
from drope_jax.positions import RoPE
from drope_jax.serialization import checked
from drope_jax.train import train
from drope_jax.training import health
from drope_jax.transitions import PartialDrop

# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
  ("build", "field"),
  [
    (lambda x: OptimConfig(peak_lr=x), "OptimConfig.peak_lr"),
    (lambda x: OptimConfig(peak_lr=1.0, optimizer=AdamW(weight_decay=abs(x))), "AdamW.weight_decay"),
    (lambda x: tiny_model(init_std=x), "ModelConfig.init_std"),
    (lambda x: tiny_model(positions=RoPE(theta=abs(x))), "RoPE.theta"),
    (lambda x: tiny_run("corpus", objective=NextToken(z_loss=abs(x))), "NextToken.z_loss"),
    (lambda x: tiny_run("corpus", objective=Distill(weight=abs(x)), init=InitConfig(checkpoint="x")), "Distill.weight"),
  ],
)
def test_an_infinite_setting_is_refused_when_the_config_is_built(build, field, number):
  with pytest.raises(ValueError, match=rf"{field} is -?{abs(number)}"):
    build(number)


def test_infinity_is_allowed_where_it_has_a_meaning(corpus):
  config = tiny_run(corpus, init=InitConfig(checkpoint="x", transition=PartialDrop(turns=math.inf)))
  config = dataclasses.replace(config, optim=OptimConfig(peak_lr=1.0, clip_norm=math.inf))
  assert checked(config) == config
  with pytest.raises(ConfigError, match=r"PartialDrop\.turns is nan"):
    PartialDrop(turns=math.nan)


# --- before a save ----------------------------------------------------------------------------------------------------


def state(weight=1.0, moment=1.0):
  return TrainState({"w": jnp.array([[0.5, weight]])}, {"mu": jnp.array([moment]), "count": jnp.array(2**30)})


@pytest.mark.parametrize(
  ("ruined", "said"),
  [
    (state(weight=jnp.nan), "weights at step 7 is nan"),
    (state(weight=-1e15), r"weights at step 7 is 1e\+15"),
    (state(moment=jnp.inf), "optimizer state at step 7 is inf"),
    (state(moment=1e15), r"optimizer state at step 7 is 1e\+15"),
  ],
)
def test_a_state_with_one_bad_number_is_refused(ruined, said):
  with pytest.raises(health.Ruined, match=said):
    health.check_state(ruined, 7)
  health.check_state(state(), 7)


def test_the_loss_of_a_model_that_was_just_dropped_is_no_alarm():
  health.check("loss", 30.0, 1)
  health.check("gradient norm", 1e9, 1)


def test_weights_that_explode_in_the_last_update_are_not_saved(corpus, tmp_path, monkeypatch):
  """Loss and gradient of the step are those of the weights before it, and fine."""
  original = train_module.make_optimizer
  explodes = optax.scale_by_schedule(lambda count: jnp.where(count < 9, 1.0, 1e20))  # the update of step 10
  monkeypatch.setattr(train_module, "make_optimizer", lambda *args: optax.chain(original(*args), explodes))
  with pytest.raises(FloatingPointError, match=r"weights at step 10 is .*--extend and a lower --config.optim.peak_lr"):
    train(tiny_run(corpus), tmp_path)
  assert checkpoint.load(tmp_path).step == 5
  with np.load(tmp_path / "ruined" / "step_10.npz") as found:
    assert found["norm_step"] == found["last_step"] == 10


# --- one bad batch ----------------------------------------------------------------------------------------------------


def test_what_ended_a_run_is_left_to_look_at(corpus, tmp_path):
  config = tiny_run(corpus, objective=PoisonedSteps(steps=(7,)), log_every=4, data={"document_mask": True})
  with pytest.raises(FloatingPointError, match=f"the loss at step 7 is nan; {tmp_path} keeps its earlier checkpoints"):
    train(config, tmp_path)
  assert checkpoint.load(tmp_path).step == 5
  with np.load(tmp_path / "ruined" / "step_7.npz") as found:
    assert found["step"] == 7 and found["batch/tokens"].shape == (8, 17) and found["batch/segments"].max() > 1
    assert np.isfinite(found["loss/6"]) and np.isnan(found["loss/7"]) and np.isnan(found["grad_norm/7"])
    assert "norm/params/embedding" in found
    assert (found["last_step"], found["norm_step"]) == (8, 9)  # step 9 ran while the record of step 8 was read


def test_what_was_seen_and_cannot_be_written_is_one_line(tmp_path):
  evidence = health.Evidence(tmp_path / "run")
  (tmp_path / "run").touch()
  with pytest.raises(FileError, match=f"{tmp_path}/run/ruined/step_3.npz: cannot be written"):
    evidence.write(3, 3, [], state(), 3)


@pytest.mark.slow
def test_a_ruined_run_goes_on_as_its_message_says(corpus, tmp_path):
  config = tiny_run(corpus, optim={"peak_lr": 1e8, "warmup_steps": 0})
  with pytest.raises(FloatingPointError, match=r"--extend and a lower --config\.optim\.peak_lr \(now 1e\+08\)"):
    train(config, tmp_path)
  lower = dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=1e-3))
  assert train(lower, tmp_path, extend=True) == (10, True)


@pytest.fixture(scope="module")
def skipping(corpus):
  return run_that_skips(corpus, {})


@pytest.fixture(scope="module")
def skipped(skipping, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "skipped"
  train(dataclasses.replace(skipping, keep_latest=10), workdir)
  return workdir


def test_a_skipped_update_leaves_weights_and_optimizer_state_and_is_counted(skipped):
  found = {record["step"]: record for record in records(skipped)}
  assert [found[step]["skipped_updates"] for step in (2, 4, 7, 9, 10)] == [0, 1, 1, 2, 2]
  assert found.keys() == {1, 2, 4, 5, 6, 7, 9, 10} and found[10]["tokens"] == 10 * 8 * 16
  loaded = {step: checkpoint.open_step(skipped, step) for step in (2, 3, 4)}
  jax.tree.map(np.testing.assert_array_equal, loaded[2].params(), loaded[3].params())
  assert abs(loaded[4].params()["embedding"] - loaded[3].params()["embedding"]).max() > 0
  rates = [found[step]["learning_rate"] for step in (1, 2, 4)]
  assert rates == sorted(rates) and rates[2] == pytest.approx(1e-2)  # warmup goes on where it was


def test_a_run_that_skips_resumes_exactly(skipping, skipped, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 5, crash)
  with pytest.raises(InterruptedError):
    train(skipping, tmp_path)
  assert train(skipping, tmp_path) == (10, True)
  assert losses(tmp_path) == losses(skipped)
  assert records(tmp_path)[-1]["skipped_updates"] == 2
  ours, theirs = checkpoint.load(tmp_path).params, checkpoint.load(skipped).params
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_one_update_more_than_may_be_skipped_ends_the_run(skipping, tmp_path):
  with pytest.raises(FloatingPointError, match="the loss at step 8 is nan"):
    train(dataclasses.replace(skipping, skip_updates=1), tmp_path)
  assert checkpoint.load(tmp_path).step == 7
  assert train(skipping, tmp_path) == (10, True)  # the number may be raised on the way


@pytest.mark.slow
def test_eight_devices_skip_as_one(skipped, corpus, tmp_path):
  mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  answer = on_eight_devices("training_mesh_script.py", "skips", corpus, tmp_path / "eight", jobs=mesh)
  ours, theirs = records(skipped), answer["records"]
  for name in ("step", "skipped_updates", "loss"):
    np.testing.assert_allclose([one[name] for one in theirs], [one[name] for one in ours], rtol=1e-5)
