"""Workdirs that commit 725dc9e wrote (fixtures/runs_of_725dc9e.tar.gz): they load, go on, and train as they did.

`rope` is 4 steps from scratch, `drope` 3 steps from it, dropped and with a QK-norm, `interrupted` the same stopped
after 2 of them, and `imported` a pretrained model.
"""

import json
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from support.tiny_run import contents, losses, tiny_corpus, tiny_model

from drope_jax import checkpoint
from drope_jax.config import OptimConfig, QKNorm, TrainConfig
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.objective import NextToken
from drope_jax.optim import make_optimizer
from drope_jax.optimizers import AdamW
from drope_jax.parameters import count_parameters
from drope_jax.positions import RoPE
from drope_jax.serialization import from_dict, load_config
from drope_jax.sharding import make_mesh
from drope_jax.train import train
from drope_jax.training.state import abstract_state
from drope_jax.transitions import Drop

FIXTURE = Path(__file__).parent / "fixtures" / "runs_of_725dc9e.tar.gz"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A directory with the workdirs and the corpus that they name."""
  directory = tmp_path_factory.mktemp("old")
  with tarfile.open(FIXTURE) as archive:
    archive.extractall(directory, filter="data")
  tiny_corpus(directory / "corpus")
  return directory


@pytest.fixture
def old(written, tmp_path, monkeypatch):
  """A copy, and the current directory, from which the configs' relative paths count."""
  copy = shutil.copytree(written, tmp_path / "old")
  monkeypatch.chdir(copy)
  return copy


def recorded(workdir):
  return load_config(TrainConfig, workdir / "config.json")


def test_configs_are_read_in_todays_words(old):
  config = recorded(old / "drope")
  assert config.init.transition == Drop() and config.init.qk_norm == QKNorm()
  assert config.optim.optimizer == AdamW() and config.objective == NextToken()
  assert config.model == tiny_model(positions=None, qk_norm=QKNorm())
  assert recorded(old / "rope").model == tiny_model(positions=RoPE(100.0))


def test_flat_settings_of_the_optimizer_and_z_loss_find_their_new_places(old):
  data = json.loads((old / "rope" / "config.json").read_text())
  del data["versions"]
  data["optim"] |= {"beta2": 0.5, "weight_decay": 0.0, "z_loss": 1e-4}
  config = from_dict(TrainConfig, data)
  assert config.optim.optimizer == AdamW(beta2=0.5, weight_decay=0.0)
  assert config.objective == NextToken(z_loss=1e-4)
  flat = {"type": "OptimConfig", "peak_lr": 0.1, "beta1": 0.8}
  assert from_dict(OptimConfig, flat) == OptimConfig(peak_lr=0.1, optimizer=AdamW(beta1=0.8))


@pytest.mark.parametrize(
  ("name", "step", "positions"), [("rope", 4, RoPE(100.0)), ("drope", 3, None), ("imported", 0, RoPE(100.0))]
)
def test_weights_load_and_an_evaluation_reads_them(old, name, step, positions):
  loaded = checkpoint.load(old / name)
  assert (loaded.step, loaded.model.positions, loaded.context) == (step, positions, 16)
  assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == count_parameters(loaded.model)
  text = np.arange(33) % 26 + 98  # bytes of letters
  found = position_losses(loaded.params, Inference(loaded.model), [text], length=32)
  assert found.shape == (1, 32) and np.isfinite(found).all()
  assert np.log(264) - 2 < found.mean() < np.log(264) + 2


def test_the_optimizer_state_loads(old):
  saved = checkpoint.open_step(old / "drope")
  optimizer = make_optimizer(saved.config.optim, saved.model, saved.config.steps)
  state = saved.optimizer_state(abstract_state(saved.model, optimizer, make_mesh(saved.config.mesh)).opt_state)
  moments = [leaf for leaf in jax.tree.leaves(state) if np.ndim(leaf) > 1]
  assert len(moments) > 20 and all(np.any(leaf) for leaf in moments)


@pytest.mark.parametrize(("name", "steps"), [("rope", 4), ("drope", 3)])
def test_a_finished_run_is_recognised(old, name, steps):
  before = {path: data for path, data in contents(old / name).items() if path != "config.json"}
  assert train(recorded(old / name), old / name) == (steps, True)
  after = contents(old / name)
  assert {path: after[path] for path in before} == before


@pytest.mark.parametrize("name", ["rope", "drope"])
def test_the_same_run_today_has_the_same_losses(old, name):
  train(recorded(old / name), old / "again")
  np.testing.assert_allclose(losses(old / "again"), losses(old / name), rtol=1e-5)


def test_a_run_that_was_interrupted_goes_on(old):
  assert [path.name for path in (old / "interrupted" / "checkpoints").iterdir()] == ["2"]
  assert train(recorded(old / "interrupted"), old / "interrupted") == (3, True)
  np.testing.assert_allclose(losses(old / "interrupted"), losses(old / "drope"), rtol=1e-5)
