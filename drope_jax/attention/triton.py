"""The Triton kernel: linear memory on a GPU, for calls that cuDNN does not support (segments, softcap, cache).

As in blockwise.py, the forward pass is the online softmax, and the backward pass recomputes the scores of a block from
the saved log-sum-exp; here each block of queries, or of keys, is one program of a Pallas kernel. Keys are not copied
for the query heads that share them, and blocks that are completely masked are skipped: by causality, by the window, or
because they share no document.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from drope_jax.attention.scores import MASKED, Limits, Segments
from drope_jax.layers import softcap_slope, softcapped

Array = jax.Array

_SMALLEST = 16  # minimum size of a dimension of a product on tensor cores


class _Call(NamedTuple):
  """The arrays of a call, padded to whole blocks and to a head dimension that is a power of two.

  Also used for the references that a kernel sees, and for the `BlockSpec`s that say which part of each it sees.
  """

  q_BTHh: Any
  k_BSKh: Any
  v_BSKh: Any
  offset_B: Any  # int32 (B,)
  q_ids_BT: Any  # document numbers, or None
  k_ids_BS: Any


class _Sizes(NamedTuple):
  """The block size in queries and keys, and the number of warps of a program."""

  queries: int
  keys: int
  warps: int


class _Layout(NamedTuple):
  """The static parameters of a call."""

  limits: Limits
  forward: _Sizes
  backward: _Sizes
  interpret: bool


def triton_attention(
  q_BTHh: Array,
  k_BSKh: Array,
  v_BSKh: Array,
  offset: int | Array,
  limits: Limits,
  segments: Segments | None,
  interpret: bool = False,
) -> Array:
  """softmax(cap(q.k)) v, causal, (B, T, H, h) in the dtype of q, which is already scaled.

  Args:
    offset: index of the first query of each row, an int or int32 (B,).
    interpret: whether to interpret the kernel, which works on any device, slowly.
  """
  num_queries, num_keys, head_dim = q_BTHh.shape[1], k_BSKh.shape[1], q_BTHh.shape[3]
  width = max(pl.next_power_of_2(head_dim), _SMALLEST)
  forward, backward = _sizes(num_queries, num_keys, width)

  def pad(x: Array, size: int) -> Array:
    widths = {1: -x.shape[1] % size, 3: width - head_dim}
    return jnp.pad(x, [(0, widths.get(axis, 0)) for axis in range(x.ndim)])

  ids = (None, None) if segments is None else (pad(segments.queries, forward.queries), pad(segments.keys, forward.keys))
  offset_B = jnp.broadcast_to(jnp.asarray(offset, jnp.int32), q_BTHh.shape[:1])
  arrays = pad(q_BTHh, forward.queries), pad(k_BSKh, forward.keys), pad(v_BSKh, forward.keys)
  out_BTHh = _attention(_Call(*arrays, offset_B, *ids), _Layout(limits, forward, backward, interpret))
  return out_BTHh[:, :num_queries, :, :head_dim]


def _sizes(num_queries: int, num_keys: int, width: int) -> tuple[_Sizes, _Sizes]:
  """The sizes for forward and backward; backward blocks divide forward blocks, so that one padding serves both.

  A program's blocks take at most about 100 KiB of shared memory, of which an A100 has 164 and an H100 228.
  """

  def at_most(limit: int, size: int) -> int:
    return min(limit, max(pl.next_power_of_2(size), _SMALLEST))

  wide = width > 128
  forward = at_most(64 if wide else 128, num_queries), at_most(32 if wide else 64, num_keys)
  backward = at_most(32 if wide else 64, num_queries), at_most(32 if wide else 64, num_keys)
  warps = 4 if width <= 64 else 8
  return _Sizes(*forward, warps), _Sizes(*backward, warps)


# --- which blocks meet -------------------------------------------------------------------------


class _Reach(NamedTuple):
  """For every block of queries (or keys), the range of blocks of keys (or queries) that it meets: int32 (B, n).

  Also used for references and BlockSpecs.
  """

  first: Any
  end: Any  # exclusive


def _meetings(call: _Call, limits: Limits, sizes: _Sizes) -> Array:
  """Whether any query of a block may see any key of another, bool (B, query blocks, key blocks)."""

  def of_blocks(x_BT: Array, size: int) -> tuple[Array, Array]:
    blocks = x_BT.reshape(x_BT.shape[0], -1, size)
    return blocks.min(-1), blocks.max(-1)

  num_queries, num_keys = call.q_BTHh.shape[1], call.k_BSKh.shape[1]
  q_first, q_last = of_blocks(call.offset_B[:, None] + jnp.arange(num_queries), sizes.queries)
  k_first, k_last = of_blocks(jnp.arange(num_keys)[None], sizes.keys)
  found = k_first[:, None, :] <= q_last[:, :, None]
  if limits.window is not None:
    found &= q_first[:, :, None] - k_last[:, None, :] < limits.window
  if call.q_ids_BT is not None:
    q_least, q_greatest = of_blocks(call.q_ids_BT, sizes.queries)
    k_least, k_greatest = of_blocks(call.k_ids_BS, sizes.keys)
    found &= (k_least[:, None, :] <= q_greatest[:, :, None]) & (q_least[:, :, None] <= k_greatest[:, None, :])
  return found


def _reach(meetings: Array) -> _Reach:
  """The ranges over the last axis; (0, 0) if a block meets none."""
  size = meetings.shape[-1]
  end = size - meetings[..., ::-1].argmax(-1).astype(jnp.int32)
  return _Reach(meetings.argmax(-1).astype(jnp.int32), jnp.where(meetings.any(-1), end, 0))


# --- kernels -----------------------------------------------------------------------------------
# Each takes references to the call, to the range of blocks to visit, to further inputs, and to its outputs.


def _scores(q, k, q_index, k_index, q_ids, k_ids, limits: Limits):
  """The logits of a block, float32, which of them are visible, and their derivative with respect to q.k (None: 1)."""
  scores = softcapped(plgpu.dot(q, k.T), limits.softcap)
  slope = None if limits.softcap is None else softcap_slope(scores, limits.softcap)
  distance = q_index[:, None] - k_index[None, :]
  visible = distance >= 0
  if limits.window is not None:
    visible &= distance < limits.window
  if q_ids is not None:
    visible &= q_ids[:, None] == k_ids[None, :]
  return scores, visible, slope


def _weights_and_gradient(scored, d_out, v, log_sum, delta):
  """The recomputed weights of a block, and the gradient of its q.k; both float32."""
  scores, visible, slope = scored
  weights = jnp.where(visible, jnp.exp(scores - log_sum[:, None]), 0.0)
  d_scores = weights * (plgpu.dot(d_out, v.T) - delta[:, None])
  return weights, d_scores if slope is None else d_scores * slope


def _rows(ref: Any, block: Any, size: int) -> Any:
  return None if ref is None else ref[pl.ds(block * size, size)]


def _keys_of_block(call: _Call, j: Any, size: int) -> tuple[Any, ...]:
  """The keys, values, indices and document numbers of key block j."""
  k, v = (_rows(ref, j, size) for ref in (call.k_BSKh, call.v_BSKh))
  return k, v, j * size + jnp.arange(size), _rows(call.k_ids_BS, j, size)


def _own_queries(call: _Call, size: int) -> tuple[Any, ...]:
  """The queries, indices and document numbers of this program's block of queries."""
  index = call.offset_B[...] + pl.program_id(0) * size + jnp.arange(size)
  return call.q_BTHh[...], index, None if call.q_ids_BT is None else call.q_ids_BT[...]


