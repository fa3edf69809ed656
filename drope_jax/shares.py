"""Fractions of a run's steps, after which a fade or a teacher ends."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def elapsed(step: Any, share: float, steps: int) -> jax.Array:
  """Progress through the first `share` of `steps` steps at `step`, from 0 to 1: float32 ().

  From the end of the share on it is exactly 1: that step is computed in Python, because the compiled quotient may round
  to less than 1.
  """
  return jnp.where(step >= math.ceil(share * steps), 1.0, jnp.minimum(step / (share * steps), 1.0))
