"""Position-wise functions, computed one chunk of positions at a time to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.sharding import num_shards

Array = jax.Array


def map_chunks(function: Callable[..., Any], arrays: tuple[Array, ...], chunk: int) -> Any:
  """`function` of arrays (B, T, ...), in chunks of at most `chunk` positions; recomputed in the backward pass.

  Args:
    function: arrays (B, C, ...) -> a tree of arrays (B, C, ...), computed separately for each position.

  Returns:
    The tree, of arrays (B, T, ...).
  """
  if arrays[0].shape[1] <= chunk:
    return function(*arrays)
  recomputed = jax.checkpoint(function)
  return scan_chunks(lambda _, *xs: (None, recomputed(*xs)), None, arrays, chunk)[1]


def scan_chunks(
  function: Callable[..., tuple[Any, Any]], initial: Any, arrays: tuple[Array, ...], chunk: int
) -> tuple[Any, Any]:
  """`lax.scan` over chunks of at most `chunk` positions of arrays (B, T, ...), the last one padded with zeros.

  If rows are sharded over devices, a chunk takes some positions of every shard, so that all devices work on each chunk;
  `chunk` is then rounded up to a multiple of the number of shards.

  Args:
    function: (carry, *arrays (B, C, ...)) -> (carry, a tree of arrays (B, C, ...)).

  Returns:
    The last carry, and the tree of arrays (B, T, ...).
  """
  batch, length = arrays[0].shape[:2]
  if length <= chunk:
    return function(initial, *arrays)
  shards = num_shards("length")
  chunk = -(-chunk // shards) * shards
  num_chunks = -(-length // chunk)

  def split(x: Array) -> Array:
    padded = jnp.pad(x, [(0, 0), (0, num_chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2))
    by_piece = padded.reshape(batch, shards, num_chunks, chunk // shards, *x.shape[2:])
    return jnp.moveaxis(by_piece, 2, 0).reshape(num_chunks, batch, chunk, *x.shape[2:])

  def join(y: Array) -> Array:
    by_piece = jnp.moveaxis(y.reshape(num_chunks, batch, shards, chunk // shards, *y.shape[3:]), 0, 2)
    return by_piece.reshape(batch, num_chunks * chunk, *y.shape[3:])[:, :length]

  carry, found = lax.scan(lambda carry, xs: function(carry, *xs), initial, tuple(split(x) for x in arrays))
  return carry, jax.tree.map(join, found)
