"""The unrolled kernel: short rows on a CPU.

Rows are split into two blocks of queries, each multiplied only with the keys up to its own end, which is 3/4 of the
products. The unnormalised weights are kept for the backward pass, which reads them once; the derivative of the
reference kernel needs several passes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.attention.scores import (
  MASKED,
  Limits,
  Problem,
  Segments,
  biased_scores,
  dot_keys,
  gradient,
  mix_keys,
  mix_queries,
)

Array = jax.Array

_UNROLLED = 2  # maximum number of query blocks
_SMALLEST_UNROLLED = 64  # minimum queries per block; compiling more blocks would cost more than it saves


def unrolled_attention(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, bias_KG, limits):
  """The output (B, K, G, T, h) in the dtype of q; arguments as in `scores.Problem`."""
  return _rows_by_block(Problem(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, bias_KG), limits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rows_by_block(problem: Problem, limits: Limits) -> Array:
  return _rows_by_block_fwd(problem, limits)[0]


def _query_blocks(num_queries: int) -> list[tuple[int, int]]:
  size = max(-(-num_queries // _UNROLLED), _SMALLEST_UNROLLED)
  return [(start, min(start + size, num_queries)) for start in range(0, num_queries, size)]


def _rows_by_block_fwd(problem: Problem, limits: Limits):
  # The barrier keeps XLA from recomputing the inputs in each of the slices below.
  q_BKGTh, k_BKSh, v_BKSh = lax.optimization_barrier(problem[:3])
  problem = Problem(q_BKGTh, k_BKSh, v_BKSh, *problem[3:])
  offset_B, segments, bias_KG = problem[3:]
  outs, saved = [], []
  for start, stop in _query_blocks(q_BKGTh.shape[3]):
    here = None if segments is None else Segments(segments.queries[:, start:stop], segments.keys[:, :stop])
    scores, visible, slope = biased_scores(
      q_BKGTh[:, :, :, start:stop],
      k_BKSh[:, :, :stop],
      offset_B[:, None] + jnp.arange(start, stop),
      jnp.arange(stop),
      here,
      bias_KG,
      limits,
    )
    scores = jnp.where(visible, scores, MASKED)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    if segments is not None:  # without segments every query sees its own key, so masked weights are 0 already
      weights = jnp.where(visible, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    inverse = 1 / jnp.where(total == 0, 1.0, total)  # a query that sees nothing gets nothing
    weights = weights.astype(v_BKSh.dtype)
    outs.append(mix_keys(weights, v_BKSh[:, :, :stop]) * inverse)
    saved.append((weights, inverse, slope))
  out = jnp.concatenate(outs, axis=3)
  return out.astype(q_BKGTh.dtype), (problem, out, saved)


def _rows_by_block_bwd(limits: Limits, residuals, d_out_BKGTh: Array):
  problem, out_BKGTh, saved = residuals
  q_BKGTh, k_BKSh, v_BKSh = problem[:3]
  d_out_BKGTh = lax.optimization_barrier(d_out_BKGTh)
  d_q: list[Array] = []
  d_k, d_v = jnp.zeros(k_BKSh.shape, jnp.float32), jnp.zeros(v_BKSh.shape, jnp.float32)
  for (start, stop), (weights, inverse, slope) in zip(_query_blocks(q_BKGTh.shape[3]), saved, strict=True):
    d_out = d_out_BKGTh[:, :, :, start:stop].astype(jnp.float32) * inverse
    delta = (d_out * out_BKGTh[:, :, :, start:stop]).sum(-1, keepdims=True)  # as in _flash_bwd
    d_out = d_out.astype(q_BKGTh.dtype)
    d_scores = weights * (dot_keys(d_out, v_BKSh[:, :, :stop]) - delta)
    d_scores = (d_scores if slope is None else d_scores * slope).astype(q_BKGTh.dtype)
    d_q.append(mix_keys(d_scores, k_BKSh[:, :, :stop]))
    d_k = d_k.at[:, :, :stop].add(mix_queries(d_scores, q_BKGTh[:, :, :, start:stop]))
    d_v = d_v.at[:, :, :stop].add(mix_queries(weights, d_out))
  return (gradient(problem, jnp.concatenate(d_q, axis=3), d_k, d_v),)


_rows_by_block.defvjp(_rows_by_block_fwd, _rows_by_block_bwd)
