"""Context parallelism: rows split over the mesh axis `context`, and which queries of a row each device computes.

Under a causal mask the first queries see few keys and the last ones all, so devices that computed the queries they hold
would wait for the last one. A row is therefore split into two chunks per device, and device d of n computes chunks d
and 2n-1-d, so that all devices have the same work. They hold chunks 2d and 2d+1, which are exchanged before and after.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from drope_jax.attention.scores import Segments
from drope_jax.sharding import num_shards, partition_spec

Array = jax.Array


def call_specs(segments: Segments | None) -> tuple[PartitionSpec, PartitionSpec, Any]:
  """The specs of a call for `jax.shard_map`: queries and output, keys and values (gathered), and segments or None."""
  heads = partition_spec(("batch", "length", "heads", "head_dim"))
  keys = partition_spec(("batch", "all_keys", "kv_heads", "head_dim"))
  if segments is None:
    return heads, keys, None
  rows = Segments(partition_spec(("batch", "length")), partition_spec(("batch", "all_keys")))  # type: ignore[arg-type]
  return heads, keys, rows


def deal(x: Array, devices: int) -> Array:
  """Within `jax.shard_map`: exchanges the chunks (axis 1) that a device holds for those it computes, even one first."""
  return _trade(x, _holders_and_computers(devices))


def collect(x: Array, devices: int) -> Array:
  """Undoes `deal`."""
  return _trade(x, [[(b, a) for a, b in pairs] for pairs in _holders_and_computers(devices)])


def chunks(device: Any, devices: int) -> tuple[Any, Any]:
  """The numbers of the chunks that a device computes, the even one first."""
  early, late = device, 2 * devices - 1 - device
  odd = device % 2
  return early + odd * (late - early), late + odd * (early - late)


def dealt_order(length: int, devices: int) -> np.ndarray:
  """The indices of a row's queries, int32 (length,), in the order of the devices that compute them."""
  by_chunk = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
  return by_chunk[np.stack(chunks(np.arange(devices), devices), axis=1).ravel()].ravel()


def _holders_and_computers(devices: int) -> list[list[tuple[int, int]]]:
  """For the even and for the odd chunks: pairs of the device that holds a chunk and the one that computes it."""
  computed = [chunks(device, devices) for device in range(devices)]
  return [[(pair[parity] // 2, device) for device, pair in enumerate(computed)] for parity in (0, 1)]


def _trade(x: Array, permutations: list[list[tuple[int, int]]]) -> Array:
  halves = jnp.split(x, 2, axis=1)
  return jnp.concatenate(
    [lax.ppermute(half, "context", pairs) for half, pairs in zip(halves, permutations, strict=True)], axis=1
  )


def over_context(compute: Callable, q_BTHh, k_BSKh, v_BSKh, offset, segments, bias) -> Array:
  """Runs `compute` with rows split over the mesh axis `context`: each device gathers all keys, see `deal` for queries.

  It uses shard_map, because the compiler cannot partition the blocks of a loop.
  """
  devices = num_shards("length")
  heads, keys, rows = call_specs(segments)
  bias = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), bias)
  offset = jnp.asarray(offset, jnp.int32)  # a scalar stays a scalar, so that one mask serves the batch
  offsets = partition_spec(("batch",) if offset.ndim else ())

  def here(q_BTHh, k_BSKh, v_BSKh, offset, segments, bias):
    size = q_BTHh.shape[1] // 2
    q_BTHh = deal(q_BTHh, devices)
    if segments is not None:
      segments = Segments(deal(segments.queries, devices), segments.keys)
    outs = []
    for half, chunk in enumerate(chunks(lax.axis_index("context"), devices)):
      own = slice(half * size, (half + 1) * size)
      rows = None if segments is None else Segments(segments.queries[:, own], segments.keys)
      first = offset + chunk * size
      outs.append(compute(q_BTHh[:, own], k_BSKh, v_BSKh, first, rows, bias))
    return collect(jnp.concatenate(outs, axis=1), devices)

  specs = (heads, keys, keys, offsets, rows, jax.tree.map(lambda _: partition_spec(("heads",)), bias))
  run = jax.shard_map(here, in_specs=specs, out_specs=heads, check_vma=False)
  return run(q_BTHh, k_BSKh, v_BSKh, offset, segments, bias)
