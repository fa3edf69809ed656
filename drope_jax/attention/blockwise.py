"""The blockwise kernel: linear memory, forward and backward.

The forward pass is the online softmax (Milakov 2018, Rabe 2021), and the backward pass recomputes the scores of a
block from the saved log-sum-exp (Dao 2022/2023). Loop bounds are computed at run time, so skipped blocks cost nothing;
the backward pass is written by hand because JAX cannot differentiate loops with such bounds.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drope_jax.attention.scores import (
  MASKED,
  Limits,
  Problem,
  Scores,
  Segments,
  biased_scores,
  dot_keys,
  gradient,
  mix_keys,
  mix_queries,
)

Array = jax.Array

_BLOCK = 128  # queries and keys per block
_LONG = 2048  # from this many keys on, blocks are twice as wide: larger products, of which little is masked


class _Layout(NamedTuple):
  """The static parameters of a call."""

  limits: Limits
  num_keys: int  # without the padding
  q_size: int  # queries of a block
  k_size: int  # keys of a block


def blockwise_attention(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, bias_KG, limits):
  """The output (B, K, G, T, h) in the dtype of q; arguments as in `scores.Problem`."""
  num_queries, num_keys = q_BKGTh.shape[3], k_BKSh.shape[2]
  block = _BLOCK if num_keys < _LONG else 2 * _BLOCK
  q_size, k_size = min(block, num_queries), min(block, num_keys)

  def pad(x: Array, axis: int, block: int) -> Array:
    return jnp.pad(x, [(0, -size % block if i == axis else 0) for i, size in enumerate(x.shape)])

  if segments is not None:
    segments = Segments(pad(segments.queries, 1, q_size), pad(segments.keys, 1, k_size))
  keys_and_values = pad(k_BKSh, 2, k_size), pad(v_BKSh, 2, k_size)
  problem = Problem(pad(q_BKGTh, 3, q_size), *keys_and_values, offset_B, segments, bias_KG)
  return _flash(problem, _Layout(limits, num_keys, q_size, k_size))[:, :, :, :num_queries]


def _block(x: Array, index: Array, size: int, axis: int) -> Array:
  """Block `index` of `x` along `axis`."""
  return lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _block_scores(problem: Problem, q_block: Array, i: Array, j: Array, layout: _Layout) -> Scores:
  """The scores of query block i against key block j."""
  limits, num_keys, q_size, k_size = layout
  q_index_BT = problem.offset_B[:, None] + i * q_size + jnp.arange(q_size)
  k_index_S = j * k_size + jnp.arange(k_size)
  segments = problem.segments
  if segments is not None:
    segments = Segments(_block(segments.queries, i, q_size, 1), _block(segments.keys, j, k_size, 1))
  k_block = _block(problem.k_BKSh, j, k_size, 2)
  scores = biased_scores(q_block, k_block, q_index_BT, k_index_S, segments, problem.bias_KG, limits)
  return scores._replace(visible=scores.visible & (k_index_S < num_keys))


def _flash_forward(problem: Problem, layout: _Layout) -> tuple[Array, Array]:
  """Output (B, K, G, T, h) and log-sum-exp (B, K, G, T)."""
  (window, _), _, q_size, k_size = layout
  *rows, num_queries, head_dim = problem.q_BKGTh.shape
  num_key_blocks = problem.k_BKSh.shape[2] // k_size
  first_offset, last_offset = problem.offset_B.min(), problem.offset_B.max()

  def query_block(i: Array) -> tuple[Array, Array]:
    q_block = _block(problem.q_BKGTh, i, q_size, 3)

    def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      highest, total, out = state
      scores, visible, _ = _block_scores(problem, q_block, i, j, layout)
      new_highest = jnp.maximum(highest, jnp.where(visible, scores, MASKED).max(-1))
      weights = jnp.where(visible, jnp.exp(scores - new_highest[..., None]), 0.0)
      rescale = jnp.exp(highest - new_highest)
      v_block = _block(problem.v_BKSh, j, k_size, 2)
      out = out * rescale[..., None] + mix_keys(weights.astype(v_block.dtype), v_block)
      return new_highest, total * rescale + weights.sum(-1), out

    last = jnp.minimum((last_offset + (i + 1) * q_size - 1) // k_size + 1, num_key_blocks)
    first = 0 if window is None else jnp.maximum((first_offset + i * q_size - window + 1) // k_size, 0)
    shape = (*rows, q_size)
    state = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, head_dim)))
    highest, total, out = lax.fori_loop(first, last, key_block, state)
    total = jnp.where(total == 0, 1.0, total)  # rows of padding may see nothing
    return (out / total[..., None]).astype(q_block.dtype), highest + jnp.log(total)

  out, log_sum = lax.map(query_block, jnp.arange(num_queries // q_size))
  out_BKGTh = jnp.moveaxis(out, 0, 3).reshape(problem.q_BKGTh.shape)
  return out_BKGTh, jnp.moveaxis(log_sum, 0, 3).reshape(*rows, num_queries)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _flash(problem: Problem, layout: _Layout) -> Array:
  return _flash_forward(problem, layout)[0]


def _flash_fwd(problem: Problem, layout: _Layout):
  out, log_sum = (checkpoint_name(x, "attention") for x in _flash_forward(problem, layout))
  return out, (problem, out, log_sum)


def _flash_bwd(layout: _Layout, residuals, d_out_BKGTh: Array):
  problem, out_BKGTh, log_sum_BKGT = residuals
  (window, _), _, q_size, k_size = layout
  num_query_blocks = problem.q_BKGTh.shape[3] // q_size
  num_key_blocks = problem.k_BKSh.shape[2] // k_size
  first_offset, last_offset = problem.offset_B.min(), problem.offset_B.max()
  # The derivative of softmax subtracts sum_j weight_ij * d_weight_ij, which equals out_i . d_out_i.
  delta_BKGT = (out_BKGTh.astype(jnp.float32) * d_out_BKGTh.astype(jnp.float32)).sum(-1)

  def key_block(d_q: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
    k_block, v_block = (_block(x, j, k_size, 2) for x in (problem.k_BKSh, problem.v_BKSh))

    def query_block(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      d_q, d_k, d_v = state
      arrays = (problem.q_BKGTh, d_out_BKGTh, log_sum_BKGT, delta_BKGT, d_q)
      q_block, d_out, log_sum, delta, d_q_block = (_block(x, i, q_size, 3) for x in arrays)
      scores, visible, slope = _block_scores(problem, q_block, i, j, layout)
      weights = jnp.where(visible, jnp.exp(scores - log_sum[..., None]), 0.0)
      d_scores = weights * (dot_keys(d_out, v_block) - delta[..., None])
      d_scores = (d_scores if slope is None else d_scores * slope).astype(q_block.dtype)
      d_v += mix_queries(weights.astype(d_out.dtype), d_out)
      d_k += mix_queries(d_scores, q_block)
      d_q_block += mix_keys(d_scores, k_block)
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
  return (gradient(problem, d_q, d_k, d_v),)


_flash.defvjp(_flash_fwd, _flash_bwd)
