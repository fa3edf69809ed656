"""Fixtures of the tests of training."""

import pytest
from support.tiny_run import tiny_run

from drope_jax.train import train


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory):
  """The workdir of `tiny_run(corpus)`, with RoPE, that nothing disturbed; no test may change it."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  assert train(tiny_run(corpus), workdir) == (10, True)
  return workdir
