"""Keys and values of the tokens so far, for decoding token by token."""

import dataclasses

import jax
import jax.numpy as jnp

from drope_jax.model_config import ComputeConfig, ModelConfig, compute_dtype
from drope_jax.sharding import constrain

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
  """Keys and values of the tokens so far. Keys are stored shifted and rotated, as attention reads them.

  Stored unrotated, all keys would have to be rotated again for each new token. Therefore a rotation that depends on the
  sequence's length uses the final length, which every call of `hidden_states` with one cache must be given.
  Row b holds `lengths_B[b]` tokens, in slots from 0; later slots are never seen.
  """

  k_LBSKh: Array  # in the compute dtype, as are the other keys and values
  v_LBSKh: Array
  lengths_B: Array  # int32
  plain_k_LBSKh: Array | None = None  # keys before token shift (additions.py), if the model has it


def init_cache(config: ModelConfig, batch: int, capacity: int, compute: ComputeConfig | None = None) -> Cache:
  """An empty cache with room for `capacity` tokens in each of `batch` rows."""
  shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
  dtype = compute_dtype(compute or ComputeConfig())

  def zeros() -> Array:
    return constrain(jnp.zeros(shape, dtype), "layers", "batch", "length", "kv_heads", "head_dim")

  return Cache(zeros(), zeros(), jnp.zeros(batch, jnp.int32), zeros() if config.token_shift else None)


def write(cache_LBSKh: Array, new_BTKh: Array, layer: Array | int, offset_B: Array) -> Array:
  """The cache with `new_BTKh` written to `layer`, from each row's own offset; what does not fit is dropped."""
  rows = jnp.arange(new_BTKh.shape[0])[:, None]
  slots = offset_B[:, None] + jnp.arange(new_BTKh.shape[1])
  return cache_LBSKh.at[layer, rows, slots].set(new_BTKh, mode="drop")


def last_plain_key(cache: Cache, layer: Array | int, otherwise_BKh: Array) -> Array:
  """Each row's last key before token shift; `otherwise_BKh` in rows without tokens."""
  assert cache.plain_k_LBSKh is not None
  last_B = cache.lengths_B - 1
  found_BKh = cache.plain_k_LBSKh[layer, jnp.arange(last_B.shape[0]), last_B]
  return jnp.where((last_B >= 0)[:, None, None], found_BKh, otherwise_BKh)


def with_plain_keys(cache: Cache, k_BTKh: Array, layer: Array | int) -> Cache:
  """The cache with the keys before token shift of the next tokens."""
  assert cache.plain_k_LBSKh is not None
  return dataclasses.replace(cache, plain_k_LBSKh=write(cache.plain_k_LBSKh, k_BTKh, layer, cache.lengths_B))
