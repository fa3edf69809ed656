"""Rotations of queries and keys: the table of their frequencies, the angles at positions, and how a vector is turned.

The layout is half-split (Hugging Face): dimension i is paired with i + h/2. Letters as in model.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Rotation(NamedTuple):
  """cos and sin of every angle, float32 of shape (B, T, h/2); (1, 0) is the identity."""

  cos: Array
  sin: Array


class Frequencies(NamedTuple):
  """The table of a rotation.

  Attributes:
    omega: radians per token, (h/2,); (B, 1, h/2) for rows of their own; (L, h/2) where the layers differ.
    factor: on cos and sin; (h/2,) where pairs differ.
  """

  omega: Array
  factor: Array | float


def rotation(position_ids_BT: Array, frequencies: Frequencies) -> Rotation:
  """The rotation at integer positions by a table: (B, T, h/2), or (L, B, T, h/2) of one with layers.

  Angles are float32, since bfloat16 cannot tell 256 from 257.
  """
  omega = jnp.asarray(frequencies.omega, jnp.float32)
  if omega.ndim == 2:  # by layer
    omega = omega[:, None, None]
  angles = position_ids_BT[..., None].astype(jnp.float32) * omega
  factor = jnp.asarray(frequencies.factor, jnp.float32)
  return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate(x_BTHh: jax.Array, rotation: Rotation | None) -> jax.Array:
  """Rotates each pair (i, i + h/2) by its angle; in float32, returned in the dtype of `x`; None is the identity."""
  if rotation is None:
    return x_BTHh
  cos, sin = rotation
  halves = x_BTHh.astype(jnp.float32).reshape(*x_BTHh.shape[:-1], 2, -1)
  # (first, second) * (cos, cos) + (second, first) * (-sin, sin). Halves that are cut apart and joined again are slow on
  # CPUs; and the tables are stacked to be an array, since XLA would compute a cosine anew for every element and use.
  tables = jnp.stack([cos, cos, -sin, sin], axis=2)[:, :, None]
  rotated = halves * tables[..., :2, :] + halves[..., ::-1, :] * tables[..., 2:, :]
  return rotated.reshape(x_BTHh.shape).astype(x_BTHh.dtype)
