"""Digests of arrays, which show whether loaded arrays equal the saved ones, whatever the mesh.

A digest is the sum, modulo 2^32, of one number per 32-bit word of the array. That number is a bijection of the word
(the finaliser of MurmurHash3, after an exclusive or with a key that depends on the word's position):

- A change within one word, such as a flipped bit, always changes the digest, because one term of the sum changes.
- Any other change, such as swapped words, is missed with a probability of 2^-32.
- A sum does not depend on order, so shards add up to the same number on every mesh and for every number of hosts.

Each device reads its own shards once, in blocks, so that a digest does not need a second copy of an array.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from drope_jax.errors import check
from drope_jax.parameters import named_leaves

VARIABLE = "DROPE_JAX_DIGESTS"  # "off": digests are neither computed nor checked
_BLOCK = 1 << 20  # words per block
# Constants of Fibonacci hashing, and of MurmurHash3's finaliser.
_GOLDEN, _FIRST, _SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def enabled() -> bool:
  """Whether digests are computed and checked. Raises ConfigError if the environment variable is neither on nor off."""
  value = os.environ.get(VARIABLE, "on")
  check(value in ("on", "off"), f"{VARIABLE} is {value!r} in the environment; allowed: on, off")
  return value == "on"


def of_arrays(tree: Any) -> dict[str, str]:
  """The digest of every array of a tree, eight hexadecimal digits, by its path ("layers/q").

  With several hosts, all must call this; they get the same result.
  """
  leaves = {name: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for name, leaf in named_leaves(tree)}
  sums = {name: _summing(leaf.shape, leaf.sharding)(leaf) for name, leaf in leaves.items()}
  return {name: f"{int(value):08x}" for name, value in jax.device_get(sums).items()}


def of_json(data: Any) -> str:
  """The digest of JSON data, independent of the order of its keys: SHA-256, hexadecimal."""
  return hashlib.sha256(json.dumps(json.loads(json.dumps(data)), sort_keys=True).encode()).hexdigest()


def of_hosts(data: Any) -> dict[str, str]:
  """`of_json` of the data of each host, by the name of the file in which grain writes it; the same on all hosts."""
  mine = np.frombuffer(bytes.fromhex(of_json(data)), np.uint8)
  rows = np.reshape(multihost_utils.process_allgather(mine), (-1, mine.size))
  return {f"process_{host}-of-{len(rows)}.json": row.tobytes().hex() for host, row in enumerate(rows)}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """The names whose digests differ, or that are missing on one side."""
  return [name for name in {**before, **now} if before.get(name) != now.get(name)]


@functools.cache
def _summing(shape: tuple[int, ...], sharding: Sharding) -> Any:
  """The compiled digest of arrays of this shape and sharding: each device reads its own shard."""
  strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
  spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
  axes = [() if names is None else (names,) if isinstance(names, str) else tuple(names) for names in spec]
  split = tuple(name for names in axes for name in names)

  def of_shard(array: jax.Array) -> jax.Array:
    start = _word(0)
    for axis, names in enumerate(axes):
      if names:
        start += _word(jax.lax.axis_index(names)) * _word(array.shape[axis] * strides[axis])
    return jax.lax.psum(_sum(array, start, strides), split)

  if isinstance(sharding, NamedSharding) and split and sharding.mesh.size > 1:
    return jax.jit(jax.shard_map(of_shard, mesh=sharding.mesh, in_specs=spec, out_specs=PartitionSpec()))
  return jax.jit(lambda array: _sum(array, _word(0), strides))


def _sum(array: jax.Array, start: jax.Array, strides: Sequence[int]) -> jax.Array:
  """The sum over an array whose first word has the position `start`, and whose axes have these strides."""
  if not array.ndim:
    array, strides = array[None], [1]
  rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
  blocks, rest = divmod(array.shape[0], rows)

  def add(number: Any, total: jax.Array) -> jax.Array:
    block = jax.lax.dynamic_slice_in_dim(array, number * rows, rows)
    return total + _block_sum(block, start + _word(number) * _word(rows * strides[0]), strides)

  # The initial total is zero, but computed from `start`, so that it varies over shards like the others.
  total = jax.lax.fori_loop(0, blocks, add, start * _word(0)) if blocks else _word(0)
  if rest:
    total += _block_sum(array[blocks * rows :], start + _word(blocks * rows * strides[0]), strides)
  return total


def _block_sum(block: jax.Array, start: jax.Array, strides: Sequence[int]) -> jax.Array:
  place = start
  for axis, stride in enumerate(strides):
    place += jax.lax.broadcasted_iota(jnp.uint32, block.shape, axis) * _word(stride)
  word = _words(block) ^ (place * _word(_GOLDEN))
  word = (word ^ (word >> 16)) * _word(_FIRST)
  word = (word ^ (word >> 13)) * _word(_SECOND)
  return (word ^ (word >> 16)).sum(dtype=jnp.uint32)


def _words(block: jax.Array) -> jax.Array:
  """The bits of every element, of up to 32 bits, as uint32."""
  if block.dtype == jnp.bool:
    return block.astype(jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[block.dtype.itemsize]
  return jax.lax.bitcast_convert_type(block, unsigned).astype(jnp.uint32)


def _word(value: Any) -> Any:
  return np.uint32(value % 2**32) if isinstance(value, int) else value.astype(jnp.uint32)
