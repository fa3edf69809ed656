"""The paper's theory (section 3) as functions of a model's intermediates: positional bias, prefix spread, heads.

They take what `hidden_states(..., taps=...)` returns. Letters as in model.py; c_TT are centred positional weights: one
coefficient per query i and key j, zero above the diagonal, with rows that sum to zero.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax.cache import init_cache
from drope_jax.model import Taps, hidden_states, separate_frequencies
from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.parameters import Params
from drope_jax.positions import LayerPattern, layer_cycle
from drope_jax.rotation import Frequencies

Array = jax.Array
_FLOAT32 = ComputeConfig(dtype="float32")


# --- attention positional bias (definition 3.1) ------------------------------------------------


def diagonal_weights(length: int) -> np.ndarray:
  """c of a diagonal head, float64 (T, T): 1 for the query itself, -1 / (i - 1) for earlier keys; row i = 1 is 0."""
  return _favouring(length, distance=0)


def previous_token_weights(length: int) -> np.ndarray:
  """c of a previous-token head, float64 (T, T): 1 for the key before the query, and equal values for all others.

  The paper describes it only in words ("off-diagonal"); this is the construction of the diagonal head, shifted by one.
  """
  return _favouring(length, distance=1)


def _favouring(length: int, distance: int) -> np.ndarray:
  i, j = np.arange(length)[:, None], np.arange(length)
  # Row i, counted from 0, has i other keys.
  others = np.where((j <= i) & (j != i - distance), -1 / np.maximum(i, 1), 0.0)
  return np.where((i >= 1) & (i - j == distance), 1.0, np.where(i >= 1, others, 0.0))


def positional_bias(weights_TT: Array, c_TT: Any) -> Array:
  """A^c of attention weights: the mean over queries of sum_j c_ij alpha_ij (definition 3.1).

  Args:
    weights_TT: (..., T, T), as (B, H, T, T) or (L, B, H, T, T).

  Returns:
    The leading axes.
  """
  return jnp.einsum("...TS,TS->...", weights_TT, c_TT) / weights_TT.shape[-2]


def score_gradients(weights_BHTT: Array, c_TT: Any) -> Array:
  """g_ij = dA^c / ds_ij = alpha_ij (c_ij - sum_p alpha_ip c_ip) / T, (B, H, T, T) (equation B.10)."""
  expected = (weights_BHTT * c_TT).sum(-1, keepdims=True)
  return weights_BHTT * (c_TT - expected) / weights_BHTT.shape[-2]


def projection_gradients(h_BTD: Array, q_BTHh: Array, k_BTHh: Array, c_TT: Any) -> tuple[Array, Array]:
  """dA^c / dW_Q and dA^c / dW_K in closed form, (B, D, H, h) each, for heads without rotation (appendix B).

  Args:
    h_BTD: the input of the projections, which is the normalised residual stream.
    q_BTHh, k_BTHh: queries and keys, with one key head per query head.
  """
  scale = 1 / np.sqrt(q_BTHh.shape[-1])
  scores = jnp.einsum("BTHh,BSHh->BHTS", q_BTHh, k_BTHh) * scale
  visible = np.tri(scores.shape[-1], dtype=bool)
  g_BHTS = score_gradients(jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)), c_TT)
  d_q = jnp.einsum("BHTS,BSHh,BTD->BDHh", g_BHTS, k_BTHh, h_BTD) * scale
  d_k = jnp.einsum("BHTS,BTHh,BSD->BDHh", g_BHTS, q_BTHh, h_BTD) * scale
  return d_q, d_k


def bias_gradient_norms(
  params: Params, config: ModelConfig, tokens_BT: Array, c_TT: Any, layers: Sequence[int] | None = None
) -> np.ndarray:
  """Figure 4: for each layer, how strongly its query and key projections can change its heads' positional bias.

  This is the norm of the gradient of one number, the mean of A^c over heads and sequences, with respect to the layer's
  W_Q and W_K together; sequences, and heads that share keys, can cancel in it. The whole model runs once, and then each
  layer by itself on its input, so that layers of the same kind share one compiled program.

  Args:
    c_TT: positional weights, or several of them (C, T, T); the model runs only once for all.
    layers: which layers; None: all.

  Returns:
    float32 (L,) in the order of `layers`, or (C, L).
  """
  chosen = tuple(range(config.num_layers) if layers is None else layers)
  entering_LBTD = _residuals(params, config, tokens_BT, chosen)
  all_c = np.asarray(c_TT, np.float32)
  kinds = layer_cycle(config.positions)
  norms = []
  for layer, x_BTD in zip(chosen, entering_LBTD, strict=True):
    alone = dataclasses.replace(
      config, num_layers=1, embedding_multiplier=1.0, positions=LayerPattern((kinds[layer % len(kinds)],))
    )
    weights = jax.tree.map(lambda w, layer=layer: w[layer][None], params["layers"])
    norms.append([_bias_gradient_norm(weights, alone, x_BTD, c) for c in all_c.reshape(-1, *all_c.shape[-2:])])
  return np.asarray(norms, np.float32).T.reshape(*all_c.shape[:-2], len(chosen))


@functools.partial(jax.jit, static_argnums=(1, 3))
def _residuals(params: Params, config: ModelConfig, tokens_BT: Array, layers: tuple[int, ...]) -> Array:
  taps = Taps(layers, ("residual",))
  return hidden_states(params, config, tokens_BT, compute=_FLOAT32, taps=taps).taps["residual"]


@functools.partial(jax.jit, static_argnums=1)
def _bias_gradient_norm(layers: Params, config: ModelConfig, x_BTD: Array, c_TT: Array) -> Array:
  """The norm for a model of one layer, whose "embedding" holds the layer's input: one row per token of the batch."""
  batch, length, width = x_BTD.shape
  tokens_BT = jnp.arange(batch * length).reshape(batch, length)

  def bias(q: Array, k: Array) -> Array:
    moved = {"embedding": x_BTD.reshape(-1, width), "final_norm": jnp.ones(width), "layers": layers | {"q": q, "k": k}}
    tapped = hidden_states(moved, config, tokens_BT, compute=_FLOAT32, taps=Taps((0,), ("weights",))).taps["weights"]
    return positional_bias(tapped[0], c_TT).mean()

  d_q, d_k = jax.grad(bias, (0, 1))(layers["q"], layers["k"])
  return jnp.sqrt((d_q**2).sum() + (d_k**2).sum())


