"""Next-token cross-entropy, in chunks of positions so that no (B, T, V) array exists.

`token_losses` returns the loss of every token, for evaluation. Training only needs their sum, so `summed_token_losses`
computes the gradient together with the loss, and the logits of each chunk only once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.chunks import map_chunks, scan_chunks
from drope_jax.layers import project, softcap_slope, softcapped
from drope_jax.model import output_embedding, unembed
from drope_jax.parameters import Params
from drope_jax.platforms import target_memory, target_platform
from drope_jax.sharding import constrain, num_shards

Array = jax.Array


class TokenLosses(NamedTuple):
  """For every token, float32 (B, T): negative log-likelihood in nats, and the log-partition of its logits."""

  nll_BT: Array
  log_z_BT: Array


class SummedLosses(NamedTuple):
  """For a batch, float32 scalars: the differentiated total, and the negative log-likelihood in nats for reports."""

  total: Array
  nll: Array


def cross_entropy(logits_BTV: Array, targets_BT: Array) -> TokenLosses:
  """Losses of float32 logits and int32 targets."""
  return _cross_entropy(logits_BTV, targets_BT, jax.nn.logsumexp(logits_BTV, axis=-1))


def _cross_entropy(logits_BTV: Array, targets_BT: Array, log_z_BT: Array) -> TokenLosses:
  target_logits_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
  return TokenLosses(log_z_BT - target_logits_BT, log_z_BT)


def one_pass_logsumexp(logits_BTV: Array) -> Array:
  """logsumexp over the vocabulary that reads the logits once, where `jax.nn.logsumexp` reads them twice; no derivative.

  The reduction carries the largest logit so far and the sum of exponentials relative to it (Milakov and Gimelshein
  2018, arXiv 1805.02867, algorithm 3), at one exponential per logit.
  """

  def join(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    (top, total), (other_top, other_total) = one, other
    shrink = jnp.exp(-jnp.abs(other_top - top))
    grown = jnp.where(other_top > top, total * shrink + other_total, total + other_total * shrink)
    return jnp.maximum(top, other_top), grown

  lowest = jnp.asarray(jnp.finfo(logits_BTV.dtype).min, logits_BTV.dtype)  # finite: inf - inf is not a number
  operands = logits_BTV, jnp.ones_like(logits_BTV)
  top_BT, total_BT = lax.reduce(operands, (lowest, jnp.zeros_like(lowest)), join, (logits_BTV.ndim - 1,))
  return top_BT + jnp.log(total_BT)


# --- chunks ------------------------------------------------------------------------------------

_SMALL = 128 * 2**20  # bytes; chunks with fewer bytes of logits would save no memory that matters


def chunk_length(batch: int, length: int, *, width: int, vocab: int, dtype: jnp.dtype, gradient: bool) -> int:
  """The default number of positions per chunk, of `length` positions in each of `batch` rows.

  The logits of a chunk on one device, and their gradient in `dtype`, take at most an eighth of its memory. Chunks are
  also not larger than is useful: each chunk reads and writes the gradient of the (V, D) matrix once, 8 V D bytes, next
  to some 22 bytes per logit, so with 32 D positions that overhead is about 1 %. Without a gradient, D positions
  suffice: the logits then take as much memory as the matrix. All chunks have the same length, up to rounding.

  Args:
    width: D.
    vocab: V.
    dtype: of the hidden states.
    gradient: whether the gradient of the logits is computed with the loss.
  """
  bytes_per_position = vocab // num_shards("vocab") * (4 + (dtype.itemsize if gradient else 0))
  enough = max(_SMALL, (32 if gradient else 1) * width * bytes_per_position)
  rows = max(batch // num_shards("batch"), 1)
  positions = min(enough, target_memory() // 8) // (bytes_per_position * rows) * num_shards("length")
  num_chunks = -(-length // max(positions, 1))
  return -(-length // num_chunks)


def chunk_for(params: Params, x_BTD: Array, gradient: bool = False) -> int:
  """`chunk_length` for these hidden states."""
  vocab, width = output_embedding(params).shape
  batch, length, _ = x_BTD.shape
  return chunk_length(batch, length, width=width, vocab=vocab, dtype=x_BTD.dtype, gradient=gradient)


# --- losses of tokens --------------------------------------------------------------------------


def token_losses(
  params: Params,
  x_BTD: Array,
  targets_BT: Array,
  chunk: int | None = None,
  derivatives: str = "own",
  *,
  softcap: float | None = None,
) -> TokenLosses:
  """Losses of int32 `targets_BT` given normalised hidden states, `chunk` positions at a time, as in the backward pass.

  Args:
    chunk: ComputeConfig.loss_chunk; None: see chunk_length.
    derivatives: ComputeConfig.derivatives; forward mode needs "jax".
    softcap: ModelConfig.logits_softcap.
  """
  chunk = chunk or chunk_for(params, x_BTD)

  def losses(x_BCD: Array, targets_BC: Array) -> TokenLosses:
    return cross_entropy(unembed(params, x_BCD, derivatives, softcap=softcap), targets_BC)

  return map_chunks(losses, (x_BTD, targets_BT), chunk)


# --- their sum ---------------------------------------------------------------------------------


def summed_token_losses(
  params: Params,
  x_BTD: Array,
  targets_BT: Array,
  weights_BT: Array,
  *,
  z_loss: float = 0.0,
  chunk: int | None = None,
  derivatives: str = "own",
  softcap: float | None = None,
) -> SummedLosses:
  """The weighted sum of the losses of int32 `targets_BT` given normalised hidden states.

  With derivatives "own", under differentiation the gradient with respect to hidden states and embedding is computed
  together with the loss: the cotangent of a sum is one number, by which it is scaled afterwards. The gradient of the
  logits has the dtype of the hidden states; products with it are accumulated in float32, also over chunks.

  Args:
    weights_BT: float32 weight of each target; 0 for targets that do not count.
    z_loss: weight of the squared log-partition.
    chunk: ComputeConfig.loss_chunk; None: see chunk_length.
    derivatives: ComputeConfig.derivatives; "jax" sums up token_losses, which allows forward mode.
    softcap: ModelConfig.logits_softcap.

  Returns:
    The sum with z-loss, and the sum without, through which no gradient flows.
  """
  if derivatives == "own":
    chunk = chunk or chunk_for(params, x_BTD, gradient=True)
    total, nll = _summed(output_embedding(params), x_BTD, targets_BT, weights_BT, chunk, z_loss, softcap)
  else:
    total, nll = _sums(token_losses(params, x_BTD, targets_BT, chunk, derivatives, softcap=softcap), weights_BT, z_loss)
  return SummedLosses(total, lax.stop_gradient(nll))


def _sums(losses: TokenLosses, weights_BT: Array, z_loss: float) -> SummedLosses:
  nll = (losses.nll_BT * weights_BT).sum()
  return SummedLosses((_terms(losses, z_loss) * weights_BT).sum() if z_loss else nll, nll)


def _terms(losses: TokenLosses, z_loss: float) -> Array:
  """The contribution of each target to the total at weight 1, (B, T)."""
  return losses.nll_BT + z_loss * losses.log_z_BT**2


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _summed(
  weight_VD: Array,
  x_BTD: Array,
  targets_BT: Array,
  weights_BT: Array,
  chunk: int,
  z_loss: float,
  softcap: float | None,
) -> SummedLosses:
  return _sums(token_losses({"embedding": weight_VD}, x_BTD, targets_BT, chunk, softcap=softcap), weights_BT, z_loss)


def _summed_fwd(
  weight_VD: Array,
  x_BTD: Array,
  targets_BT: Array,
  weights_BT: Array,
  chunk: int,
  z_loss: float,
  softcap: float | None,
) -> tuple[SummedLosses, tuple[Array, Array, Array]]:
  """The sums, and the gradients of the total with respect to weight, hidden states and weights."""
  # Gathered once, since every chunk reads all of it (or of a shard of the vocabulary).
  weight_DV = constrain(weight_VD.astype(x_BTD.dtype), "vocab", "features").T
  # On a GPU every pass over the logits reads all of them from its memory. Elsewhere one pass was not tried.
  log_partition = one_pass_logsumexp if target_platform() == "gpu" else functools.partial(jax.nn.logsumexp, axis=-1)
  # Each piece of the rows sums up a gradient of its own: devices add theirs up once, not for each chunk.
  parts = num_shards("batch") if x_BTD.shape[0] % num_shards("batch") == 0 else 1, num_shards("length")

  def add(
    d_weight_PQVD: Array, x_BCD: Array, targets_BC: Array, weights_BC: Array
  ) -> tuple[Array, tuple[TokenLosses, Array]]:
    logits_BCV = softcapped(project(x_BCD, weight_DV, 1, jnp.float32), softcap)
    logits_BCV = constrain(logits_BCV, "batch", "length", "vocab")
    losses = _cross_entropy(logits_BCV, targets_BC, log_partition(logits_BCV))
    softmax_BCV = jnp.exp(logits_BCV - losses.log_z_BT[..., None])
    d_log_z_BC = weights_BC * (1 + 2 * z_loss * losses.log_z_BT)
    is_target_BCV = targets_BC[..., None] == jnp.arange(logits_BCV.shape[-1])
    d_logits_BCV = d_log_z_BC[..., None] * softmax_BCV - jnp.where(is_target_BCV, weights_BC[..., None], 0.0)
    if softcap is not None:
      d_logits_BCV *= softcap_slope(logits_BCV, softcap)
    d_logits_BCV = constrain(d_logits_BCV.astype(x_BCD.dtype), "batch", "length", "vocab")
    d_x_BCD = jnp.tensordot(d_logits_BCV, weight_DV.T, 1, preferred_element_type=jnp.float32).astype(x_BCD.dtype)
    d_weight_PQVD += _weight_gradient(x_BCD, d_logits_BCV, parts)
    return d_weight_PQVD, (losses, constrain(d_x_BCD, "batch", "length", "features"))

  initial = _partial_sums(jnp.zeros((*parts, *weight_VD.shape), jnp.float32))
  d_weight_PQVD, (losses, d_x_BTD) = scan_chunks(add, initial, (x_BTD, targets_BT, weights_BT), chunk)
  d_weight_VD = constrain(d_weight_PQVD.sum((0, 1)), "vocab", "embed")
  saved = d_weight_VD.astype(weight_VD.dtype), d_x_BTD, _terms(losses, z_loss)
  return _sums(losses, weights_BT, z_loss), saved


def _weight_gradient(x_BCD: Array, g_BCV: Array, parts: tuple[int, int]) -> Array:
  """The float32 gradient of the matrix, separately for each of P x Q parts of rows and positions: (P, Q, V, D)."""
  product = functools.partial(jnp.tensordot, axes=((0, 1), (0, 1)), preferred_element_type=jnp.float32)
  if parts == (1, 1):
    # In float32, as on CPUs, the narrower operand goes first (see layers.project). In bfloat16, XLA's CPU backend
    # cannot run a transposed product with a float32 result (jax 0.10.2).
    d_weight_VD = product(x_BCD, g_BCV).T if g_BCV.dtype == jnp.float32 else product(g_BCV, x_BCD)
    return d_weight_VD[None, None]
  batch, length = x_BCD.shape[:2]

  def in_parts(y: Array) -> Array:
    return y.reshape(parts[0], batch // parts[0], parts[1], length // parts[1], y.shape[-1])

  operands = in_parts(g_BCV), in_parts(x_BCD)
  return _partial_sums(jnp.einsum("pbqcv,pbqcd->pqvd", *operands, preferred_element_type=jnp.float32))


def _partial_sums(d_weight_PQVD: Array) -> Array:
  """Constrains each of P x Q partial sums to the devices that compute it."""
  if d_weight_PQVD.shape[0] != num_shards("batch"):
    return d_weight_PQVD
  return constrain(d_weight_PQVD, "batch", "length", "vocab", "features")


def _summed_bwd(
  chunk: int, z_loss: float, softcap: float | None, saved: tuple[Array, Array, Array], g: SummedLosses
) -> tuple[Array, Array, None, Array]:
  d_weight_VD, d_x_BTD, d_weights_BT = saved
  d_x = (d_x_BTD.astype(jnp.float32) * g.total).astype(d_x_BTD.dtype)
  return d_weight_VD * g.total, d_x, None, d_weights_BT * g.total


_summed.defvjp(_summed_fwd, _summed_bwd)
