"""Shares of a run's steps, by which fades and teachers end."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def elapsed(step: Any, share: float, steps: int) -> jax.Array:
  """How much of the first `share` of `steps` steps is over at `step`, from 0 to 1: float32 ().

  It is exactly 1 from there on. The last step of the share is a number known beforehand: a quotient may round to less
  than 1 once it is compiled.
  """
  return jnp.where(step >= math.ceil(share * steps), 1.0, jnp.minimum(step / (share * steps), 1.0))
