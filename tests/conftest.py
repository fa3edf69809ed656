"""Fixtures for more than one file."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation():
  """For files whose programs run once: most of the time would go into optimising them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
