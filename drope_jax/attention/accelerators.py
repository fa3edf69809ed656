"""Attention kernels for accelerators, under the conventions of this package, and what each cannot serve.

Splash on TPUs, and cuDNN or Triton (triton.py) on GPUs. They neither materialise the T x S scores nor repeat keys for
the query heads that share them. Splash serves whole rows without a cache; cuDNN serves these, and one new token per row
against a cache; Triton serves everything except a bias. cuDNN is the fastest on GPUs and so is tried first. It also
supports packed documents, but not through `jax.nn`, and jax 0.10 then reads the wrong keys if heads share them
(jax-ml/jax #39521), so Triton serves packed documents.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from drope_jax.attention import context_parallel
from drope_jax.attention.scores import Limits, Segments
from drope_jax.attention.triton import triton_attention
from drope_jax.platforms import compute_capability
from drope_jax.sharding import cut_evenly, divisor, named_sharding, num_shards, partition_spec

Array = jax.Array

PLATFORMS = {"tpu": ("splash",), "gpu": ("cudnn", "triton")}  # the kernels for each of JAX's platforms, best first
_SPLASH_LANES = 128  # splash's blocks must be multiples of this
_SPLASH_BLOCK = 512  # queries and keys per block
_AMPERE, _HOPPER = (8, 0), (9, 0)
_WIDEST_TRITON = 256  # largest head dimension


class Feature(enum.Enum):
  """A property of a call that some kernels cannot serve."""

  CACHE = enum.auto()
  SPLIT_ROWS = enum.auto()
  BIAS = enum.auto()
  SOFTCAP = enum.auto()
  SEGMENTS = enum.auto()
  SHAPE = enum.auto()
  DTYPE = enum.auto()
  DEVICE = enum.auto()


@dataclasses.dataclass(frozen=True)
class Obstacle:
  """The reason why a kernel cannot serve a call."""

  feature: Feature
  text: str  # follows "cannot take"


def obstacle(
  kernel: str, q_BTHh: Array, k_BSKh: Array, *, offset, segments, bias, softcap=None, window=None
) -> Obstacle | None:
  """The reason why `kernel` cannot serve a call; None if it can.

  Arguments are those of `attention`; for segments, bias and softcap it only matters whether they are None.
  """
  shards, gpu = num_shards("length"), kernel in PLATFORMS["gpu"]
  cached = not isinstance(offset, int) or offset != 0 or q_BTHh.shape[1] != k_BSKh.shape[1]
  if cached and kernel in ("splash", "unrolled"):
    return Obstacle(Feature.CACHE, "cached keys")
  if cached and kernel == "cudnn" and (q_BTHh.shape[1] > 1 or window is not None):
    return Obstacle(Feature.CACHE, "cached keys with a window" if window else "cached keys for more than one query")
  if kernel != "splash" and shards > 1:
    return Obstacle(Feature.SPLIT_ROWS, "rows split over the mesh axis 'context'")
  if kernel == "unrolled":
    return None
  if bias is not None:
    return Obstacle(Feature.BIAS, "a bias on the logits")
  if kernel in ("splash", "triton") and not cut_evenly(q_BTHh, "batch", "length"):
    rows, tokens = q_BTHh.shape[:2]
    return Obstacle(Feature.SHAPE, f"{rows} rows of {tokens} tokens, which the mesh cuts unevenly")
  if kernel == "splash" and shards > 1 and q_BTHh.shape[1] % (divisor("length") * _SPLASH_LANES):
    least = 2 * _SPLASH_LANES
    return Obstacle(
      Feature.SHAPE, f"rows of {q_BTHh.shape[1]} tokens in {shards} pieces (each must be a multiple of {least})"
    )
  if kernel == "cudnn" and softcap is not None:
    return Obstacle(Feature.SOFTCAP, "a cap on the logits")
  if kernel == "cudnn" and segments is not None:
    return Obstacle(Feature.SEGMENTS, "segments")
  return _too_much_for_a_gpu(kernel, q_BTHh) if gpu else None


def _too_much_for_a_gpu(kernel: str, q_BTHh: Array) -> Obstacle | None:
  """The reason why a GPU kernel cannot serve a head dimension or dtype, or run on this GPU."""
  head_dim, capability = q_BTHh.shape[-1], compute_capability()
  # cuDNN 9 (JAX requires at least 9.8) supports 256 on Hopper and later GPUs, forward and backward.
  widest = 256 if capability is not None and capability >= _HOPPER else 128
  if kernel == "cudnn" and (head_dim % 8 or head_dim > widest):
    return Obstacle(Feature.SHAPE, f"heads of {head_dim} (only multiples of 8 up to {widest} on this GPU)")
  if kernel == "triton" and head_dim > _WIDEST_TRITON:
    return Obstacle(Feature.SHAPE, f"heads of {head_dim} (at most {_WIDEST_TRITON})")
  if q_BTHh.dtype not in (jnp.bfloat16, jnp.float16):
    return Obstacle(Feature.DTYPE, f"{q_BTHh.dtype} (only bfloat16 and float16)")
  if capability is not None and capability < _AMPERE:
    return Obstacle(Feature.DEVICE, "a GPU older than Ampere")
  return None


def cudnn(
  q_BTHh: Array,
  k_BSKh: Array,
  v_BSKh: Array,
  limits: Limits,
  segments: None = None,
  offset: int | Array = 0,
  implementation: str = "cudnn",
) -> Array:
  """softmax(q.k) v, (B, T, H, h), for queries that are already scaled: causal, or one query per row against a cache."""
  assert segments is None and limits.softcap is None
  reach = None if limits.window is None else (limits.window - 1, 0)
  settings: dict[str, Any] = {"local_window_size": reach, "implementation": implementation, "scale": 1.0}
  if q_BTHh.shape[1] == k_BSKh.shape[1]:
    return jax.nn.dot_product_attention(q_BTHh, k_BSKh, v_BSKh, is_causal=True, **settings)
  # Without a causal mask, because cuDNN would take the only query for the first one; its own key is the last one
  # cached.
  lengths_B = jnp.broadcast_to(jnp.asarray(offset, jnp.int32) + 1, q_BTHh.shape[:1])
  return jax.nn.dot_product_attention(q_BTHh, k_BSKh, v_BSKh, key_value_seq_lengths=lengths_B, **settings)


def triton(
  q_BTHh: Array,
  k_BSKh: Array,
  v_BSKh: Array,
  limits: Limits,
  segments: Segments | None = None,
  offset: int | Array = 0,
  interpret: bool = False,
) -> Array:
  """softmax(cap(q.k)) v, causal, (B, T, H, h), for queries that are already scaled. `interpret` runs on any device.

  It uses shard_map over rows and heads, because the compiler cannot partition a kernel.
  """

  def run(q_BTHh, k_BSKh, v_BSKh, offset_B, segments):
    return triton_attention(q_BTHh, k_BSKh, v_BSKh, offset_B, limits, segments, interpret)

  offset_B = jnp.broadcast_to(jnp.asarray(offset, jnp.int32), q_BTHh.shape[:1])
  if not jax.sharding.get_abstract_mesh().empty:
    heads, keys, rows = context_parallel.call_specs(segments)
    specs = (heads, keys, keys, partition_spec(("batch",)), rows)
    run = jax.shard_map(run, in_specs=specs, out_specs=heads, check_vma=False)
  return run(q_BTHh, k_BSKh, v_BSKh, offset_B, segments)


def splash(
  q_BTHh: Array,
  k_BTKh: Array,
  v_BTKh: Array,
  limits: Limits,
  segments: Segments | None = None,
  offset: int = 0,
  interpret: bool = False,
) -> Array:
  """softmax(cap(q.k)) v, causal, (B, T, H, h), for queries that are already scaled. `interpret` runs on any device.

  It uses shard_map over rows and heads, because the compiler cannot partition a kernel. If the mesh axis `context`
  splits the rows, each device computes the queries that context_parallel.py assigns to it, against all keys.
  """
  assert isinstance(offset, int) and offset == 0
  mesh, shards = jax.sharding.get_abstract_mesh(), num_shards("length")
  lanes = -(-q_BTHh.shape[1] // (divisor("length") * _SPLASH_LANES))  # in a row, or in one chunk of it
  # Sharded rows cannot be padded (the padding would be on one device only), so the block must divide a chunk.
  widest = _SPLASH_BLOCK // _SPLASH_LANES
  block = _SPLASH_LANES * (min(widest, lanes) if shards == 1 else math.gcd(widest, lanes))
  padding = -q_BTHh.shape[1] % block  # at the end, where causality hides it
  kernel = _splash_kernel(
    q_BTHh.shape[1] + padding, q_BTHh.shape[2] // k_BTKh.shape[2], limits, block, shards, interpret
  )
  run = functools.partial(_splash_here, padding=padding, shards=shards)
  if mesh.empty:
    return run(kernel, q_BTHh, k_BTKh, v_BTKh, segments)
  heads, keys, rows = context_parallel.call_specs(segments)
  masks = kernel.manual_sharding_spec(named_sharding(mesh, ("layers", "length")))  # all heads, their own queries
  return jax.shard_map(run, in_specs=(masks, heads, keys, keys, rows), out_specs=heads, check_vma=False)(
    kernel, q_BTHh, k_BTKh, v_BTKh, segments
  )


def _splash_kernel(length: int, groups: int, limits: Limits, block: int, shards: int, interpret: bool) -> Any:
  """The kernel for `groups` query heads that share a key head, with rows split into `shards`."""
  shape, window = (length, length), limits.window
  mask = splash_mask.CausalMask(shape) if window is None else splash_mask.LocalMask(shape, (window - 1, 0), offset=0)
  if shards > 1:
    mask.q_sequence = context_parallel.dealt_order(length, shards)
  sizes = splash_kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  masks = splash_mask.MultiHeadMask([mask] * groups)
  return splash_kernel.make_splash_mqa(
    masks,
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=shards,
    attn_logits_soft_cap=limits.softcap,
    residual_checkpoint_name="attention",
    interpret=interpret,
  )


def _splash_here(
  kernel: Any,
  q_BTHh: Array,
  k_BSKh: Array,
  v_BSKh: Array,
  segments: Segments | None,
  *,
  padding: int,
  shards: int,
) -> Array:
  """Splash on one device; with `shards` > 1 its queries are exchanged for those that it computes, see `deal`."""
  if shards > 1:
    q_BTHh = context_parallel.deal(q_BTHh, shards)
    if segments is not None:
      segments = Segments(context_parallel.deal(segments.queries, shards), segments.keys)
  batch, length, num_heads, head_dim = q_BTHh.shape
  num_kv_heads = k_BSKh.shape[2]

  def pad(x: Array) -> Array:
    return jnp.pad(x, [(0, padding if axis == 1 else 0) for axis in range(x.ndim)])

  groups, padded = num_heads // num_kv_heads, length + padding
  q_BKGTh = pad(q_BTHh).swapaxes(1, 2).reshape(batch, num_kv_heads, groups, padded, head_dim)
  k_BKSh, v_BKSh = pad(k_BSKh).swapaxes(1, 2), pad(v_BSKh).swapaxes(1, 2)
  ids = None if segments is None else splash_kernel.SegmentIds(pad(segments.queries), pad(segments.keys))
  over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
  out_BKGTh = jax.vmap(over_heads, in_axes=(0, 0, 0, None if ids is None else 0))(q_BKGTh, k_BKSh, v_BKSh, ids)
  out_BTHh = out_BKGTh.reshape(batch, num_heads, padded, head_dim).swapaxes(1, 2)[:, :length]
  return out_BTHh if shards == 1 else context_parallel.collect(out_BTHh, shards)


ACCELERATED: dict[str, Callable[..., Array]] = {"cudnn": cudnn, "triton": triton, "splash": splash}