def _forward_kernel(call: _Call, reach: _Reach, out_ref, log_sum_ref, *, sizes: _Sizes, limits: Limits) -> None:
  """The output of a block of queries of one head."""
  q, q_index, q_ids = _own_queries(call, sizes.queries)

  def key_block(j, state):
    out, top, total = state
    k, v, k_index, k_ids = _keys_of_block(call, j, sizes.keys)
    scores, visible, _ = _scores(q, k, q_index, k_index, q_ids, k_ids, limits)
    new_top = jnp.maximum(top, jnp.where(visible, scores, MASKED).max(axis=-1))
    # As long as a row has seen no key its maximum is MASKED, and exp would turn a masked score into 1.
    weights = jnp.where(visible, jnp.exp(scores - new_top[:, None]), 0.0)
    shrink = jnp.exp(top - new_top)
    out = out * shrink[:, None] + plgpu.dot(weights.astype(v.dtype), v)
    return out, new_top, total * shrink + weights.sum(axis=-1)

  zeros = jnp.zeros(sizes.queries, jnp.float32)
  state = jnp.zeros(q.shape, jnp.float32), zeros + MASKED, zeros
  out, top, total = lax.fori_loop(reach.first[...], reach.end[...], key_block, state)
  total = jnp.where(total == 0, 1.0, total)  # the output of a query that sees no key is 0
  out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
  log_sum_ref[...] = top + jnp.log(total)


