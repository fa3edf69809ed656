"""Fractions of a run's steps, after which a fade or a teacher ends."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def steps_of(share: float, steps: int) -> int:
  """How many of `steps` steps a share is, rounded up, and at least one.

  In floating point 0.07 of 100 steps is a little more than 7: that is not rounded up to 8.
  """
  return max(math.ceil(round(share * steps, 6)), 1)


def elapsed(step: Any, share: float, steps: int) -> jax.Array:
  """Progress through the first `share` of `steps` steps at `step`, from 0 to 1: float32 ().

  From the end of the share on it is exactly 1: that step is computed in Python, because the compiled quotient may round
  to less than 1.
  """
  return jnp.where(step >= steps_of(share, steps), 1.0, jnp.minimum(step / (share * steps), 1.0))
