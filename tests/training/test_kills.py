"""Kills at random moments, saves among them: the run that goes on is the run that nothing disturbed, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support import objectives  # noqa: F401 (that of the run, by which its config is read)
from support.tiny_run import losses, records

from drope_jax import checkpoint

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_change_nothing(corpus, tmp_path, kills):
  script = [sys.executable, str(TESTS / "support" / "killed_training.py"), corpus, str(tmp_path), "0", str(kills)]
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  ended = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
  assert ended.returncode == 0, ended.stderr
  said = json.loads(ended.stdout)
  assert len(said["found"]) == kills and max(said["found"]) < said["steps"]
  assert said["writing"] >= kills // 10  # were killed while they wrote a checkpoint
  killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
  assert losses(killed) == losses(undisturbed)
  assert [record["tokens"] for record in records(killed)] == [record["tokens"] for record in records(undisturbed)]
  ours, theirs = checkpoint.open_step(killed), checkpoint.open_step(undisturbed)
  assert ours.step == theirs.step == said["steps"]
  assert ours.meta["digests"] == theirs.meta["digests"]  # of the weights, the moments and the place in the data
  jax.tree.map(np.testing.assert_array_equal, ours.params(), theirs.params())
