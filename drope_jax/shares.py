"""Shares of a run's steps, by which fades and teachers end."""

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
  """How much of the first `share` of `steps` steps is over at `step`, from 0 to 1: float32 ().

  It is exactly 1 from there on. The last step of the share is a number known beforehand: a quotient may round to less
  than 1 once it is compiled.
  """
  return jnp.where(step >= steps_of(share, steps), 1.0, jnp.minimum(step / (share * steps), 1.0))
