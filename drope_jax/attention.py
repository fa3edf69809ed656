"""Causal attention behind one call, with several kernels that agree.

A query at index i of its row sees the keys at indices j <= i; with a window only i - j < window; with segments only
those of its own segment. Indices count places in the row (or cache slots), so a cache needs no mask of its own: slots
that are not yet written lie at indices no query has reached. Positions, which only the rotation reads, do not matter.

Kernels: "reference" writes the T x S scores out; "blockwise" keeps one block of them at a time, forward and backward,
and skips the blocks that causality or the window empties; "unrolled" is for short whole rows on a CPU. Scores, softmax
and sums are float32 in all. "splash" (TPU) and "cudnn" (GPU) are the accelerators' own, see kernels.py.
Letters as in model.py, and G = H / K, the query heads that share a key/value head.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax import context
from drope_jax.chips import target_platform
from drope_jax.config import ConfigError
from drope_jax.kernels import ACCELERATED, PLATFORMS, obstacle
from drope_jax.sharding import cut_evenly, partition_spec, pieces

Array = jax.Array

_MASKED = -1e30  # finite: a block that is masked whole must not produce inf - inf
_BLOCK = 128  # queries and keys per block of the blockwise kernel
_LONG = 2048  # keys from which on blocks are twice as wide: larger products, and little of them is masked
_LARGEST_REFERENCE = 1 << 16  # scores per head up to which "auto" takes the reference kernel, or the unrolled one
_UNROLLED = 2  # blocks of queries of the unrolled kernel, at most
_SMALLEST_UNROLLED = 64  # queries of a block, at least: below, compiling more blocks costs more than it saves


class Segments(NamedTuple):
  """Document number of every query (B, T) and key (B, S), int32; attention stays within equal numbers."""

  queries: Array
  keys: Array


def attention(
  q_BTHh: Array,
  k_BSKh: Array,
  v_BSKh: Array,
  *,
  offset: int | Array = 0,
  window: int | None = None,
  segments: Segments | None = None,
  slopes_H: Any = None,
  logit_scale: float | Array = 1.0,
  kernel: str = "auto",
) -> Array:
  """softmax(logit_scale * q.k / sqrt(h) + bias) v over the visible keys.

  Args:
    q_BTHh, k_BSKh, v_BSKh: queries, keys and values, H divisible by K; H/K query heads share a key head.
    offset: index of the first query of each row, an int or int32 (B,); the number of cached keys before it.
    window: keys seen by each query, itself included; None for all before it.
    segments: document numbers, or None.
    slopes_H: ALiBi slopes (H,), positive; adds slope * (j - i) to the logits. Constants: no gradient flows to them.
    logit_scale: beta of the paper's appendix C.2, a scalar or (H,); multiplies 1/sqrt(h).
    kernel: one of the module's docstring, or "auto": the accelerator's where there is one and it can serve the call,
      else, while T * S is small, "unrolled" (with a cache "reference"), else blockwise.

  Returns:
    (B, T, H, h) in the dtype of q.

  Raises:
    ValueError: for head counts that do not divide.
    ConfigError: for an unknown kernel, or one that cannot serve the call; the message says what hinders it.
  """
  num_queries, num_heads, head_dim = q_BTHh.shape[1:]
  num_keys, num_kv_heads = k_BSKh.shape[1:3]
  if num_heads % num_kv_heads:
    raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key/value heads evenly")
  hindered = functools.partial(
    obstacle, q_BTHh=q_BTHh, k_BSKh=k_BSKh, offset=offset, segments=segments, slopes_H=slopes_H
  )
  if kernel == "auto":
    kernel = PLATFORMS.get(target_platform(), "")
    if not kernel or hindered(kernel):
      short = num_queries * num_keys <= _LARGEST_REFERENCE
      kernel = "blockwise" if not short else "reference" if hindered("unrolled") else "unrolled"
  if kernel not in (*_KERNELS, *ACCELERATED):
    allowed = ("auto", *_KERNELS, *ACCELERATED)
    raise ConfigError(f"ComputeConfig.attention is {kernel!r}; allowed: {', '.join(allowed)}")

  scale = jnp.asarray(logit_scale, jnp.float32) / math.sqrt(head_dim)
  scaled = (q_BTHh * scale[..., None]).astype(q_BTHh.dtype)
  if kernel in (*ACCELERATED, "unrolled") and (reason := hindered(kernel)):
    raise ConfigError(f"ComputeConfig.attention is {kernel!r}, which cannot take {reason}; choose another, or 'auto'")
  if kernel in ACCELERATED:
    return ACCELERATED[kernel](scaled, k_BSKh, v_BSKh, window, segments)
  # A row too short to be cut, such as one new token, is left to the compiler.
  if pieces("length") > 1 and cut_evenly(q_BTHh, "batch", "length"):
    return _over_context(scaled, k_BSKh, v_BSKh, offset, segments, slopes_H, window, kernel)
  return _compute(scaled, k_BSKh, v_BSKh, offset, segments, slopes_H, window, kernel)


def _over_context(q_BTHh, k_BSKh, v_BSKh, offset, segments, slopes_H, window, kernel: str) -> Array:
  """`_compute` where rows are split over the mesh axis `context`: a device gathers all keys, and has its queries dealt.

  Said with shard_map, because the compiler does not see how the blocks of a loop could be dealt out.
  """
  devices = pieces("length")
  heads = partition_spec(("batch", "length", "heads", "head_dim"))
  keys = partition_spec(("batch", "all_keys", "kv_heads", "head_dim"))
  rows: Any = None
  if segments is not None:
    rows = Segments(partition_spec(("batch", "length")), partition_spec(("batch", "all_keys")))  # type: ignore[arg-type]
  slopes = None if slopes_H is None else jnp.asarray(slopes_H, jnp.float32)
  offset = jnp.asarray(offset, jnp.int32)  # a scalar stays one: see _compute
  offsets = partition_spec(("batch",) if offset.ndim else ())

  def here(q_BTHh, k_BSKh, v_BSKh, offset, segments, slopes_H):
    size = q_BTHh.shape[1] // 2
    q_BTHh = context.deal(q_BTHh, devices)
    if segments is not None:
      segments = Segments(context.deal(segments.queries, devices), segments.keys)
    outs = []
    for half, chunk in enumerate(context.chunks(lax.axis_index("context"), devices)):
      own = slice(half * size, (half + 1) * size)
      rows = None if segments is None else Segments(segments.queries[:, own], segments.keys)
      first = offset + chunk * size
      outs.append(_compute(q_BTHh[:, own], k_BSKh, v_BSKh, first, rows, slopes_H, window, kernel))
    return context.collect(jnp.concatenate(outs, axis=1), devices)

  specs = (heads, keys, keys, offsets, rows, None if slopes is None else partition_spec(("heads",)))
  run = jax.shard_map(here, in_specs=specs, out_specs=heads, check_vma=False)
  return run(q_BTHh, k_BSKh, v_BSKh, offset, segments, slopes)


def _compute(scaled_BTHh, k_BSKh, v_BSKh, offset, segments, slopes_H, window, kernel: str) -> Array:
  """One of this file's own kernels; the arguments are those of `attention`, with the scale already in the queries."""
  batch, num_queries, num_heads, head_dim = scaled_BTHh.shape
  num_kv_heads = k_BSKh.shape[2]
  groups = (num_kv_heads, num_heads // num_kv_heads)
  # Heads before positions: every product below is then a plain batched matrix product, without transposes of its own.
  q_BKGTh = scaled_BTHh.swapaxes(1, 2).reshape(batch, *groups, num_queries, head_dim)
  k_BKSh, v_BKSh = k_BSKh.swapaxes(1, 2), v_BSKh.swapaxes(1, 2)
  offset_B = jnp.atleast_1d(jnp.asarray(offset, jnp.int32))  # (1,) where all rows share it: one mask serves the batch
  slopes_KG = None if slopes_H is None else jnp.asarray(slopes_H, jnp.float32).reshape(groups)
  out_BKGTh = _KERNELS[kernel](q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, slopes_KG, window)
  return out_BKGTh.reshape(batch, num_heads, num_queries, head_dim).swapaxes(1, 2)


# The three products of attention, with float32 results. The G * T queries of a key/value head are the rows of one
# matrix: XLA's CPU backend takes twice as long for a product with more dimensions.


def _rows(x_BKGTx: Array) -> Array:
  return x_BKGTx.reshape(*x_BKGTx.shape[:2], -1, x_BKGTx.shape[-1])


def _dot_keys(x_BKGTh: Array, y_BKSh: Array) -> Array:
  """(B, K, G, T, S): every row of x against every row of y."""
  out = jnp.einsum("BKRh,BKSh->BKRS", _rows(x_BKGTh), y_BKSh, preferred_element_type=jnp.float32)
  return out.reshape(*x_BKGTh.shape[:-1], -1)


def _mix_keys(weights_BKGTS: Array, y_BKSh: Array) -> Array:
  """(B, K, G, T, h): sums of the rows of y, weighted for each query."""
  out = jnp.einsum("BKRS,BKSh->BKRh", _rows(weights_BKGTS), y_BKSh, preferred_element_type=jnp.float32)
  return out.reshape(*weights_BKGTS.shape[:-1], -1)


def _mix_queries(weights_BKGTS: Array, x_BKGTh: Array) -> Array:
  """(B, K, S, h): sums of the rows of x, weighted for each key."""
  return jnp.einsum("BKRS,BKRh->BKSh", _rows(weights_BKGTS), _rows(x_BKGTh), preferred_element_type=jnp.float32)


def _scores(
  q_BKGTh: Array,
  k_BKSh: Array,
  q_index_BT: Array,
  k_index_S: Array,
  segments: Segments | None,
  slopes_KG: Array | None,
  window: int | None,
) -> tuple[Array, Array]:
  """Biased logits (B, K, G, T, S), float32, and which of them are visible (B, 1, 1, T, S). Masking is the caller's."""
  scores = _dot_keys(q_BKGTh, k_BKSh)
  distance_BTS = q_index_BT[:, :, None] - k_index_S
  if slopes_KG is not None:
    scores -= slopes_KG[:, :, None, None] * distance_BTS[:, None, None].astype(jnp.float32)
  visible_BTS = distance_BTS >= 0
  if window is not None:
    visible_BTS &= distance_BTS < window
  if segments is not None:
    visible_BTS &= segments.queries[:, :, None] == segments.keys[:, None, :]
  return scores, visible_BTS[:, None, None]


def _reference(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, slopes_KG, window):
  q_index_BT = offset_B[:, None] + jnp.arange(q_BKGTh.shape[3])
  k_index_S = jnp.arange(k_BKSh.shape[2])
  scores, visible = _scores(q_BKGTh, k_BKSh, q_index_BT, k_index_S, segments, slopes_KG, window)
  weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1)
  weights = jnp.where(visible, weights, 0.0).astype(v_BKSh.dtype)  # a query that sees nothing gets nothing
  return _mix_keys(weights, v_BKSh).astype(q_BKGTh.dtype)


