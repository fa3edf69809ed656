"""What the tests of the decoder share: a tiny model with each kind of positional embedding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ModelConfig
from drope_jax.model import hidden_states, init_params, unembed
from drope_jax.parameters import map_specs
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE

# init_std is large so that attention is far from uniform and every part of the model shows in the logits.
TINY = ModelConfig(
  vocab_size=13, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=24, init_std=0.3
)
POSITIONS = {
  "rope": RoPE(100.0),
  "nope": None,
  "alibi": ALiBi(),
  "pattern": LayerPattern((Layer(RoPE(100.0), 3), Layer(None), Layer(ALiBi(), 4))),
}
POSITION_IDS = pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)


def tiny(**changes):
  return dataclasses.replace(TINY, **changes)


def random_params(config, seed=0):
  """Parameters without special values: norms are not ones, biases not zeros."""
  rng = np.random.default_rng(seed)

  def draw(spec):
    noise = rng.standard_normal(spec.shape).astype(np.float32) * config.init_std
    return jnp.asarray(noise if spec.decay else 1 + noise)

  return map_specs(draw, config)


@functools.cache
def initial_params(config):
  return init_params(config, jax.random.key(0))


def random_tokens(batch, length, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, TINY.vocab_size, (batch, length)), jnp.int32)


def logits_of(params, config, tokens_BT, **inputs):
  """The logits without compilation, whose effects have tests of their own."""
  with jax.disable_jit():
    return unembed(params, hidden_states(params, config, tokens_BT, **inputs)[0], softcap=config.logits_softcap)


@functools.partial(jax.jit, static_argnums=(1,), static_argnames=("compute",))
def compiled_logits_of(params, config, tokens_BT, **inputs):
  return unembed(params, hidden_states(params, config, tokens_BT, **inputs)[0], softcap=config.logits_softcap)


def assert_close(ours, expected, atol=1e-5):
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), ours, expected)
