"""Theorem 3.4 and its lemmas, in float64, for decoders without positions, with constants computed from their weights.

The lemmas leave open what a layer consists of beside its attention. For the decoder here, with residual x:

- h is x after the norm, and the norm's scale belongs to W_Q, W_K and W_V, so that |h| <= sqrt(d).
- B is the largest operator norm of a head's W_Q, W_K and W_V. The paper's sqrt(H) is sqrt(d / d_k), which need not be
  the same number.
- The recursion of B.8 holds for the spread of x, not for that of h: rows of x that differ in length alone have the same
  h, and differ in it one layer later. The step from x to h costs 2 / r, with r the smallest root mean square of a row
  of x. r is what the paper's "with high probability" leaves open, and it is measured here.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import random_params, random_tokens, tiny

from drope_jax.model import Taps, hidden_states
from drope_jax.positions import RoPE
from drope_jax.rotation import rotate, rotation
from drope_jax.theory import (
  diagonal_weights,
  positional_bias,
  prefix_means,
  prefix_spread,
  prefix_spreads,
  previous_token_weights,
  projection_gradients,
)

SEEDS = pytest.mark.parametrize("seed", range(5))  # of the initialisation: the theorem holds with high probability
LENGTHS = pytest.mark.parametrize("length", [6, 24])  # the constants do not depend on it
LAYERS, EPS = 4, 1e-6
NOPE = tiny(positions=None, num_layers=LAYERS, norm_eps=EPS, init_std=0.1)
SILU_SLOPE = 1.0999  # the largest derivative of x * sigmoid(x)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


# --- the decoder, written out -----------------------------------------------------------------------


class Block(NamedTuple):
  """The matrices of a layer, float64; the scales of its norms are in those that read them."""

  q_DHh: np.ndarray
  k_DHh: np.ndarray
  v_DHh: np.ndarray
  o_HhD: np.ndarray
  gate_DF: np.ndarray
  up_DF: np.ndarray
  down_FD: np.ndarray


def blocks(params, config):
  """The layers of a model, a key and a value head for each query head."""

  def block(layer):
    w = {name: np.asarray(stacked, np.float64)[layer] for name, stacked in params["layers"].items()}
    repeats = config.num_heads // config.num_kv_heads
    k, v = (np.repeat(w[name], repeats, axis=1) for name in ("k", "v"))
    q, k, v = (w["attention_norm"][:, None, None] * matrix for matrix in (w["q"], k, v))
    gate, up = (w["mlp_norm"][:, None] * w[name] for name in ("gate", "up"))
    return Block(q, k, v, w["o"], gate, up, w["down"])

  return [block(layer) for layer in range(config.num_layers)]


def initialised(seed):
  return blocks(random_params(NOPE, seed), NOPE)


def rms(x_BTD):
  return ((x_BTD**2).mean(-1, keepdims=True) + EPS) ** 0.5


@functools.partial(jax.jit, static_argnames="positions")
def heads(block, h_BTD, positions=None):
  """Scores and weights (B, H, T, T), and what the heads give, z (B, T, H, h)."""
  q, k, v = (jnp.einsum("BTD,DHh->BTHh", h_BTD, w) for w in (block.q_DHh, block.k_DHh, block.v_DHh))
  if positions is not None:
    turn = rotation(jnp.arange(h_BTD.shape[1])[None], positions.frequencies(q.shape[-1]))
    q, k = (rotate(array, turn) for array in (q, k))
  scores = jnp.einsum("BTHh,BSHh->BHTS", q, k) / np.sqrt(q.shape[-1])
  weights = jax.nn.softmax(jnp.where(np.tri(h_BTD.shape[1], dtype=bool), scores, -jnp.inf))
  return scores, weights, jnp.einsum("BHTS,BSHh->BTHh", weights, v)


@jax.jit
def after_attention(block, x_BTD):
  return x_BTD + jnp.einsum("BTHh,HhD->BTD", heads(block, x_BTD / rms(x_BTD))[2], block.o_HhD)


@jax.jit
def after(block, x_BTD):
  """The residual that leaves a layer."""
  y_BTD = after_attention(block, x_BTD)
  n_BTD = y_BTD / rms(y_BTD)
  return y_BTD + (jax.nn.silu(n_BTD @ block.gate_DF) * (n_BTD @ block.up_DF)) @ block.down_FD


def residuals(layers, x_BTD):
  """What enters each layer."""
  entering = [x_BTD]
  for block in layers[:-1]:
    entering.append(np.asarray(after(block, entering[-1])))
  return entering


def nearly_equal(length, epsilon, seed=0):
  """Inputs whose prefix spread is epsilon, (1, T, D)."""
  rng = np.random.default_rng(seed)
  row, noise = rng.standard_normal(NOPE.d_model), rng.standard_normal((1, length, NOPE.d_model))
  return row + noise * epsilon / spread(noise)


def test_the_decoder_written_out_is_the_model():
  params, tokens = random_params(NOPE), random_tokens(1, 12)
  with jax.disable_jit():
    taps = hidden_states(params, NOPE, tokens, taps=Taps(tuple(range(LAYERS)), ("residual", "weights"))).taps
  layers = blocks(params, NOPE)
  entering = residuals(layers, np.asarray(params["embedding"], np.float64)[tokens])
  np.testing.assert_allclose(taps["residual"], np.stack(entering), atol=1e-4)
  found = np.stack([heads(block, x / rms(x))[1] for block, x in zip(layers, entering, strict=True)])
  np.testing.assert_allclose(taps["weights"], found, atol=1e-5)


def test_the_spreads_of_a_model_are_those_of_its_normalised_residuals():
  model = dataclasses.replace(NOPE, num_layers=2)
  params, tokens = random_params(model), random_tokens(2, 12)
  with jax.disable_jit():
    (found,) = prefix_spreads(params, model, tokens, layers=(1,))
  _, entering = residuals(blocks(params, model), np.asarray(params["embedding"], np.float64)[tokens])
  np.testing.assert_allclose(found, [spread(row[None] / rms(row[None])) for row in entering], rtol=1e-4)


# --- the constants ----------------------------------------------------------------------------------


def norm(matrix):
  return np.linalg.norm(matrix, 2)


def bound_on_projections(block):
  """B."""
  return max(norm(w[:, head]) for w in block[:3] for head in range(w.shape[1]))


def factor(block):
  """sqrt(d / d_k)."""
  return float(np.sqrt(block.q_DHh.shape[0] / block.q_DHh.shape[-1]))


def lipschitz_of_feed_forward(block):
  """Of down (silu(gate n) * (up n)) for |n| <= sqrt(d)."""
  root = np.sqrt(block.gate_DF.shape[0])
  largest_gate, largest_up = (np.linalg.norm(w, axis=0).max() * root for w in (block.gate_DF, block.up_DF))
  inner = SILU_SLOPE * norm(block.gate_DF) * largest_up + largest_gate * norm(block.up_DF)
  return norm(block.down_FD) * inner


def constants(block, x_BTD):
  """A1 and A2 of lemma B.8 for the residual x that enters a layer; each norm multiplies a spread by 2 / r at most."""
  b, hidden = bound_on_projections(block), 2 / float(rms(x_BTD).min())
  out = norm(block.o_HhD.reshape(-1, x_BTD.shape[-1])) * np.sqrt(block.o_HhD.shape[0])  # of all heads together
  mlp = 1 + 2 * lipschitz_of_feed_forward(block) / float(rms(after_attention(block, x_BTD)).min())
  return mlp * (1 + out * 2 * b * hidden), mlp * out * 2 * b**3 * factor(block) * hidden**2


def spread(x_BTD):
  return float(_prefix_spread(x_BTD)[0])


_prefix_spread = jax.jit(prefix_spread)


# --- one layer --------------------------------------------------------------------------------------


class Attention(NamedTuple):
  h_BTD: np.ndarray
  scores_HTS: np.ndarray
  weights_HTS: np.ndarray
  values_THh: np.ndarray
  z_BTHh: np.ndarray
  rate: float  # B^2 sqrt(H)
  bound: float  # B


@pytest.fixture(params=[1e-3, 0.3, 10.0], ids="spread {}".format)
def attention(request, seed, float64):
  """Of a random layer on inputs that are nearly equal, or not at all."""
  block, x = initialised(seed)[0], nearly_equal(24, request.param)
  h, b = x / rms(x), bound_on_projections(block)
  scores, weights, z = heads(block, h)
  values = np.einsum("TD,DHh->THh", h[0], block.v_DHh)
  return Attention(h, np.asarray(scores[0]), np.asarray(weights[0]), values, z, b**2 * factor(block), b)


@SEEDS
def test_lemmas_b3_and_b5_scores_and_weights_are_as_even_as_the_inputs(attention):
  of_h = spread(attention.h_BTD)
  for i in range(attention.h_BTD.shape[1]):
    seen = attention.scores_HTS[:, i, : i + 1]
    assert np.abs(seen - seen.mean(-1, keepdims=True)).max() <= attention.rate * of_h + 1e-12  # B.3
    weights = attention.weights_HTS[:, i, : i + 1]
    assert np.abs(weights - 1 / (i + 1)).sum(-1).max() <= attention.rate * of_h + 1e-12  # B.5
    mean = attention.values_THh[: i + 1].mean(0)
    off = np.linalg.norm(attention.z_BTHh[0, i] - mean, axis=-1).max()
    assert off <= attention.bound * attention.rate * of_h**2 + 1e-12  # B.5


@SEEDS
def test_with_rope_equal_inputs_have_uneven_scores_and_weights(seed):
  """So that B.3 and B.5 do not hold."""
  block, x = initialised(seed)[0], nearly_equal(24, 1e-3)
  rate, of_h = bound_on_projections(block) ** 2 * factor(block), spread(x / rms(x))
  scores, weights, _ = heads(block, x / rms(x), RoPE(100.0))
  assert np.abs(scores[0, :, -1] - scores[0, :, -1].mean(-1, keepdims=True)).max() > 100 * rate * of_h
  assert np.abs(weights[0, :, -1] - 1 / 24).sum(-1).max() > 100 * rate * of_h


def test_lemma_b4_softmax_moves_no_more_than_its_logits():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((50, 12)), 0.3 * rng.standard_normal((50, 12))
  moved = np.abs(np.asarray(jax.nn.softmax(a + b) - jax.nn.softmax(a))).sum(-1)
  assert (moved <= np.abs(b).max(-1) + 1e-12).all()


def test_lemma_b6_prefix_means_are_no_further_apart_than_the_prefix():
  x = nearly_equal(24, 1.0)
  means = np.asarray(prefix_means(x))[0]
  for i in range(24):
    apart = np.linalg.norm(means[: i + 1] - means[i], axis=-1).max()
    assert apart <= np.linalg.norm(x[0, : i + 1] - means[i], axis=-1).max() + 1e-12


@SEEDS
def test_lemma_b7_what_a_head_gives_is_as_even_as_its_inputs(attention):
  of_h, b = spread(attention.h_BTD), attention.bound
  of_z = [spread(attention.z_BTHh[:, :, head]) for head in range(attention.z_BTHh.shape[2])]
  assert 0 < max(of_z) <= 2 * b * of_h + 2 * b * attention.rate * of_h**2


@SEEDS
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2, 1.0])
def test_lemma_b8_a_layer_spreads_its_inputs_by_a_linear_and_a_quadratic_term_at_most(epsilon, seed):
  layers = initialised(seed)
  for block, x in zip(layers, residuals(layers, nearly_equal(24, epsilon)), strict=True):
    a1, a2 = constants(block, x)
    assert 0 < spread(after(block, x)) <= a1 * spread(x) + a2 * spread(x) ** 2


@SEEDS
def test_lemma_b8_does_not_hold_for_the_spread_of_normalised_inputs(seed):
  """Rows of one direction and several lengths: h has no spread in the first layer, and has one in the second."""
  row = np.random.default_rng(0).standard_normal(NOPE.d_model)
  x = row * np.linspace(0.5, 2, 24)[None, :, None]
  x_after = after(initialised(seed)[0], x)
  assert spread(x / rms(x)) < 1e-4 and spread(x_after / rms(x_after)) > 0.1


# --- all layers -------------------------------------------------------------------------------------


def worst_constants(layers, entering):
  """A1 and A2 of all layers."""
  found = [constants(block, x) for block, x in zip(layers, entering, strict=True)]
  return tuple(max(values) for values in zip(*found, strict=True))


def small_enough(a1, a2):
  """The epsilon below which no layer's quadratic term exceeds its linear one; see the test of B.9."""
  return min(1, a1 / a2 / (2 * a1) ** (LAYERS - 2))


