"""What a checkpoint holds, which ones stay, and what is said of one that is not there."""

import json
import shutil

import jax
import numpy as np
import pytest
from support.tiny_run import contents, tiny_corpus, tiny_run

from drope_jax import checkpoint
from drope_jax.config import MeshConfig, TrainConfig
from drope_jax.errors import CheckpointError
from drope_jax.parameters import count_parameters
from drope_jax.serialization import LIBRARIES, from_dict, load_config
from drope_jax.sharding import make_mesh
from drope_jax.train import train


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  corpus = tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus")
  order = {"interleave": 4, "seed": 0}  # which a run settles when it starts, if its config does not
  return tiny_run(corpus, data=order, steps=14, checkpoint_every=2, keep_latest=2, keep_every=4)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "run"
  train(config, path)
  return path


@pytest.fixture
def damaged(workdir, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(workdir, tmp_path / "damaged")


def one_line_naming(path, error):
  message = str(error.value)
  assert "\n" not in message
  assert str(path) in message
  return message


def test_the_latest_and_every_kth_are_kept(workdir):
  kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
  assert kept == {4, 8, 12, 14}


def test_a_step_is_a_composite_of_four(workdir):
  assert {path.name for path in (workdir / "checkpoints" / "14").iterdir() if path.is_dir()} == {
    "params",
    "opt_state",
    "data",
    "meta",
  }


def test_meta_is_json_with_config_step_tokens_and_versions(workdir, config):
  meta = json.loads((workdir / "checkpoints" / "12" / "meta" / "metadata").read_text())
  assert meta["step"] == 12
  assert meta["tokens"] == 12 * 8 * 16
  assert meta["seconds"] > 0
  assert from_dict(TrainConfig, meta["config"]) == config
  assert meta["versions"].keys() == set(LIBRARIES)
  assert meta["versions"]["jax"] == jax.__version__


def test_config_json_is_complete(workdir, config):
  assert load_config(TrainConfig, workdir / "config.json") == config
  assert json.loads((workdir / "config.json").read_text())["versions"].keys() == set(LIBRARIES)


def test_the_last_step_is_loaded_unless_another_is_asked_for(workdir, config):
  last, earlier = checkpoint.load(workdir), checkpoint.load(workdir, 8)
  assert (last.step, last.tokens) == (14, 14 * 8 * 16)
  assert (earlier.step, earlier.tokens) == (8, 8 * 8 * 16)
  assert last.model == earlier.model == config.model and last.config == config
  assert not np.array_equal(last.params["embedding"], earlier.params["embedding"])
  assert sum(leaf.size for leaf in jax.tree.leaves(last.params)) == count_parameters(config.model)


def test_weights_load_alone(damaged, workdir):
  for item in ("opt_state", "data"):
    shutil.rmtree(damaged / "checkpoints" / "14" / item)
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load(damaged).params, checkpoint.load(workdir).params)


def test_weights_load_onto_a_mesh(workdir):
  mesh = make_mesh(MeshConfig())
  params = checkpoint.load(workdir, mesh=mesh).params
  assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(params))


def test_loading_changes_nothing(workdir):
  before = contents(workdir)
  checkpoint.load(workdir)
  assert contents(workdir) == before


def test_a_step_that_is_being_written_does_not_count(damaged):
  shutil.copytree(damaged / "checkpoints" / "14", damaged / "checkpoints" / "16.orbax-checkpoint-tmp")
  assert checkpoint.load(damaged).step == 14
  with pytest.raises(CheckpointError, match="no checkpoint of step 16; there are 4, 8, 12, 14"):
    checkpoint.load(damaged, 16)


@pytest.mark.parametrize("what", ["params", "meta"])
def test_a_step_with_a_part_missing(damaged, what):
  shutil.rmtree(damaged / "checkpoints" / "14" / what)
  with pytest.raises(CheckpointError) as error:
    checkpoint.load(damaged)
  assert what in one_line_naming(damaged, error) and "14" in str(error.value)
  assert checkpoint.load(damaged, 12).step == 12


def test_a_step_that_was_not_kept(workdir):
  with pytest.raises(CheckpointError, match="no checkpoint of step 6; there are 4, 8, 12, 14") as error:
    checkpoint.load(workdir, 6)
  one_line_naming(workdir, error)


def test_a_workdir_without_a_complete_checkpoint(damaged):
  for step in (4, 8, 12, 14):
    shutil.rmtree(damaged / "checkpoints" / str(step))
  with pytest.raises(CheckpointError, match="no complete checkpoint") as error:
    checkpoint.load(damaged)
  one_line_naming(damaged, error)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_path_that_is_no_workdir(tmp_path, make):
  make(tmp_path / "empty")
  with pytest.raises(CheckpointError, match="not the workdir of a run") as error:
    checkpoint.load(tmp_path / "empty")
  one_line_naming(tmp_path / "empty", error)
  assert not (tmp_path / "empty" / "checkpoints").exists()
