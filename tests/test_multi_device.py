"""One device or eight, and however they are arranged: the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_corpus

MESHES = {
  "data": {"data": 8},
  "fsdp": {"fsdp": 8},
  "fsdp-tensor": {"fsdp": 4, "tensor": 2},
  "all": {"data": 2, "fsdp": 2, "tensor": 2},
  "context": {"data": 4, "context": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """What became of every job, by its run."""
  workdir = tmp_path_factory.mktemp("meshes")
  corpus = tiny_corpus(workdir / "corpus")

  def do(devices, jobs):
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run(
      [sys.executable, str(Path(__file__).with_name("multi_device_script.py")), corpus, str(workdir)],
      input=json.dumps(jobs),
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert {answer["devices"] for answer in answers} == {devices}
    return answers

  jobs = [{"run": name, "mesh": mesh} for name, mesh in MESHES.items()]
  jobs += [
    {"run": "moved", "mesh": MESHES["fsdp"], "crash_at": 8},
    {"run": "moved", "mesh": MESHES["fsdp-tensor"]},
  ]
  answers = do(8, jobs)
  found = dict(zip(MESHES, answers, strict=False))
  found["crashed"], found["moved"] = answers[-2:]
  found["one"], found["loaded on one"] = do(1, [{"run": "one", "mesh": {}}, {"run": "all", "mesh": {}, "load": True}])
  return found


def same_curve(ours, theirs):
  ours, theirs = np.array(ours), np.array(theirs)
  assert len(ours) == len(theirs) == 12
  np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
  np.testing.assert_allclose(ours[:, 1], theirs[:, 1], atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_loss_curve_is_that_of_one_device(runs, mesh):
  curve = runs["one"]["losses"]
  assert curve[-1][1] < curve[0][1] - 1  # there is something to go wrong
  same_curve(runs[mesh]["losses"], curve)


def test_a_checkpoint_of_one_mesh_goes_on_on_another(runs):
  assert len(runs["crashed"]["losses"]) == 8
  same_curve(runs["moved"]["losses"], runs["one"]["losses"])


@pytest.mark.parametrize(
  ("mesh", "shard"),
  [("data", [2, 16, 24]), ("fsdp", [2, 2, 24]), ("fsdp-tensor", [2, 4, 12]), ("all", [2, 8, 12]), ("one", [2, 16, 24])],
)
def test_weights_are_sharded_as_the_table_says(runs, mesh, shard):
  assert runs[mesh]["loaded"]["shape"] == [2, 16, 24]
  assert runs[mesh]["loaded"]["shard"] == shard


def test_weights_load_alone_on_another_mesh(runs):
  assert runs["loaded on one"]["loaded"]["shard"] == [2, 16, 24]
  assert runs["loaded on one"]["loaded"]["sum"] == pytest.approx(runs["all"]["loaded"]["sum"], rel=1e-6)
