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
from typing import Any

import jax
import jax.numpy as jnp

from drope_jax.attention.accelerators import ACCELERATED, PLATFORMS, obstacle
from drope_jax.attention.blockwise import blockwise_attention
from drope_jax.attention.context_parallel import over_context
from drope_jax.attention.reference import reference_attention
from drope_jax.attention.scores import Segments
from drope_jax.attention.unrolled import unrolled_attention
from drope_jax.errors import ConfigError
from drope_jax.platforms import target_platform
from drope_jax.sharding import cut_evenly, pieces

Array = jax.Array

__all__ = ["Segments", "attention"]

_LARGEST_REFERENCE = 1 << 16  # scores per head up to which "auto" takes the reference kernel, or the unrolled one


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
    compute = functools.partial(_compute, window=window, kernel=kernel)
    return over_context(compute, scaled, k_BSKh, v_BSKh, offset, segments, slopes_H)
  return _compute(scaled, k_BSKh, v_BSKh, offset, segments, slopes_H, window, kernel)


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


_KERNELS = {"reference": reference_attention, "blockwise": blockwise_attention, "unrolled": unrolled_attention}
