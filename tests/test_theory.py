"""The paper's theory: its propositions hold for our models, and its closed forms are what JAX derives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import random_params, random_tokens, tiny

from drope_jax.model import Taps, hidden_states
from drope_jax.positions import Layer, LayerPattern, RoPE
from drope_jax.scalings import DynamicNTK, YaRN
from drope_jax.theory import (
  attention_by_distance,
  attention_weights,
  bias_gradient_norms,
  diagonal_weights,
  last_query_weights,
  positional_bias,
  positional_heads,
  previous_token_weights,
  projection_gradients,
  score_gradients,
)

T, D, H, HEAD = 12, 8, 2, 4
WEIGHTS = [diagonal_weights(T), previous_token_weights(T)]
NOPE, ROPE = tiny(positions=None), tiny(positions=RoPE(100.0))
CONSTANT = jnp.full((1, T), 5)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def softmax(scores):
  masked = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
  weights = np.exp(masked - masked.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def tapped(config, tokens, *names):
  with jax.disable_jit():
    return hidden_states(random_params(config), config, tokens, taps=Taps((0, 1), names)).taps


def test_positional_weights_are_centred_and_causal():
  for c in WEIGHTS:
    np.testing.assert_allclose(c.sum(1), 0, atol=1e-15)
    assert (np.triu(c, 1) == 0).all()
  diagonal, previous = WEIGHTS
  assert (np.diag(diagonal)[1:] == 1).all() and diagonal[4, 2] == -1 / 4
  assert (np.diag(previous, -1) == 1).all() and previous[4, 4] == previous[4, 0] == -1 / 4


def test_uniform_attention_has_no_bias_and_a_perfect_head_has_the_largest():
  uniform = np.tri(T) / np.arange(1, T + 1)[:, None]
  for c, perfect in zip(WEIGHTS, (np.eye(T), np.eye(T, k=-1)), strict=True):
    np.testing.assert_allclose(positional_bias(jnp.asarray(uniform)[None, None], c), 0, atol=1e-6)
    assert positional_bias(jnp.asarray(perfect)[None, None], c) == pytest.approx((c == 1).sum() / T)


@pytest.mark.parametrize("c", WEIGHTS, ids=["diagonal", "previous token"])
def test_closed_forms_are_what_jax_derives_in_float64(c):
  with jax.enable_x64(True):
    h, w_q, w_k = (
      jnp.asarray(normal(*shape, seed=i)) for i, shape in enumerate([(1, T, D), (D, H, HEAD), (D, H, HEAD)])
    )

    def bias(w_q, w_k, head):
      q, k = (jnp.einsum("BTD,DHh->BTHh", h, w) for w in (w_q, w_k))
      scores = jnp.einsum("BTHh,BSHh->BHTS", q, k) / np.sqrt(HEAD)
      weights = jax.nn.softmax(jnp.where(np.tri(T, dtype=bool), scores, -jnp.inf))
      return positional_bias(weights, c)[0, head]

    q, k = (jnp.einsum("BTD,DHh->BTHh", h, w) for w in (w_q, w_k))
    for closed, argument in zip(projection_gradients(h, q, k, c), (0, 1), strict=True):
      assert closed.dtype == jnp.float64
      derived = sum(jax.grad(bias, argument)(w_q, w_k, head) for head in range(H))
      np.testing.assert_allclose(closed[0], derived, atol=1e-8)


def test_norms_of_a_layer_run_alone_are_those_of_the_whole_model():
  pattern = LayerPattern((Layer(RoPE(100.0)), Layer(None, 4)))
  config = tiny(positions=pattern, embedding_multiplier=1.7)
  params, tokens = random_params(config), random_tokens(2, T)

  @jax.jit
  def bias(q, k):
    moved = params["layers"] | {name: params["layers"][name].at[1].set(w) for name, w in (("q", q), ("k", k))}
    tapped = hidden_states(params | {"layers": moved}, config, tokens, taps=Taps((1,), ("weights",)))
    return positional_bias(tapped.taps["weights"][0], WEIGHTS[1]).mean()

  d_q, d_k = jax.grad(bias, (0, 1))(params["layers"]["q"][1], params["layers"]["k"][1])
  found = bias_gradient_norms(params, config, tokens, np.stack(WEIGHTS), layers=(1,))
  assert found.shape == (2, 1) and found.min() > 1e-3
  assert found[1, 0] == pytest.approx(float(jnp.sqrt((d_q**2).sum() + (d_k**2).sum())), rel=1e-4)


def test_score_gradients_of_a_query_sum_to_zero():  # B.10
  weights = softmax(normal(1, H, T, T))
  for c in WEIGHTS:
    np.testing.assert_allclose(score_gradients(jnp.asarray(weights), c).sum(-1), 0, atol=1e-7)


# --- proposition 3.2: without an embedding a constant sequence has no positions -----------------


def test_nope_on_a_constant_sequence_is_uniform_and_says_nothing_of_position():
  taps = tapped(NOPE, CONSTANT, "weights", "residual")
  uniform = np.tri(T) / np.arange(1, T + 1)[:, None]
  np.testing.assert_allclose(taps["weights"], np.broadcast_to(uniform, taps["weights"].shape), atol=1e-6)  # (1)
  np.testing.assert_allclose(taps["residual"][1], np.broadcast_to(taps["residual"][1][:, :1], (1, T, 16)), atol=1e-5)
  for c in WEIGHTS:  # (3)
    np.testing.assert_allclose(positional_bias(taps["weights"][0], c), 0, atol=1e-6)
    np.testing.assert_allclose(bias_gradient_norms(random_params(NOPE), NOPE, CONSTANT, c), 0, atol=1e-5)


def test_nope_on_a_constant_sequence_gives_queries_and_keys_no_gradient():  # (2)
  def loss(params):
    return (hidden_states(params, NOPE, CONSTANT).states_BTD ** 3).sum()

  gradient = jax.grad(loss)(random_params(NOPE))["layers"]
  for name in ("q", "k"):
    assert np.abs(gradient[name]).max() < 1e-4 * np.abs(gradient["v"]).max()


# --- proposition 3.3: with RoPE it has -------------------------------------------------------------


def test_rope_on_a_constant_sequence_has_a_bias_and_a_gradient():
  weights = tapped(ROPE, CONSTANT, "weights")["weights"]
  alpha = np.asarray(weights[0, 0, 0], np.float64)
  c = np.tril(alpha - 1 / np.arange(1, T + 1)[:, None])  # the proof's choice
  expected = (np.square(alpha).sum(1) - 1 / np.arange(1, T + 1)).mean()
  assert positional_bias(weights[0], c)[0, 0] == pytest.approx(expected, rel=1e-3)
  assert expected > 1e-4
  assert (bias_gradient_norms(random_params(ROPE), ROPE, CONSTANT, c) > 1e-4).all()


def test_dropping_takes_the_bias_of_a_constant_sequence_away():
  dropped = dataclasses.replace(ROPE, positions=None)
  with_rope, without = (tapped(config, CONSTANT, "weights")["weights"] for config in (ROPE, dropped))
  uniform = np.tri(T) / np.arange(1, T + 1)[:, None]
  even = np.asarray(attention_by_distance(jnp.asarray(uniform)[None, None]))
  np.testing.assert_allclose(attention_by_distance(without[0]), np.repeat(even, 4, axis=0), atol=1e-6)
  assert np.abs(np.asarray(attention_by_distance(with_rope[0])) - even).max() > 0.05


# --- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [YaRN(2.0, 8), DynamicNTK(8)])
def test_the_last_query_looks_at_what_all_queries_say_it_does(scaling):
  config, tokens = tiny(positions=RoPE(100.0, scaling=scaling)), random_tokens(2, T)
  params = random_params(config)
  every = attention_weights(params, config, tokens, logit_scale=1.3)
  assert every.shape == (2, 2, 4, T, T)
  last = last_query_weights(params, config, tokens, layers=(1,), logit_scale=1.3)
  np.testing.assert_allclose(last[0], every[1, :, :, -1], atol=1e-5)


def test_attention_by_distance_of_known_heads():
  weights = np.stack([np.eye(T), np.tri(T) / np.arange(1, T + 1)[:, None]])[None]
  profile = np.asarray(attention_by_distance(jnp.asarray(weights)))
  np.testing.assert_allclose(profile[0], [1] + [0] * (T - 1), atol=1e-6)
  assert profile[1, T - 1] == pytest.approx(1 / T)
  assert profile[1, 0] == pytest.approx(np.mean(1 / np.arange(1, T + 1)), rel=1e-5)


def test_the_most_positional_head_is_found():
  weights = np.broadcast_to(np.tri(T) / np.arange(1, T + 1)[:, None], (3, 2, 4, T, T)).copy()
  weights[1, :, 2], weights[2, :, 0] = np.eye(T), 0.5 * np.eye(T) + 0.5 * weights[0, 0, 0]
  bias = positional_bias(jnp.asarray(weights), diagonal_weights(T)).mean(1)
  assert positional_heads(bias, 2) == [(1, 2), (2, 0)]
