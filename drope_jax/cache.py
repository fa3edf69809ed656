"""Keys and values of the tokens so far, for decoding token by token."""

import dataclasses

import jax
import jax.numpy as jnp

from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.platforms import target_platform
from drope_jax.sharding import constrain

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
  """Keys and values of the tokens so far. Keys lie here as queries meet them, shifted and rotated.

  So a rotation that depends on the length of the sequence depends on the final one, which every call of
  `hidden_states` with one cache must name; with the keys unrotated each new token would rotate all of them again.
  Row b holds `lengths_B[b]` tokens, from slot 0 on; what lies in later slots is never seen.
  """

  k_LBSKh: Array
  v_LBSKh: Array
  lengths_B: Array
  plain_k_LBSKh: Array | None = None  # keys as they were projected, of a model with token shift (additions.py)


def compute_dtype(compute: ComputeConfig) -> jnp.dtype:
  """The dtype of activations: "auto" is float32 on CPU, bfloat16 elsewhere."""
  if compute.dtype == "auto":
    return jnp.dtype(jnp.float32 if target_platform() == "cpu" else jnp.bfloat16)
  return jnp.dtype(compute.dtype)


def init_cache(config: ModelConfig, batch: int, capacity: int, compute: ComputeConfig | None = None) -> Cache:
  """An empty cache for `capacity` tokens in each of `batch` rows."""
  shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
  dtype = compute_dtype(compute or ComputeConfig())

  def zeros() -> Array:
    return constrain(jnp.zeros(shape, dtype), "layers", "batch", "length", "kv_heads", "head_dim")

  return Cache(zeros(), zeros(), jnp.zeros(batch, jnp.int32), zeros() if config.token_shift else None)


def write(cache_LBSKh: Array, new_BTKh: Array, layer: Array | int, offset_B: Array) -> Array:
  """The cache with `new_BTKh` in its layer, each row from its own offset on."""
  rows = jnp.arange(new_BTKh.shape[0])[:, None]
  slots = offset_B[:, None] + jnp.arange(new_BTKh.shape[1])
  return cache_LBSKh.at[layer, rows, slots].set(new_BTKh, mode="drop")


def last_plain_key(cache: Cache, layer: Array | int, otherwise_BKh: Array) -> Array:
  """The key before token shift of each row's last token; `otherwise_BKh` in rows that hold none."""
  assert cache.plain_k_LBSKh is not None
  last_B = cache.lengths_B - 1
  found_BKh = cache.plain_k_LBSKh[layer, jnp.arange(last_B.shape[0]), last_B]
  return jnp.where((last_B >= 0)[:, None, None], found_BKh, otherwise_BKh)


def with_plain_keys(cache: Cache, k_BTKh: Array, layer: Array | int) -> Cache:
  """The cache with the keys before token shift of the tokens that follow."""
  assert cache.plain_k_LBSKh is not None
  return dataclasses.replace(cache, plain_k_LBSKh=write(cache.plain_k_LBSKh, k_BTKh, layer, cache.lengths_B))
