"""Shared by the kernels in XLA: the arrays of a call, its three products, and the masked, biased scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from drope_jax.layers import softcap_slope, softcapped
from drope_jax.positions import Bias

Array = jax.Array

MASKED = -1e30  # finite, so that a completely masked block does not produce inf - inf


class Segments(NamedTuple):
  """Document number of every query (B, T) and key (B, S), int32; attention stays within equal numbers."""

  queries: Array
  keys: Array


class Problem(NamedTuple):
  """The arrays of an attention call; the queries are already scaled."""

  q_BKGTh: Array
  k_BKSh: Array
  v_BKSh: Array
  offset_B: Array
  segments: Segments | None
  bias_KG: Bias | None  # its coefficients are (K, G)


# The three products of attention, with float32 results. The G * T queries of a key/value head are the rows of one
# matrix: XLA's CPU backend takes twice as long for a product with more dimensions.


def _rows(x_BKGTx: Array) -> Array:
  return x_BKGTx.reshape(*x_BKGTx.shape[:2], -1, x_BKGTx.shape[-1])


def dot_keys(x_BKGTh: Array, y_BKSh: Array) -> Array:
  """(B, K, G, T, S): the products of every row of x with every row of y."""
  out = jnp.einsum("BKRh,BKSh->BKRS", _rows(x_BKGTh), y_BKSh, preferred_element_type=jnp.float32)
  return out.reshape(*x_BKGTh.shape[:-1], -1)


def mix_keys(weights_BKGTS: Array, y_BKSh: Array) -> Array:
  """(B, K, G, T, h): the weighted sum of the rows of y for each query."""
  out = jnp.einsum("BKRS,BKSh->BKRh", _rows(weights_BKGTS), y_BKSh, preferred_element_type=jnp.float32)
  return out.reshape(*weights_BKGTS.shape[:-1], -1)


def mix_queries(weights_BKGTS: Array, x_BKGTh: Array) -> Array:
  """(B, K, S, h): the weighted sum of the rows of x for each key."""
  return jnp.einsum("BKRS,BKRh->BKSh", _rows(weights_BKGTS), _rows(x_BKGTh), preferred_element_type=jnp.float32)


class Limits(NamedTuple):
  """The static parameters of the scores."""

  window: int | None  # number of keys that a query sees
  softcap: float | None  # cap of the scores


class Scores(NamedTuple):
  """Attention logits, capped and biased; masking is left to the caller."""

  logits: Array  # (B, K, G, T, S), float32
  visible: Array  # (B, 1, 1, T, S)
  slope: Array | None  # the derivative of the logits with respect to q.k, (B, K, G, T, S); None: 1


def biased_scores(
  q_BKGTh: Array,
  k_BKSh: Array,
  q_index_BT: Array,
  k_index_S: Array,
  segments: Segments | None,
  bias_KG: Bias | None,
  limits: Limits,
) -> Scores:
  """The scores of queries at indices `q_index_BT` against keys at indices `k_index_S`."""
  window, softcap = limits
  scores = softcapped(dot_keys(q_BKGTh, k_BKSh), softcap)
  slope = None if softcap is None else softcap_slope(scores, softcap)
  distance_BTS = q_index_BT[:, :, None] - k_index_S
  if bias_KG is not None:
    coefficients = [coefficient[:, :, None, None] for coefficient in bias_KG.coefficients]
    scores += bias_KG.of_distance(*coefficients, distance_BTS[:, None, None].astype(jnp.float32))
  visible_BTS = distance_BTS >= 0
  if window is not None:
    visible_BTS &= distance_BTS < window
  if segments is not None:
    visible_BTS &= segments.queries[:, :, None] == segments.keys[:, None, :]
  return Scores(scores, visible_BTS[:, None, None], slope)


def gradient(problem: Problem, d_q: Array, d_k: Array, d_v: Array) -> Problem:
  """The cotangent of a call, in the dtypes of its arrays."""
  return Problem(
    d_q.astype(problem.q_BKGTh.dtype),
    d_k.astype(problem.k_BKSh.dtype),
    d_v.astype(problem.v_BKSh.dtype),
    offset_B=None,  # type: ignore[arg-type]  # for integers and constants, None is JAX's zero cotangent
    segments=None,
    bias_KG=None,
  )
