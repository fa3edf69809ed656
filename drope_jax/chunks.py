"""Functions of every position of a row, computed a chunk of positions at a time, so that less exists at once."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.sharding import pieces

Array = jax.Array


def map_chunks(function: Callable[..., Any], arrays: tuple[Array, ...], chunk: int) -> Any:
  """`function` of arrays (B, T, ...), in chunks of at most `chunk` positions; recomputed in the backward pass.

  Args:
    function: arrays (B, C, ...) -> a tree of arrays (B, C), where each position depends on itself alone.

  Returns:
    The tree, of arrays (B, T).
  """
  batch, length = arrays[0].shape[:2]
  if length <= chunk:
    return function(*arrays)

  # Where devices hold pieces of the rows, a chunk has some positions of every piece: all work on each chunk.
  shards = math.gcd(pieces("length"), chunk)
  num_chunks = -(-length // chunk)

  def split(x: Array) -> Array:
    padded = jnp.pad(x, [(0, 0), (0, num_chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2))
    by_piece = padded.reshape(batch, shards, num_chunks, chunk // shards, *x.shape[2:])
    return jnp.moveaxis(by_piece, 2, 0).reshape(num_chunks, batch, chunk, *x.shape[2:])

  def join(y: Array) -> Array:
    by_piece = jnp.moveaxis(y.reshape(num_chunks, batch, shards, -1), 0, 2)
    return by_piece.reshape(batch, -1)[:, :length]

  found = lax.map(jax.checkpoint(lambda xs: function(*xs)), tuple(split(x) for x in arrays))
  return jax.tree.map(join, found)
