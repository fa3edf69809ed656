"""Causal attention behind one function, with several equivalent kernels, and the choice between them.

A query at index i of its row sees the keys at indices j <= i; with a window, only those with i - j < window; with
segments, only those of its own segment. Indices count tokens of the row (or cache slots), so a cache needs no mask of
its own: slots that are not yet written have indices beyond every query. Position ids are only read by the rotation.

Kernels: "reference" materialises the T x S scores; "blockwise" keeps one block of them at a time, forward and backward,
and skips blocks that causality or the window mask completely; "unrolled" is for short whole rows on a CPU. Scores,
softmax and sums are float32 in all. "splash" (TPU), "cudnn" and "triton" (GPU) are for accelerators, see
accelerators.py. Letters as in model.py, and G = H / K, the number of query heads that share a key/value head.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from drope_jax.attention.accelerators import ACCELERATED, PLATFORMS, obstacle
from drope_jax.attention.blockwise import blockwise_attention
from drope_jax.attention.context_parallel import over_context
from drope_jax.attention.reference import reference_attention, reference_weights
from drope_jax.attention.scores import Limits, Segments
from drope_jax.attention.unrolled import unrolled_attention
from drope_jax.errors import ConfigError
from drope_jax.platforms import target_platform
from drope_jax.positions import Bias
from drope_jax.sharding import cut_evenly, num_shards

Array = jax.Array

__all__ = ["Segments", "attention", "attention_weights"]

logger = logging.getLogger(__name__)

_LARGEST_REFERENCE = 1 << 16  # scores per head up to which "auto" chooses the reference or the unrolled kernel


def attention(
  q_BTHh: Array,
  k_BSKh: Array,
  v_BSKh: Array,
  *,
  offset: int | Array = 0,
  window: int | None = None,
  segments: Segments | None = None,
  bias: Bias | None = None,
  softcap: float | None = None,
  logit_scale: float | Array = 1.0,
  kernel: str = "auto",
) -> Array:
  """softmax(cap(logit_scale * q.k / sqrt(h)) + bias) v over the visible keys.

  Args:
    q_BTHh, k_BSKh, v_BSKh: queries, keys and values; K divides H, and H/K query heads share a key head.
    offset: index of the first query of each row, an int or int32 (B,): the number of cached keys before it.
    window: number of keys that each query sees, its own included; None: all up to its own.
    segments: document numbers, or None.
    bias: what an embedding adds to the logits; no gradient flows to it.
    softcap: cap(x) is softcap * tanh(x / softcap), applied to the scaled logits; None: x.
    logit_scale: beta of the paper's appendix C.2, a scalar or (H,); multiplies 1/sqrt(h).
    kernel: a name from the module's docstring, or "auto": the first of the accelerator's kernels that can serve the
      call; otherwise "unrolled" (with a cache "reference") if T * S is small, else "blockwise".

  Returns:
    (B, T, H, h) in the dtype of q.

  Raises:
    ValueError: for head counts that do not divide.
    ConfigError: for an unknown kernel, or one that cannot serve the call; the message says why.
  """
  num_queries, num_heads = q_BTHh.shape[1:3]
  num_keys, num_kv_heads = k_BSKh.shape[1:3]
  if num_heads % num_kv_heads:
    raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key/value heads evenly")
  hindered = functools.partial(
    obstacle,
    q_BTHh=q_BTHh,
    k_BSKh=k_BSKh,
    offset=offset,
    segments=segments,
    bias=bias,
    softcap=softcap,
    window=window,
  )
  if kernel == "auto":
    short = num_queries * num_keys <= _LARGEST_REFERENCE
    kernel = "blockwise" if not short else "reference" if hindered("unrolled") else "unrolled"
    ruled_out = []
    for name in PLATFORMS.get(target_platform(), ()):
      hindrance = hindered(name)
      if hindrance is None:
        kernel = name
        break
      ruled_out.append((name, hindrance.text))
    _log_choice(kernel, tuple(ruled_out))
  if kernel not in (*_KERNELS, *ACCELERATED):
    allowed = ("auto", *_KERNELS, *ACCELERATED)
    raise ConfigError(f"ComputeConfig.attention is {kernel!r}; allowed: {', '.join(allowed)}")

  scaled, limits = _scaled(q_BTHh, logit_scale), Limits(window, softcap)
  if kernel in (*ACCELERATED, "unrolled") and (reason := hindered(kernel)):
    raise ConfigError(
      f"ComputeConfig.attention is {kernel!r}, which cannot take {reason.text}; choose another, or 'auto'"
    )
  if kernel in ACCELERATED:
    return ACCELERATED[kernel](scaled, k_BSKh, v_BSKh, limits, segments, offset)
  # Rows that are too short to be split, such as one new token, are left to the compiler.
  if num_shards("length") > 1 and cut_evenly(q_BTHh, "batch", "length"):
    compute = functools.partial(_compute, limits=limits, kernel=kernel)
    return over_context(compute, scaled, k_BSKh, v_BSKh, offset, segments, bias)
  return _compute(scaled, k_BSKh, v_BSKh, offset, segments, bias, limits, kernel)


def attention_weights(
  q_BTHh: Array,
  k_BSKh: Array,
  *,
  offset: int | Array = 0,
  window: int | None = None,
  segments: Segments | None = None,
  bias: Bias | None = None,
  softcap: float | None = None,
  logit_scale: float | Array = 1.0,
) -> Array:
  """The attention weights of `attention`, float32 (B, H, T, S); arguments as there.

  They are materialised, so this is for short texts.
  """
  batch, num_queries, num_heads, _ = q_BTHh.shape
  q_BKGTh, k_BKSh, offset_B, bias_KG = _grouped(_scaled(q_BTHh, logit_scale), k_BSKh, offset, bias)
  weights_BKGTS = reference_weights(q_BKGTh, k_BKSh, offset_B, segments, bias_KG, Limits(window, softcap))
  return weights_BKGTS.reshape(batch, num_heads, num_queries, -1)


@functools.cache
def _log_choice(kernel: str, ruled_out: tuple[tuple[str, str], ...]) -> None:
  """Logs, once per process, which kernel "auto" chose and why not a better one; a warning if the chosen one is slow."""
  why = ", since " + " and ".join(f"{name} cannot take {text}" for name, text in ruled_out) if ruled_out else ""
  slow = bool(ruled_out) and kernel not in ACCELERATED
  logger.log(logging.WARNING if slow else logging.INFO, "attention kernel: %s%s", kernel, why)


def _scaled(q_BTHh: Array, logit_scale: float | Array) -> Array:
  scale = jnp.asarray(logit_scale, jnp.float32) / math.sqrt(q_BTHh.shape[-1])
  return (q_BTHh * scale[..., None]).astype(q_BTHh.dtype)


def _grouped(q_BTHh: Array, k_BSKh: Array, offset: int | Array, bias: Bias | None):
  """Queries (B, K, G, T, h), keys (B, K, S, h), offsets (B,) and a bias with coefficients (K, G).

  With heads before positions, every product is a plain batched matrix product without transposes.
  """
  batch, num_queries, num_heads, head_dim = q_BTHh.shape
  groups = (k_BSKh.shape[2], num_heads // k_BSKh.shape[2])
  q_BKGTh = q_BTHh.swapaxes(1, 2).reshape(batch, *groups, num_queries, head_dim)
  # (1,) if all rows share the offset, so that one mask serves the batch.
  offset_B = jnp.atleast_1d(jnp.asarray(offset, jnp.int32))
  bias_KG = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32).reshape(groups), bias)
  return q_BKGTh, k_BSKh.swapaxes(1, 2), offset_B, bias_KG


def _compute(scaled_BTHh, k_BSKh, v_BSKh, offset, segments, bias, limits, kernel: str) -> Array:
  """One of this package's own kernels; arguments as for `attention`, with the scale already in the queries."""
  batch, num_queries, num_heads, head_dim = scaled_BTHh.shape
  q_BKGTh, k_BKSh, offset_B, bias_KG = _grouped(scaled_BTHh, k_BSKh, offset, bias)
  out_BKGTh = _KERNELS[kernel](q_BKGTh, k_BKSh, v_BSKh.swapaxes(1, 2), offset_B, segments, bias_KG, limits)
  if kernel != "blockwise":  # which names its own residuals
    out_BKGTh = checkpoint_name(out_BKGTh, "attention")
  return out_BKGTh.reshape(batch, num_heads, num_queries, head_dim).swapaxes(1, 2)


_KERNELS = {"reference": reference_attention, "blockwise": blockwise_attention, "unrolled": unrolled_attention}