# --- blockwise: linear memory, forward and backward --------------------------------------------
#
# The forward pass is the online softmax (Milakov 2018, Rabe 2021), and the backward pass recomputes the scores of a
# block from the saved log-sum-exp (Dao 2022/2023). Loop bounds are run-time numbers, so a skipped block costs nothing;
# the backward pass is written by hand because JAX cannot differentiate such loops.


class _Layout(NamedTuple):
  """What is known about a call before it runs."""

  window: int | None
  num_keys: int  # without the padding
  q_size: int  # queries of a block
  k_size: int  # keys of a block


class _Problem(NamedTuple):
  """One attention call, padded to whole blocks."""

  q_BKGTh: Array
  k_BKSh: Array
  v_BKSh: Array
  offset_B: Array
  segments: Segments | None
  slopes_KG: Array | None


def _blockwise(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, slopes_KG, window):
  num_queries, num_keys = q_BKGTh.shape[3], k_BKSh.shape[2]
  block = _BLOCK if num_keys < _LONG else 2 * _BLOCK
  q_size, k_size = min(block, num_queries), min(block, num_keys)

  def pad(x: Array, axis: int, block: int) -> Array:
    return jnp.pad(x, [(0, -size % block if i == axis else 0) for i, size in enumerate(x.shape)])

  if segments is not None:
    segments = Segments(pad(segments.queries, 1, q_size), pad(segments.keys, 1, k_size))
  keys_and_values = pad(k_BKSh, 2, k_size), pad(v_BKSh, 2, k_size)
  problem = _Problem(pad(q_BKGTh, 3, q_size), *keys_and_values, offset_B, segments, slopes_KG)
  return _flash(problem, _Layout(window, num_keys, q_size, k_size))[:, :, :, :num_queries]


