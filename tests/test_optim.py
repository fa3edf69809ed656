"""Schedules at their corners, what decays, and clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny_run import tiny_model

from drope_jax.config import OptimConfig, QKNorm
from drope_jax.optim import learning_rate, make_optimizer
from drope_jax.optimizers import AdamW
from drope_jax.parameters import map_specs

MODEL = tiny_model(qkv_bias=True, qk_norm=QKNorm(), tie_embeddings=False)
STEPS = 100


def rates(schedule, **changes):
  """The learning rate of every step of a run of 100, at a peak of 1."""
  config = OptimConfig(peak_lr=1.0, **{"schedule": schedule, "warmup_steps": 10, **changes})
  return np.asarray(jax.vmap(learning_rate(config, STEPS))(jnp.arange(STEPS)))


@pytest.mark.parametrize(("schedule", "decay"), [("cosine", 0), ("wsd", 20), ("constant", 0)])
def test_warmup_moves_at_once_and_rises_evenly_to_the_peak(schedule, decay):
  found = rates(schedule, decay_steps=decay)
  np.testing.assert_allclose(found[:11], np.arange(1, 12) / 11, rtol=1e-5)
  assert found.max() == pytest.approx(1.0)


def test_cosine_is_halfway_in_the_middle_and_ends_at_the_floor():
  found = rates("cosine")
  assert found[55] == pytest.approx((1 + 0.1) / 2, rel=1e-5)
  assert found[99] == pytest.approx(0.1 + 0.9 * (1 + np.cos(np.pi * 89 / 90)) / 2, rel=1e-4)
  assert 0.1 <= found[99] < 0.101
  assert np.all(np.diff(found[10:]) < 0)


def test_wsd_is_stable_then_falls_linearly_to_the_floor():
  found = rates("wsd", decay_steps=20)
  np.testing.assert_allclose(found[10:81], 1.0, rtol=1e-6)
  np.testing.assert_allclose(found[80:], 1 - 0.9 * np.arange(20) / 20, rtol=1e-5)
  assert learning_rate(OptimConfig(peak_lr=1.0, schedule="wsd", decay_steps=20), STEPS)(STEPS) == pytest.approx(0.1)


def test_constant_has_no_floor():
  np.testing.assert_array_equal(rates("constant")[10:], 1.0)


@pytest.mark.parametrize(("schedule", "first"), [("cosine", 1.0), ("constant", 1.0)])
def test_without_warmup_the_peak_comes_first(schedule, first):
  assert rates(schedule, warmup_steps=0)[0] == first


def test_floor_zero_ends_at_nothing_and_floor_one_never_falls():
  assert rates("cosine", floor=0.0)[99] < 1e-3
  np.testing.assert_allclose(rates("cosine", floor=1.0)[10:], 1.0)


@functools.cache
def params():
  rng = np.random.default_rng(0)
  return map_specs(lambda spec: rng.normal(0.5, 0.1, spec.shape).astype(np.float32), MODEL)  # nothing is zero


def first_update(grads, **changes):
  config = OptimConfig(peak_lr=0.5, schedule="constant", optimizer=AdamW(**changes))
  return after_one_step(config, grads)[0]


def after_one_step(config, grads):
  """The updates and the optimizer's state."""
  optimizer = make_optimizer(config, MODEL, STEPS)
  return jax.jit(lambda grads, params: optimizer.update(grads, optimizer.init(params), params))(grads, params())


def test_weight_decay_shrinks_matrices_and_embeddings_alone():
  updates = first_update(jax.tree.map(np.zeros_like, params()), weight_decay=0.1)
  flat = {jax.tree_util.keystr(path, simple=True, separator="/"): u for path, u in jax.tree.leaves_with_path(updates)}
  leaves = jax.tree.leaves_with_path(params())
  before = {jax.tree_util.keystr(path, simple=True, separator="/"): w for path, w in leaves}
  decayed = {name for name, update in flat.items() if np.any(update)}
  matrices = ("q", "k", "v", "o", "gate", "up", "down")
  assert decayed == {"embedding", "unembedding", *(f"layers/{name}" for name in matrices)}
  assert {"final_norm", "layers/attention_norm", "layers/q_norm", "layers/k_norm", "layers/q_bias"} <= flat.keys()
  for name in decayed:
    np.testing.assert_allclose(flat[name], -0.5 * 0.1 * before[name], rtol=1e-5)


def test_the_first_step_of_adam_is_the_sign_of_the_gradient():
  grads = jax.tree.map(lambda w: np.where(w > 0.5, np.float32(1), np.float32(-1)), params())
  updates = first_update(grads, weight_decay=0.0)
  jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.5 * g, rtol=1e-4), updates, grads)


def global_norm(tree):
  return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))


def test_gradients_are_clipped_by_their_global_norm():
  grads = jax.tree.map(np.ones_like, params())
  norm = global_norm(grads)

  def moments(scale, clip_norm):
    config = OptimConfig(peak_lr=0.1, clip_norm=clip_norm, optimizer=AdamW(beta1=0.0))
    _, state = after_one_step(config, jax.tree.map(lambda g: np.float32(scale) * g, grads))
    return global_norm(optax.tree_utils.tree_get(state, "ScaleByAdamState").mu)

  assert moments(1.0, clip_norm=2.0) == pytest.approx(2.0, rel=1e-5)  # too long: as long as allowed
  assert moments(1.0 / norm, clip_norm=2.0) == pytest.approx(1.0, rel=1e-5)  # short enough: as it is
