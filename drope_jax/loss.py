"""Next-token cross-entropy, in chunks of positions so that no (B, T, V) array exists."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.model import Params, hidden_states, unembed
from drope_jax.sharding import pieces

Array = jax.Array


class TokenLosses(NamedTuple):
  """Of every token, float32 (B, T): negative log-likelihood in nats, and the log-partition of its logits."""

  nll_BT: Array
  log_z_BT: Array


@jax.custom_vjp
def _cross_entropy(logits_BTV: Array, targets_BT: Array) -> TokenLosses:
  """Losses of float32 logits.

  Its own derivative passes over the logits once; JAX's keeps their exponentials, and scatters into an array of zeros.
  """
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  target_logits_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
  return TokenLosses(log_z_BT - target_logits_BT, log_z_BT)


def _cross_entropy_fwd(logits_BTV: Array, targets_BT: Array) -> tuple[TokenLosses, tuple[Array, Array, Array]]:
  out = _cross_entropy(logits_BTV, targets_BT)
  return out, (logits_BTV, targets_BT, out.log_z_BT)


def _cross_entropy_bwd(saved: tuple[Array, Array, Array], g: TokenLosses) -> tuple[Array, None]:
  logits_BTV, targets_BT, log_z_BT = saved
  d_log_z = (g.nll_BT + g.log_z_BT)[..., None] * jnp.exp(logits_BTV - log_z_BT[..., None])
  is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
  return jnp.where(is_target_BTV, d_log_z - g.nll_BT[..., None], d_log_z), None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def token_losses(params: Params, x_BTD: Array, targets_BT: Array, chunk: int) -> TokenLosses:
  """Losses of int32 `targets_BT` given normalised hidden states, `chunk` positions at a time, gradients too."""
  batch, length = targets_BT.shape

  def losses(x: Array, targets: Array) -> TokenLosses:
    return _cross_entropy(unembed(params, x), targets)

  if length <= chunk:
    return losses(x_BTD, targets_BT)

  # Where devices hold pieces of the rows, a chunk has some positions of every piece: all work on each chunk.
  shards = math.gcd(pieces("length"), chunk)
  num_chunks = -(-length // chunk)

  def split(x: Array) -> Array:
    padded = jnp.pad(x, [(0, 0), (0, num_chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2))
    by_piece = padded.reshape(batch, shards, num_chunks, chunk // shards, *x.shape[2:])
    return jnp.moveaxis(by_piece, 2, 0).reshape(num_chunks, batch, chunk, *x.shape[2:])

  def join(y: Array) -> Array:
    by_piece = jnp.moveaxis(y.reshape(num_chunks, batch, shards, -1), 0, 2)
    return by_piece.reshape(batch, -1)[:, :length]

  chunks = lax.map(jax.checkpoint(lambda xs: losses(*xs)), (split(x_BTD), split(targets_BT)))
  return jax.tree.map(join, chunks)


def summed_loss(
  params: Params, config: ModelConfig, batch: dict[str, Array], compute: ComputeConfig, z_loss: float = 0.0
) -> tuple[Array, dict[str, Array]]:
  """The training loss of a batch as a sum over its real targets, so that micro-batches add up exactly.

  Args:
    batch: `tokens` (B, T+1); with a document mask also `segments` and `positions` of the same shape: then a target
      counts only if it belongs to the document of the token before it.
    z_loss: weight of the squared log-partition.

  Returns:
    The sum to differentiate, and {"nll": summed negative log-likelihood in nats, "tokens": targets counted}.
  """
  tokens = batch["tokens"]
  inputs: dict[str, Any] = {}
  weights_BT = jnp.ones(tokens[:, 1:].shape, jnp.float32)
  if "segments" in batch:
    segments = batch["segments"]
    inputs = {"segments_BT": segments[:, :-1], "position_ids_BT": batch["positions"][:, :-1]}
    weights_BT = (segments[:, :-1] == segments[:, 1:]).astype(jnp.float32)
  x_BTD, *_ = hidden_states(params, config, tokens[:, :-1], compute=compute, **inputs)
  nll_BT, log_z_BT = token_losses(params, x_BTD, tokens[:, 1:], compute.loss_chunk)
  nll = (nll_BT * weights_BT).sum()
  total = nll + z_loss * (log_z_BT**2 * weights_BT).sum() if z_loss else nll
  return total, {"nll": nll, "tokens": weights_BT.sum()}