@SEEDS
@LENGTHS
def test_lemma_b9_a_small_spread_grows_by_a_constant_factor_per_layer(length, seed):
  """Spreads stay below (2 A1)^(l - 1) epsilon.

  min{1, A1 / A2} as epsilon serves the second layer. For the third the recursion of B.8 needs A1 / A2 to bound the
  second spread too, and so on: it serves all layers once it is divided by (2 A1)^(L - 2), as the sequence that meets
  B.8 with equality shows.
  """
  layers = initialised(seed)
  a1, a2 = worst_constants(layers, residuals(layers, nearly_equal(length, 1e-12)))
  epsilon = small_enough(a1, a2)
  entering = residuals(layers, nearly_equal(length, epsilon))
  again = worst_constants(layers, entering)
  assert again == pytest.approx((a1, a2), rel=1e-3)
  for layer, x in enumerate(entering):
    assert 0 < spread(x) <= (2 * max(a1, again[0])) ** layer * epsilon * (1 + 1e-6)

  def sequence(first):
    spreads = [first]
    while len(spreads) < LAYERS:
      spreads.append(a1 * spreads[-1] + a2 * spreads[-1] ** 2)
    return np.array(spreads) / (first * (2 * a1) ** np.arange(LAYERS))

  assert (sequence(epsilon) <= 1 + 1e-9).all()
  assert sequence(a1 / a2)[1] == pytest.approx(1) and sequence(a1 / a2)[2] > 1


