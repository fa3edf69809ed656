"""The reference kernel, which materialises the T x S scores."""

import jax
import jax.numpy as jnp

from drope_jax.attention.scores import MASKED, biased_scores, mix_keys


def reference_attention(q_BKGTh, k_BKSh, v_BKSh, offset_B, segments, bias_KG, limits):
  """The output (B, K, G, T, h) in the dtype of q; arguments as in `scores.Problem`."""
  weights = reference_weights(q_BKGTh, k_BKSh, offset_B, segments, bias_KG, limits).astype(v_BKSh.dtype)
  return mix_keys(weights, v_BKSh).astype(q_BKGTh.dtype)


def reference_weights(q_BKGTh, k_BKSh, offset_B, segments, bias_KG, limits):
  """The attention weights, float32 (B, K, G, T, S); zeros for a query that sees no key."""
  q_index_BT = offset_B[:, None] + jnp.arange(q_BKGTh.shape[3])
  k_index_S = jnp.arange(k_BKSh.shape[2])
  scores, visible, _ = biased_scores(q_BKGTh, k_BKSh, q_index_BT, k_index_S, segments, bias_KG, limits)
  weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1)
  return jnp.where(visible, weights, 0.0)
