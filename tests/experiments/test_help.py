"""`--help` of the command that another library parses; tests/docs/test_commands.py has the other commands."""

import importlib.util

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed")
def test_help_of_the_harness(command):
  ended = command("drope_jax.evaluate.harness", "run", "--help")
  assert ended.status == 0 and "--model_args" in ended.stdout
