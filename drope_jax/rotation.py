"""Rotations of queries and keys: their frequencies, the angles at given positions, and applying them.

The layout is half-split (as in Hugging Face): dimension i is paired with i + h/2. Letters as in model.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Rotation(NamedTuple):
  """cos and sin of every angle, float32 (B, T, h/2), or (L, B, T, h/2) if layers differ; (1, 0) is the identity."""

  cos: Array
  sin: Array


class Frequencies(NamedTuple):
  """The frequencies of a rotation.

  Attributes:
    omega: radians per token, (h/2,); (B, 1, h/2) if rows differ; (L, h/2) if layers differ.
    factor: multiplies cos and sin; a scalar, or (h/2,) if pairs differ.
  """

  omega: Array
  factor: Array | float


def rotation(position_ids_BT: Array, frequencies: Frequencies) -> Rotation:
  """The rotation at integer positions: (B, T, h/2), or (L, B, T, h/2) if the layers' frequencies differ.

  Angles are float32: bfloat16 cannot tell 256 from 257.
  """
  omega = jnp.asarray(frequencies.omega, jnp.float32)
  if omega.ndim == 2:  # by layer
    omega = omega[:, None, None]
  angles = position_ids_BT[..., None].astype(jnp.float32) * omega
  factor = jnp.asarray(frequencies.factor, jnp.float32)
  return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate(x_BTHh: jax.Array, rotation: Rotation | None) -> jax.Array:
  """Rotates each pair (i, i + h/2) by its angle, in float32; returned in the dtype of `x`. None is the identity."""
  if rotation is None:
    return x_BTHh
  cos, sin = rotation
  halves = x_BTHh.astype(jnp.float32).reshape(*x_BTHh.shape[:-1], 2, -1)
  # (first, second) * (cos, cos) + (second, first) * (-sin, sin). Splitting and concatenating the halves is slow on
  # CPUs. The tables are stacked into one array, since XLA would otherwise recompute the cosine for every element that
  # uses it.
  tables = jnp.stack([cos, cos, -sin, sin], axis=2)[:, :, None]
  rotated = halves * tables[..., :2, :] + halves[..., ::-1, :] * tables[..., 2:, :]
  return rotated.reshape(x_BTHh.shape).astype(x_BTHh.dtype)