# --- prefix spread (theorem 3.4) ---------------------------------------------------------------


def prefix_means(x_BTD: Array) -> Array:
  """The mean over each position and those before it, (B, T, D)."""
  return jnp.cumsum(x_BTD, axis=1) / jnp.arange(1, x_BTD.shape[1] + 1)[:, None]


def prefix_spread(x_BTD: Array) -> Array:
  """Delta (B,): the largest distance of an x_j from the mean of a prefix that contains it (theorem 3.4).

  All T x T distances are materialised, so it is for short texts.
  """
  x_BTD = x_BTD - x_BTD.mean(1, keepdims=True)  # then no norm exceeds Delta, and the squares below cancel harmlessly
  means_BTD = prefix_means(x_BTD)
  products_BTT = jnp.einsum("BTD,BSD->BTS", means_BTD, x_BTD, precision="highest")
  squares_BTT = (means_BTD**2).sum(-1)[:, :, None] + (x_BTD**2).sum(-1)[:, None] - 2 * products_BTT
  return jnp.sqrt(jnp.where(np.tri(x_BTD.shape[1], dtype=bool), squares_BTT, 0).max((1, 2)))


def prefix_spreads(
  params: Params, config: ModelConfig, tokens_BT: Array, layers: Sequence[int] | None = None
) -> np.ndarray:
  """Delta_h of each layer, float32 (L, B): the prefix spread of h, the residual divided by its root mean square.

  That is the input of the layer's attention if the norm's scale is 1, as at initialisation. The norm of h is sqrt(D),
  so that no spread exceeds 2 sqrt(D).

  Args:
    layers: which layers, in this order; None: all.
  """
  chosen = tuple(range(config.num_layers) if layers is None else layers)
  return np.stack([_spread_of_directions(x, config.norm_eps) for x in _residuals(params, config, tokens_BT, chosen)])


@jax.jit
def _spread_of_directions(x_BTD: Array, eps: float) -> Array:
  return prefix_spread(x_BTD * jax.lax.rsqrt((x_BTD**2).mean(-1, keepdims=True) + eps))


