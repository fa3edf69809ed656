"""The cap on attention logits: its definition, the gradients of every kernel, and which accelerator can do it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.attention import Segments, attention, attention_weights, blockwise, unrolled
from drope_jax.attention import accelerators as kernels
from drope_jax.errors import ConfigError
from drope_jax.positions import ALiBi

CAP = 0.7  # of logits that are mostly larger: the cap matters


def inputs(length, head_dim=8):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal((2, length, heads, head_dim)), jnp.float32) for heads in (4, 2, 2)]


def by_definition(q_BTHh, k_BSKh, v_BSKh, bias=None):
  q, k, v = (np.asarray(x, np.float64) for x in (q_BTHh, k_BSKh, v_BSKh))
  out = np.zeros_like(q)
  for b, t, head in itertools.product(*map(range, q.shape[:3])):
    logits = CAP * np.tanh(k[b, : t + 1, head // 2] @ q[b, t, head] / np.sqrt(q.shape[-1]) / CAP)
    if bias is not None:
      logits += bias.of_distance(*(coefficient[head] for coefficient in bias.coefficients), t - np.arange(t + 1))
    mix = np.exp(logits - logits.max())
    out[b, t, head] = mix / mix.sum() @ v[b, : t + 1, head // 2]
  return out


def values_and_gradients(kernel, arrays, **settings):
  def loss(arrays):
    out = attention(*arrays, kernel=kernel, **settings)
    return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

  (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
  return out, gradients


@pytest.mark.parametrize("bias", [pytest.param(None, marks=pytest.mark.slow), ALiBi().bias(4)], ids=["no bias", "bias"])
def test_every_kernel_caps_before_the_bias_with_the_gradients_of_the_reference(bias, monkeypatch):
  monkeypatch.setattr(blockwise, "_BLOCK", 4)
  monkeypatch.setattr(unrolled, "_SMALLEST_UNROLLED", 1)
  arrays = inputs(10)
  run = jax.jit(functools.partial(values_and_gradients, softcap=CAP, bias=bias), static_argnums=0)
  expected = run("reference", arrays)
  np.testing.assert_allclose(expected[0], by_definition(*arrays, bias), atol=1e-5)
  assert np.abs(attention(*arrays, bias=bias, kernel="reference") - expected[0]).max() > 0.1
  for kernel in ("blockwise", "unrolled"):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), run(kernel, arrays), expected)


def test_the_weights_are_those_of_the_capped_logits():
  q_BTHh, k_BTKh, v_BTKh = inputs(10, head_dim=10)
  identity = jnp.broadcast_to(jnp.eye(10)[:, None], v_BTKh.shape)
  expected_BTHS = attention(q_BTHh, k_BTKh, identity, softcap=CAP)
  np.testing.assert_allclose(attention_weights(q_BTHh, k_BTKh, softcap=CAP).swapaxes(1, 2), expected_BTHS, atol=1e-6)


def test_cudnn_cannot_cap_and_says_so():
  arrays = [x.astype(jnp.bfloat16) for x in inputs(16, head_dim=16)]
  with pytest.raises(ConfigError, match="'cudnn', which cannot take a cap on the logits"):
    attention(*arrays, softcap=CAP, kernel="cudnn")
  assert kernels.obstacle("splash", *arrays[:2], offset=0, segments=None, bias=None, softcap=CAP) is None


@pytest.mark.slow  # the interpreter takes its time
def test_splash_caps_too(monkeypatch):
  monkeypatch.setitem(kernels.ACCELERATED, "splash", functools.partial(kernels.splash, interpret=True))
  numbers = jnp.repeat(jnp.arange(4), 32)[None].repeat(2, 0)
  settings = {"softcap": CAP, "window": 40, "segments": Segments(numbers, numbers)}
  found, expected = (values_and_gradients(kernel, inputs(128, 16), **settings) for kernel in ("splash", "reference"))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), found, expected)
