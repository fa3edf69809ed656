"""The small config: its docstring's numbers, and that it runs on a user's own text."""

import dataclasses

import pytest

from drope_jax.errors import ConfigError
from drope_jax.metrics import flops_per_token
from drope_jax.parameters import count_parameters
from experiments.configs import small


def test_the_page_says_what_a_run_costs():
  rope, drope = small.get_config(), small.get_config("drope")
  tokens = [run.steps * run.data.batch_size * run.data.context for run in (rope, drope)]
  per_token = flops_per_token(rope.model, rope.data.context)
  page = small.__doc__
  for number, run in zip(tokens, (rope, drope), strict=True):
    assert f"{run.steps} |  {number / 1e6:.2f}M" in page
  assert f"Parameters: {count_parameters(rope.model) / 1e6:.2f}M." in page
  assert f"{per_token:.3e}".replace("e+0", "e") in page and f"{per_token * tokens[0]:.2e}".replace("e+", "e") in page


def test_both_stages_read_rows_of_one_shape_and_no_data_of_ours():
  rope, drope = (small.get_config(arg).data for arg in small.ARGS)
  assert dataclasses.replace(drope, tokenizer=rope.tokenizer) == rope and not rope.directory
  with pytest.raises(ConfigError, match=r"small\.py has no 'nope'; allowed: rope, drope"):
    small.get_config("nope")