def _queries_kernel(call: _Call, reach: _Reach, saved: "_Saved", d_q_ref, *, sizes: _Sizes, limits: Limits) -> None:
  """The gradient of a block of queries of one head."""
  q, q_index, q_ids = _own_queries(call, sizes.queries)
  d_out, log_sum, delta = (ref[...] for ref in saved)

  def key_block(j, d_q):
    k, v, k_index, k_ids = _keys_of_block(call, j, sizes.keys)
    scored = _scores(q, k, q_index, k_index, q_ids, k_ids, limits)
    _, d_scores = _weights_and_gradient(scored, d_out, v, log_sum, delta)
    return d_q + plgpu.dot(d_scores.astype(k.dtype), k)

  d_q = lax.fori_loop(reach.first[...], reach.end[...], key_block, jnp.zeros(q.shape, jnp.float32))
  d_q_ref[...] = d_q.astype(d_q_ref.dtype)


def _keys_kernel(call: _Call, reach: _Reach, saved: "_Saved", d_k_ref, d_v_ref, *, sizes: _Sizes, limits: Limits):
  """The gradients of a block of keys and values of one key head, over all query heads that share it."""
  k, v = call.k_BSKh[...], call.v_BSKh[...]
  k_index = pl.program_id(0) * sizes.keys + jnp.arange(sizes.keys)
  k_ids = None if call.k_ids_BS is None else call.k_ids_BS[...]

  def query_head(g, state):
    def query_block(i, state):
      d_k, d_v = state
      rows = pl.ds(i * sizes.queries, sizes.queries)
      q, d_out = call.q_BTHh[rows, g, :], saved.d_out_BTHh[rows, g, :]
      q_index = call.offset_B[...] + i * sizes.queries + jnp.arange(sizes.queries)
      scored = _scores(q, k, q_index, k_index, _rows(call.q_ids_BT, i, sizes.queries), k_ids, limits)
      sums = saved.log_sum_BHT[g, rows], saved.delta_BHT[g, rows]
      weights, d_scores = _weights_and_gradient(scored, d_out, v, *sums)
      d_v += plgpu.dot(weights.astype(d_out.dtype).T, d_out)
      return d_k + plgpu.dot(d_scores.astype(q.dtype).T, q), d_v

    return lax.fori_loop(reach.first[...], reach.end[...], query_block, state)

  zeros = jnp.zeros(k.shape, jnp.float32)
  d_k, d_v = lax.fori_loop(0, call.q_BTHh.shape[1], query_head, (zeros, zeros))
  d_k_ref[...] = d_k.astype(d_k_ref.dtype)
  d_v_ref[...] = d_v.astype(d_v_ref.dtype)


# --- their calls -------------------------------------------------------------------------------


class _Saved(NamedTuple):
  """What the backward pass reads in addition to the call; also used for references and BlockSpecs."""

  d_out_BTHh: Any
  log_sum_BHT: Any
  delta_BHT: Any


class _Specs(NamedTuple):
  """The grid, and the BlockSpecs of a call and of the per-query sums."""

  grid: tuple[int, ...]
  call: _Call
  sums: pl.BlockSpec