def _block(x: Array, index: Array, size: int, axis: int) -> Array:
  """Block `index` of `x` along `axis`."""
  return lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _block_scores(problem: _Problem, q_block: Array, i: Array, j: Array, layout: _Layout) -> tuple[Array, Array]:
  """Scores and visibility of query block i against key block j."""
  window, num_keys, q_size, k_size = layout
  q_index_BT = problem.offset_B[:, None] + i * q_size + jnp.arange(q_size)
  k_index_S = j * k_size + jnp.arange(k_size)
  segments = problem.segments
  if segments is not None:
    segments = Segments(_block(segments.queries, i, q_size, 1), _block(segments.keys, j, k_size, 1))
  k_block = _block(problem.k_BKSh, j, k_size, 2)
  scores, visible = _scores(q_block, k_block, q_index_BT, k_index_S, segments, problem.slopes_KG, window)
  return scores, visible & (k_index_S < num_keys)


def _flash_forward(problem: _Problem, layout: _Layout) -> tuple[Array, Array]:
  """Output (B, K, G, T, h) and log-sum-exp (B, K, G, T)."""
  window, _, q_size, k_size = layout
  *rows, num_queries, head_dim = problem.q_BKGTh.shape
  num_key_blocks = problem.k_BKSh.shape[2] // k_size
  first_offset, last_offset = problem.offset_B.min(), problem.offset_B.max()

  def query_block(i: Array) -> tuple[Array, Array]:
    q_block = _block(problem.q_BKGTh, i, q_size, 3)

    def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      highest, total, out = state
      scores, visible = _block_scores(problem, q_block, i, j, layout)
      new_highest = jnp.maximum(highest, jnp.where(visible, scores, _MASKED).max(-1))
      weights = jnp.where(visible, jnp.exp(scores - new_highest[..., None]), 0.0)
      rescale = jnp.exp(highest - new_highest)
      v_block = _block(problem.v_BKSh, j, k_size, 2)
      out = out * rescale[..., None] + _mix_keys(weights.astype(v_block.dtype), v_block)
      return new_highest, total * rescale + weights.sum(-1), out

    last = jnp.minimum((last_offset + (i + 1) * q_size - 1) // k_size + 1, num_key_blocks)
    first = 0 if window is None else jnp.maximum((first_offset + i * q_size - window + 1) // k_size, 0)
    shape = (*rows, q_size)
    state = (jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, head_dim)))
    highest, total, out = lax.fori_loop(first, last, key_block, state)
    total = jnp.where(total == 0, 1.0, total)  # rows of padding may see nothing
    return (out / total[..., None]).astype(q_block.dtype), highest + jnp.log(total)

  out, log_sum = lax.map(query_block, jnp.arange(num_queries // q_size))
  out_BKGTh = jnp.moveaxis(out, 0, 3).reshape(problem.q_BKGTh.shape)
  return out_BKGTh, jnp.moveaxis(log_sum, 0, 3).reshape(*rows, num_queries)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _flash(problem: _Problem, layout: _Layout) -> Array:
  return _flash_forward(problem, layout)[0]


def _flash_fwd(problem: _Problem, layout: _Layout):
  out, log_sum = _flash_forward(problem, layout)
  return out, (problem, out, log_sum)


def _flash_bwd(layout: _Layout, residuals, d_out_BKGTh: Array):
  problem, out_BKGTh, log_sum_BKGT = residuals
  window, _, q_size, k_size = layout
  num_query_blocks = problem.q_BKGTh.shape[3] // q_size
  num_key_blocks = problem.k_BKSh.shape[2] // k_size
  first_offset, last_offset = problem.offset_B.min(), problem.offset_B.max()
  # Sum_j weight_ij * d_weight_ij equals out_i . d_out_i: the term that the softmax's own derivative subtracts.
  delta_BKGT = (out_BKGTh.astype(jnp.float32) * d_out_BKGTh.astype(jnp.float32)).sum(-1)

  def key_block(d_q: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
    k_block, v_block = (_block(x, j, k_size, 2) for x in (problem.k_BKSh, problem.v_BKSh))

    def query_block(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      d_q, d_k, d_v = state
      arrays = (problem.q_BKGTh, d_out_BKGTh, log_sum_BKGT, delta_BKGT, d_q)
      q_block, d_out, log_sum, delta, d_q_block = (_block(x, i, q_size, 3) for x in arrays)
      scores, visible = _block_scores(problem, q_block, i, j, layout)
      weights = jnp.where(visible, jnp.exp(scores - log_sum[..., None]), 0.0)
      d_scores = (weights * (_dot_keys(d_out, v_block) - delta[..., None])).astype(q_block.dtype)
      d_v += _mix_queries(weights.astype(d_out.dtype), d_out)
      d_k += _mix_queries(d_scores, q_block)
      d_q_block += _mix_keys(d_scores, k_block)
      return lax.dynamic_update_slice_in_dim(d_q, d_q_block, i * q_size, axis=3), d_k, d_v

    first = jnp.maximum((j * k_size - last_offset) // q_size, 0)
    last = num_query_blocks
    if window is not None:
      reach = (j + 1) * k_size - 1 + window - first_offset  # first query index that no longer sees this block
      last = jnp.clip(-(-reach // q_size), 0, num_query_blocks)
    zeros = jnp.zeros(k_block.shape, jnp.float32)
    d_q, d_k, d_v = lax.fori_loop(first, last, query_block, (d_q, zeros, zeros))
    return d_q, (d_k, d_v)

  d_q = jnp.zeros(problem.q_BKGTh.shape, jnp.float32)
  d_q, d_kv = lax.scan(key_block, d_q, jnp.arange(num_key_blocks))
  d_k, d_v = (jnp.moveaxis(x, 0, 2).reshape(problem.k_BKSh.shape) for x in d_kv)
  return (_gradient(problem, d_q, d_k, d_v),)


def _gradient(problem: _Problem, d_q: Array, d_k: Array, d_v: Array) -> _Problem:
  """The gradient of a call, in the dtypes of its arrays."""
  return _Problem(
    d_q.astype(problem.q_BKGTh.dtype),
    d_k.astype(problem.k_BKSh.dtype),
    d_v.astype(problem.v_BKSh.dtype),
    offset_B=None,  # type: ignore[arg-type]  # integers and constants: None is JAX's zero
    segments=None,
    slopes_KG=None,
  )


_flash.defvjp(_flash_fwd, _flash_bwd)


# --- unrolled: short rows on a CPU --------------------------------------------------------------
#
# The rows are cut into two blocks of queries, each of which meets only the keys up to its own end: 3/4 of the products.
# The weights are kept for the backward pass, unnormalised: it passes over them once, where the derivative of the
# reference takes several passes.


def _unrolled(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, slopes_KG, window):
  return _rows_by_block(_Problem(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, slopes_KG), window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rows_by_block(problem: _Problem, window: int | None) -> Array:
  return _rows_by_block_fwd(problem, window)[0]


def _query_blocks(num_queries: int) -> list[tuple[int, int]]:
  size = max(-(-num_queries // _UNROLLED), _SMALLEST_UNROLLED)
  return [(start, min(start + size, num_queries)) for start in range(0, num_queries, size)]


def _rows_by_block_fwd(problem: _Problem, window: int | None):
  # What comes before is computed once, and not again in each slice below.
  q_BKGTh, k_BKSh, v_BKSh = lax.optimization_barrier(problem[:3])
  problem = _Problem(q_BKGTh, k_BKSh, v_BKSh, *problem[3:])
  offset_B, segments, slopes_KG = problem[3:]
  outs, saved = [], []
  for start, stop in _query_blocks(q_BKGTh.shape[3]):
    here = None if segments is None else Segments(segments.queries[:, start:stop], segments.keys[:, :stop])
    scores, visible = _scores(
      q_BKGTh[:, :, :, start:stop],
      k_BKSh[:, :, :stop],
      offset_B[:, None] + jnp.arange(start, stop),
      jnp.arange(stop),
      here,
      slopes_KG,
      window,
    )
    scores = jnp.where(visible, scores, _MASKED)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    if segments is not None:  # else every query sees itself, and a masked score is so far below that it is 0 here
      weights = jnp.where(visible, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    inverse = 1 / jnp.where(total == 0, 1.0, total)  # a query that sees nothing gets nothing
    weights = weights.astype(v_BKSh.dtype)
    outs.append(_mix_keys(weights, v_BKSh[:, :, :stop]) * inverse)
    saved.append((weights, inverse))
  out = jnp.concatenate(outs, axis=3)
  return out.astype(q_BKGTh.dtype), (problem, out, saved)


def _rows_by_block_bwd(window: int | None, residuals, d_out_BKGTh: Array):
  problem, out_BKGTh, saved = residuals
  q_BKGTh, k_BKSh, v_BKSh = problem[:3]
  d_out_BKGTh = lax.optimization_barrier(d_out_BKGTh)
  d_q: list[Array] = []
  d_k, d_v = jnp.zeros(k_BKSh.shape, jnp.float32), jnp.zeros(v_BKSh.shape, jnp.float32)
  for (start, stop), (weights, inverse) in zip(_query_blocks(q_BKGTh.shape[3]), saved, strict=True):
    d_out = d_out_BKGTh[:, :, :, start:stop].astype(jnp.float32) * inverse
    delta = (d_out * out_BKGTh[:, :, :, start:stop]).sum(-1, keepdims=True)  # as in _flash_bwd
    d_out = d_out.astype(q_BKGTh.dtype)
    d_scores = (weights * (_dot_keys(d_out, v_BKSh[:, :, :stop]) - delta)).astype(q_BKGTh.dtype)
    d_q.append(_mix_keys(d_scores, k_BKSh[:, :, :stop]))
    d_k = d_k.at[:, :, :stop].add(_mix_queries(d_scores, q_BKGTh[:, :, :, start:stop]))
    d_v = d_v.at[:, :, :stop].add(_mix_queries(weights, d_out))
  return (_gradient(problem, jnp.concatenate(d_q, axis=3), d_k, d_v),)


_rows_by_block.defvjp(_rows_by_block_fwd, _rows_by_block_bwd)

_KERNELS = {"reference": _reference, "blockwise": _blockwise, "unrolled": _unrolled}
