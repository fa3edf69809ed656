"""One device or eight, and however they are arranged: the same run, in no more memory than the arrangement promises."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from support.eight_devices import on_eight_devices
from support.multi_device_script import MODEL, curve_config
from support.tiny_run import losses, tiny_corpus

from drope_jax import checkpoint
from drope_jax.parameters import map_specs
from drope_jax.sharding import PRESETS
from drope_jax.train import train

pytestmark = pytest.mark.slow

MIXED = {
  "data, fsdp and tensor": {"data": 2, "fsdp": 2, "tensor": 2},
  "data and context": {"data": 4, "context": 2},
  "fsdp, tensor and context": {"data": 1, "fsdp": 2, "tensor": 2, "context": 2},
}
LENGTHS = [4096, 8192]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("meshes")


@pytest.fixture(scope="module")
def corpus(workdir):
  return tiny_corpus(workdir / "corpus")


@pytest.fixture(scope="module")
def on_eight(workdir, corpus):
  """Does jobs (see multi_device_script.py) in a process with eight devices."""

  def do(jobs):
    answer = on_eight_devices(
      "multi_device_script.py",
      corpus,
      workdir,
      jobs=jobs,
      JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # compiling takes longer than running
      JAX_COMPILATION_CACHE_DIR=str(workdir / "compiled"),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    return answer["answers"]

  return do


@pytest.fixture(scope="module")
def curve(workdir, corpus):
  """The losses of one device: of this process."""
  assert jax.device_count() == 1
  train(curve_config(corpus, {}), workdir / "one")
  return losses(workdir / "one")


@pytest.fixture(scope="module")
def runs(on_eight):
  """What became of every job, by its name."""
  presets = {name: dataclasses.asdict(mesh) for name, mesh in PRESETS.items()}
  jobs = {name: {"run": name, "mesh": mesh} for name, mesh in presets.items()}
  jobs["crashed"] = {"run": "moved", "mesh": presets["fsdp"], "crash_at": 4}
  jobs["moved"] = {"run": "moved", "mesh": presets["fsdp_tp"]}
  jobs["long"] = {"lengths": LENGTHS, "mesh": presets["context"]}
  jobs["long, whole"] = {"lengths": LENGTHS, "mesh": {"data": 8}}
  return dict(zip(jobs, on_eight(list(jobs.values())), strict=True))


def same_curve(ours, theirs):
  ours, theirs = np.array(ours), np.array(theirs)
  assert len(ours) == len(theirs) == 6
  np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
  np.testing.assert_allclose(ours[:, 1], theirs[:, 1], atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_curve_is_that_of_one_device(runs, curve, preset):
  assert curve[-1][1] < curve[0][1] - 0.5  # there is something to go wrong
  same_curve(runs[preset]["losses"], curve)


def test_a_checkpoint_of_one_mesh_goes_on_on_another(runs, curve):
  assert len(runs["crashed"]["losses"]) == 4
  same_curve(runs["moved"]["losses"], curve)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_parameter_is_replicated_that_the_preset_shards(runs, preset):
  """The compiled step's own account: each device takes an eighth of every matrix and of its moments, dp all of them."""
  elements = map_specs(lambda spec: np.array([math.prod(spec.shape) * spec.decay, math.prod(spec.shape)]), MODEL)
  matrices, everything = sum(jax.tree.leaves(elements))
  share = matrices if preset == "dp" else matrices / 8
  weights_and_moments = 3 * 4 * (share + everything - matrices)
  rows = 8 if preset == "context" else 2 if preset == "fsdp_tp" else 1
  batch, counters = rows * 17 * 4, 16
  assert 0 <= runs[preset]["memory"]["arguments"] - weights_and_moments - batch <= counters


def test_weights_load_alone_on_another_mesh(runs, workdir):
  assert runs["fsdp_tp"]["loaded"]["shape"] == [2, 16, 24]
  assert runs["fsdp_tp"]["loaded"]["shard"] == [2, 4, 12]
  params = checkpoint.load(workdir / "fsdp_tp").params
  assert params["layers"]["gate"].addressable_shards[0].data.shape == (2, 16, 24)
  assert float(abs(params["embedding"]).sum()) == pytest.approx(runs["fsdp_tp"]["loaded"]["sum"], rel=1e-6)


def test_a_long_text_takes_each_device_its_share_of_memory(runs):
  """Linear in the length, far below the scores of all pairs, and what one device would take divided among them."""
  (shorter, longer), whole = runs["long"]["temporary"], runs["long, whole"]["temporary"]
  assert longer < 2 * shorter
  assert longer - shorter < (whole[1] - whole[0]) / 6
  assert longer < LENGTHS[1] ** 2 * 4 / 8  # one head's scores of a device's queries


@pytest.mark.slow
def test_the_loss_curve_on_mixed_meshes(on_eight, curve):
  answers = on_eight([{"run": name, "mesh": mesh} for name, mesh in MIXED.items()])
  for found in answers:
    same_curve(found["losses"], curve)