def _by_block_of_queries(call: _Call, sizes: _Sizes) -> _Specs:
  """One program per block of queries, row and query head, which sees all keys of the head."""
  (batch, num_queries, num_heads, width), (_, num_keys, num_kv_heads, _) = call.q_BTHh.shape, call.k_BSKh.shape
  groups = num_heads // num_kv_heads
  keys = pl.BlockSpec((None, num_keys, None, width), lambda i, b, head: (b, 0, head // groups, 0))
  documents = call.q_ids_BT is not None
  specs = _Call(
    q_BTHh=pl.BlockSpec((None, sizes.queries, None, width), lambda i, b, head: (b, i, head, 0)),
    k_BSKh=keys,
    v_BSKh=keys,
    offset_B=pl.BlockSpec((None,), lambda i, b, head: (b,)),
    q_ids_BT=pl.BlockSpec((None, sizes.queries), lambda i, b, head: (b, i)) if documents else None,
    k_ids_BS=pl.BlockSpec((None, num_keys), lambda i, b, head: (b, 0)) if documents else None,
  )
  sums = pl.BlockSpec((None, None, sizes.queries), lambda i, b, head: (b, head, i))
  return _Specs((num_queries // sizes.queries, batch, num_heads), specs, sums)


def _by_block_of_keys(call: _Call, sizes: _Sizes) -> _Specs:
  """One program per block of keys, row and key head, which sees all queries of the query heads that share it."""
  (batch, num_queries, num_heads, width), (_, num_keys, num_kv_heads, _) = call.q_BTHh.shape, call.k_BSKh.shape
  groups = num_heads // num_kv_heads
  keys = pl.BlockSpec((None, sizes.keys, None, width), lambda i, b, head: (b, i, head, 0))
  documents = call.q_ids_BT is not None
  specs = _Call(
    q_BTHh=pl.BlockSpec((None, num_queries, groups, width), lambda i, b, head: (b, 0, head, 0)),
    k_BSKh=keys,
    v_BSKh=keys,
    offset_B=pl.BlockSpec((None,), lambda i, b, head: (b,)),
    q_ids_BT=pl.BlockSpec((None, num_queries), lambda i, b, head: (b, 0)) if documents else None,
    k_ids_BS=pl.BlockSpec((None, sizes.keys), lambda i, b, head: (b, i)) if documents else None,
  )
  sums = pl.BlockSpec((None, groups, num_queries), lambda i, b, head: (b, head, 0))
  return _Specs((num_keys // sizes.keys, batch, num_kv_heads), specs, sums)


def _run(kernel, call: _Call, meetings: Array, saved: tuple, specs: _Specs, outputs, sizes: _Sizes, layout: _Layout):
  """Runs a kernel. In `meetings` the axis of its own blocks comes first; `outputs` are pairs of shape and BlockSpec."""
  batch = call.q_BTHh.shape[0]
  reach = _Reach(*(jnp.broadcast_to(x, (batch, x.shape[1])) for x in _reach(meetings)))
  of_block = pl.BlockSpec((None, None), lambda i, b, head: (b, i))
  saved_specs = [_Saved(specs.call.q_BTHh, specs.sums, specs.sums)] if saved else []
  return pl.pallas_call(
    functools.partial(kernel, sizes=sizes, limits=layout.limits),
    grid=specs.grid,
    in_specs=[specs.call, _Reach(of_block, of_block), *saved_specs],
    out_specs=[spec for _, spec in outputs],
    out_shape=[shape for shape, _ in outputs],
    compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=2),
    interpret=layout.interpret,
    name="drope_jax" + kernel.__name__,
  )(call, reach, *saved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(call: _Call, layout: _Layout) -> Array:
  return _attention_fwd(call, layout)[0]


def _attention_fwd(call: _Call, layout: _Layout):
  batch, num_queries, num_heads, _ = call.q_BTHh.shape
  specs = _by_block_of_queries(call, layout.forward)
  sums = jax.ShapeDtypeStruct((batch, num_heads, num_queries), jnp.float32)
  outputs = [(_like(call.q_BTHh), specs.call.q_BTHh), (sums, specs.sums)]
  meetings = _meetings(call, layout.limits, layout.forward)
  out_BTHh, log_sum_BHT = _run(_forward_kernel, call, meetings, (), specs, outputs, layout.forward, layout)
  out_BTHh, log_sum_BHT = checkpoint_name(out_BTHh, "attention"), checkpoint_name(log_sum_BHT, "attention")
  return out_BTHh, (call, out_BTHh, log_sum_BHT)


def _attention_bwd(layout: _Layout, residuals, d_out_BTHh: Array):
  call, out_BTHh, log_sum_BHT = residuals
  delta_BTH = (out_BTHh.astype(jnp.float32) * d_out_BTHh.astype(jnp.float32)).sum(-1)  # as in blockwise.py
  saved = (_Saved(d_out_BTHh, log_sum_BHT, delta_BTH.swapaxes(1, 2)),)
  meetings = _meetings(call, layout.limits, layout.backward)
  specs = _by_block_of_queries(call, layout.backward)
  outputs = [(_like(call.q_BTHh), specs.call.q_BTHh)]
  (d_q,) = _run(_queries_kernel, call, meetings, saved, specs, outputs, layout.backward, layout)
  specs = _by_block_of_keys(call, layout.backward)
  outputs = [(_like(call.k_BSKh), specs.call.k_BSKh), (_like(call.v_BSKh), specs.call.v_BSKh)]
  meetings = meetings.swapaxes(1, 2)
  d_k, d_v = _run(_keys_kernel, call, meetings, saved, specs, outputs, layout.backward, layout)
  return (_Call(d_q, d_k, d_v, None, None, None),)  # for integers, None is JAX's zero cotangent


def _like(x: Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


_attention.defvjp(_attention_fwd, _attention_bwd)