@functools.partial(jax.jit, static_argnames="positions")
def of_layer(block, x_BTD, c_TT, positions=None):
  """A^c (H,) of a layer, and the norms (H,) of its gradients with respect to each head's W_Q and W_K."""
  h_BTD = x_BTD / rms(x_BTD)

  def bias(q, k):
    return positional_bias(heads(block._replace(q_DHh=q, k_DHh=k), h_BTD, positions)[1], c_TT)[0]

  gradients = jax.grad(lambda q, k: bias(q, k).sum(), (0, 1))(block.q_DHh, block.k_DHh)
  return jnp.abs(bias(block.q_DHh, block.k_DHh)), [jnp.linalg.norm(g, axis=(0, 2)) for g in gradients]


@SEEDS
@LENGTHS
@pytest.mark.parametrize("weights", [diagonal_weights, previous_token_weights])
def test_theorem_3_4_bounds_the_bias_and_its_gradients_by_the_spread_of_the_inputs(length, weights, seed):
  """C2 = C B^2 sqrt(H) 2 / r C1 and C3 = C B sqrt(H) 2 / r C1, with C = max |c| and C1 = (2 A1)^(L - 1).

  C3 follows from the closed forms: each row of g sums to C / T at most in absolute value, |h| is at most sqrt(d), and
  keys are B spread(h) from their prefix mean. With RoPE the same bounds are broken, in every layer.
  """
  layers, c = initialised(seed), weights(length)
  entering = residuals(layers, nearly_equal(length, 1e-12))
  a1, a2 = worst_constants(layers, entering)
  epsilon = small_enough(a1, a2)
  entering = residuals(layers, nearly_equal(length, epsilon))
  c1 = (2 * a1) ** (LAYERS - 1)
  for block, x in zip(layers, entering, strict=True):
    b, hidden, of_h = bound_on_projections(block), 2 / float(rms(x).min()), spread(x / rms(x))
    assert 0 < spread(x) <= c1 * epsilon and of_h <= hidden * spread(x)
    bias, gradients = of_layer(block, x, c)
    per_spread = np.abs(c).max() * b * factor(block)  # of h: the gradients' constant
    assert (bias <= per_spread * b * of_h).all() and per_spread * b * of_h <= per_spread * b * hidden * c1 * epsilon
    for of_heads in gradients:
      assert (of_heads <= per_spread * of_h).all() and of_heads.max() > 1e-3 * per_spread * of_h
    with_rope, gradients = of_layer(block, x, c, RoPE(100.0))
    assert with_rope.max() > per_spread * b * of_h
    assert all(of_heads.max() > per_spread * of_h for of_heads in gradients)


def test_closed_forms_of_a_layer_are_what_jax_derives():
  """On inputs whose spread is small: there the formulas subtract keys that are nearly equal."""
  block, x, c = initialised(seed=0)[0], nearly_equal(24, 1e-6), diagonal_weights(24)
  h = x / rms(x)
  q, k = (jnp.einsum("BTD,DHh->BTHh", h, w) for w in (block.q_DHh, block.k_DHh))
  for closed, derived in zip(projection_gradients(h, q, k, c), of_layer(block, x, c)[1], strict=True):
    np.testing.assert_allclose(np.linalg.norm(closed[0], axis=(0, 2)), derived, rtol=1e-6)


# --- the model ----------------------------------------------------------------------------------------


def test_prefix_spread_is_its_definition():
  x = np.random.default_rng(0).standard_normal((2, 6, 8))
  expected = [max(np.linalg.norm(row[: i + 1].mean(0) - row[j]) for i in range(6) for j in range(i + 1)) for row in x]
  np.testing.assert_allclose(prefix_spread(jnp.asarray(x)), expected, rtol=1e-12)