# --- heads (section 4) -------------------------------------------------------------------------


def attention_weights(
  params: Params,
  config: ModelConfig,
  tokens_BT: Any,
  layers: Sequence[int] | None = None,
  *,
  logit_scale: float = 1.0,
) -> Array:
  """The attention weights of every query, float32 (L, B, H, T, T).

  Memory grows with the square of T; for long texts use `last_query_weights`. For a model under an inference-time
  method, pass `Inference.config` and `Inference.logit_scale` (evaluate/methods.py).

  Args:
    tokens_BT: int32 token ids.
    layers: which layers, in this order; None: all.
    logit_scale: beta of the temperature (drope.temperature).
  """
  return _looked_at(_weights, params, config, tokens_BT, layers, logit_scale)


def last_query_weights(
  params: Params,
  config: ModelConfig,
  tokens_BT: Any,
  layers: Sequence[int] | None = None,
  *,
  logit_scale: float = 1.0,
) -> Array:
  """The attention weights of each row's last query, float32 (L, B, H, T): the last row of `attention_weights`.

  Memory is linear in T. Arguments are those of `attention_weights`; rows must have at least two tokens.
  """
  return _looked_at(_last_weights, params, config, tokens_BT, layers, logit_scale)


def _looked_at(
  weights: Callable[..., Array],
  params: Params,
  config: ModelConfig,
  tokens_BT: Any,
  layers: Sequence[int] | None,
  logit_scale: float,
) -> Array:
  """Calls `weights` such that models that only differ in frequencies share one compiled program."""
  chosen = tuple(range(config.num_layers) if layers is None else layers)
  config, table = separate_frequencies(config)
  return weights(params, config, jnp.asarray(tokens_BT), chosen, logit_scale, table)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _weights(
  params: Params,
  config: ModelConfig,
  tokens_BT: Array,
  layers: tuple[int, ...],
  logit_scale: float,
  table: Frequencies | None,
) -> Array:
  how: dict[str, Any] = {"compute": _FLOAT32, "logit_scale": logit_scale, "frequencies": table}
  return hidden_states(params, config, tokens_BT, taps=Taps(layers, ("weights",)), **how).taps["weights"]


@functools.partial(jax.jit, static_argnums=(1, 3))
def _last_weights(
  params: Params,
  config: ModelConfig,
  tokens_BT: Array,
  layers: tuple[int, ...],
  logit_scale: float,
  table: Frequencies | None,
) -> Array:
  """Uses a cache as decoding does, so that the last token is the only query."""
  batch, length = tokens_BT.shape
  how: dict[str, Any] = {
    "compute": _FLOAT32,
    "length": jnp.full((batch, 1), length),
    "logit_scale": logit_scale,
    "frequencies": table,
  }
  cache = init_cache(config, batch, length, _FLOAT32)
  filled = hidden_states(params, config, tokens_BT[:, :-1], cache=cache, **how).cache
  taps = Taps(layers, ("weights",))
  return hidden_states(params, config, tokens_BT[:, -1:], cache=filled, taps=taps, **how).taps["weights"][..., 0, :]


def attention_by_distance(weights_BHTT: Array) -> Array:
  """The mean attention weight of each head at each distance, float32 (H, T): the profile of figure 7.

  Distance d is averaged over the T - d queries that have a key at this distance, and over the sequences.
  """
  length = weights_BHTT.shape[-1]
  i, distance = np.arange(length)[:, None], np.arange(length)
  keys = np.maximum(i - distance, 0)[None, None]
  at_BHTd = jnp.take_along_axis(weights_BHTT, keys, axis=-1) * (i >= distance)
  return at_BHTd.sum((0, 2)) / (weights_BHTT.shape[0] * np.arange(length, 0, -1))


def positional_heads(bias_LH: Any, count: int = 1) -> list[tuple[int, int]]:
  """The `count` (layer, head) pairs with the largest A^c, largest first: how the paper finds positional heads.

  Args:
    bias_LH: `positional_bias` of each head, averaged over texts.
  """
  bias_LH = np.asarray(bias_LH)
  order = np.argsort(-bias_LH, axis=None, kind="stable")[:count]
  return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, bias_LH.shape), strict=True)]
