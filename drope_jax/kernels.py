"""The accelerators' own attention kernels, under the conventions of attention.py: splash on TPUs, cuDNN on GPUs.

Both serve training and long evaluation: whole rows of queries against themselves. They neither write the T x T scores
out nor repeat keys for the query heads that share them. What else a call may ask for, `obstacle` knows.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from drope_jax.sharding import partition_spec

Array = jax.Array

PLATFORMS = {"tpu": "splash", "gpu": "cudnn"}  # the kernel made for each of JAX's platforms
_SPLASH_LANES = 128  # what splash's blocks must be multiples of
_SPLASH_BLOCK = 512  # queries and keys per block


def obstacle(kernel: str, q_BTHh: Array, k_BSKh: Array, *, offset, segments, slopes_H) -> str | None:
  """What keeps `kernel` from serving a call, in words that follow "cannot take"; None if nothing does.

  Args: as `attention` takes them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not isinstance(offset, int) or offset != 0 or q_BTHh.shape[1] != k_BSKh.shape[1]:
    return "cached keys"
  if slopes_H is not None:
    return "ALiBi slopes"
  if not mesh.empty and mesh.shape.get("context", 1) > 1:
    return "rows split over the mesh axis 'context'"
  if kernel == "cudnn" and segments is not None:
    return "segments"
  if kernel == "cudnn" and q_BTHh.dtype not in (jnp.bfloat16, jnp.float16):
    return f"{q_BTHh.dtype} (only bfloat16 and float16)"
  return None


def cudnn(
  q_BTHh: Array, k_BTKh: Array, v_BTKh: Array, window: int | None, segments: None, implementation: str = "cudnn"
) -> Array:
  """softmax(q.k) v, causal, (B, T, H, h); q carries its scale."""
  assert segments is None
  reach = None if window is None else (window - 1, 0)
  settings: dict[str, Any] = {"local_window_size": reach, "implementation": implementation}
  return jax.nn.dot_product_attention(q_BTHh, k_BTKh, v_BTKh, is_causal=True, scale=1.0, **settings)


def splash(q_BTHh: Array, k_BTKh: Array, v_BTKh: Array, window: int | None, segments, interpret: bool = False) -> Array:
  """softmax(q.k) v, causal, (B, T, H, h); q carries its scale. `interpret` runs it anywhere, slowly.

  Each device computes its own rows and heads: the compiler cannot split a kernel by itself.
  """
  run = functools.partial(_splash_here, window=window, interpret=interpret)
  segments_BT = None if segments is None else segments.queries
  if jax.sharding.get_abstract_mesh().empty:
    return run(q_BTHh, k_BTKh, v_BTKh, segments_BT)
  heads = partition_spec(("batch", "length", "heads", "head_dim"))
  kv_heads = partition_spec(("batch", "length", "kv_heads", "head_dim"))
  rows = None if segments is None else partition_spec(("batch", "length"))
  return jax.shard_map(run, in_specs=(heads, kv_heads, kv_heads, rows), out_specs=heads, check_vma=False)(
    q_BTHh, k_BTKh, v_BTKh, segments_BT
  )


def _splash_here(
  q_BTHh: Array, k_BTKh: Array, v_BTKh: Array, segments_BT: Array | None, *, window: int | None, interpret: bool
) -> Array:
  batch, length, num_heads, head_dim = q_BTHh.shape
  num_kv_heads = k_BTKh.shape[2]
  lanes = -(-length // _SPLASH_LANES) * _SPLASH_LANES
  block = min(_SPLASH_BLOCK, lanes)
  padding = -length % block  # behind everything, where causality hides it

  def pad(x: Array) -> Array:
    return jnp.pad(x, [(0, padding if axis == 1 else 0) for axis in range(x.ndim)])

  padded = length + padding
  groups = num_heads // num_kv_heads
  shape = (padded, padded)
  mask = splash_mask.CausalMask(shape) if window is None else splash_mask.LocalMask(shape, (window - 1, 0), offset=0)
  sizes = splash_kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  kernel = splash_kernel.make_splash_mqa(
    splash_mask.MultiHeadMask([mask] * groups), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
  )
  q_BKGTh = pad(q_BTHh).swapaxes(1, 2).reshape(batch, num_kv_heads, groups, padded, head_dim)
  k_BKTh, v_BKTh = pad(k_BTKh).swapaxes(1, 2), pad(v_BTKh).swapaxes(1, 2)
  ids = None if segments_BT is None else splash_kernel.SegmentIds(pad(segments_BT), pad(segments_BT))
  over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
  out_BKGTh = jax.vmap(over_heads, in_axes=(0, 0, 0, None if ids is None else 0))(q_BKGTh, k_BKTh, v_BKTh, ids)
  return out_BKGTh.reshape(batch, num_heads, padded, head_dim).swapaxes(1, 2)[:, :length]


ACCELERATED: dict[str, Callable[..., Array]] = {"cudnn": cudnn, "splash": splash}
