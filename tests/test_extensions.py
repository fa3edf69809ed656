"""What a researcher adds in a file of their own works as what is built in does: this file is such a file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import assert_close, logits_of, random_params, random_tokens, tiny

from drope_jax.attention import attention
from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.generation import generate
from drope_jax.positions import Bias, Embedding, RoPE
from drope_jax.rotation import Frequencies
from drope_jax.scalings import Scaling
from drope_jax.serialization import from_dict, to_dict
from drope_jax.transitions import PartialDrop, drop


@dataclasses.dataclass(unsafe_hash=True)
class Squeeze(Scaling):
  """A scaling: the slower half of the frequencies is divided by `factor`."""

  factor: float

  def frequencies(self, theta, head_dim, length=None):
    pairs = np.arange(head_dim // 2)
    omega = theta ** -(2 * pairs / head_dim)
    return Frequencies(np.where(pairs < len(pairs) // 2, omega, omega / self.factor), 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class LogBias(Embedding):
  """A bias-type embedding: KERPLE's logarithmic kernel, -r1 log(1 + r2 distance), with r1 by head."""

  r2: float = 0.5

  def bias(self, num_heads):
    return Bias((np.linspace(0.5, 2.0, num_heads), np.full(num_heads, self.r2)), log_kernel)


def log_kernel(r1, r2, distance):
  return -r1 * jnp.log1p(r2 * jnp.maximum(distance, 0))


@dataclasses.dataclass(unsafe_hash=True)
class TwoSpeeds(Embedding):
  """An embedding that rotates: the first half of the pairs turns by 1, the other by `slow` radians a token."""

  slow: float = 0.01

  def frequencies(self, head_dim, length=None):
    pairs = np.arange(head_dim // 2)
    return Frequencies(np.where(pairs < len(pairs) // 2, 1.0, self.slow), 1.0)


MINE = [RoPE(100.0, Squeeze(4.0)), LogBias(), TwoSpeeds()]


@pytest.mark.parametrize("positions", [*MINE, RoPE(100.0, pairs=2)])
def test_it_is_recorded_and_read_again(positions):
  config = tiny(positions=positions)
  assert from_dict(ModelConfig, to_dict(config)) == config


def test_its_record_names_its_module():
  assert to_dict(LogBias())["type"] == f"{__name__}:LogBias"
  assert to_dict(RoPE(scaling=Squeeze(2.0)))["scaling"] == {"type": f"{__name__}:Squeeze", "factor": 2.0}


@pytest.mark.parametrize("positions", MINE)
def test_the_model_has_it_and_can_drop_it(positions):
  config, tokens = tiny(positions=positions), random_tokens(2, 10)
  params = random_params(config)
  with_it, without = (logits_of(params, c, tokens) for c in (config, drop(config)))
  assert np.abs(with_it - without).max() > 0.1
  for compute in (ComputeConfig(scan_layers=False), ComputeConfig(attention="blockwise", remat="full")):
    assert_close(logits_of(params, config, tokens, compute=compute), with_it)


def test_a_scaling_of_ones_own_is_the_rotation_that_it_gives():
  tokens, squeezed = random_tokens(1, 8), tiny(positions=RoPE(100.0, Squeeze(4.0)))
  params, table = random_params(squeezed), Squeeze(4.0).frequencies(100.0, squeezed.head_dim)
  other = tiny(positions=RoPE(7.0))
  assert_close(logits_of(params, squeezed, tokens), logits_of(params, other, tokens, frequencies=table))


@pytest.mark.parametrize("kernel", ["reference", "blockwise", "unrolled"])
def test_a_bias_of_ones_own_is_added_to_the_logits(kernel):
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((2, 9, heads, 8)), jnp.float32) for heads in (4, 2, 2))
  bias = LogBias().bias(4)
  scores = np.einsum("BTHh,BSHh->BHTS", q, np.repeat(k, 2, axis=2)) / np.sqrt(8)
  distance = np.arange(9)[:, None] - np.arange(9)
  scores += np.stack([log_kernel(r1, r2, distance) for r1, r2 in zip(*bias.coefficients, strict=True)])
  weights = np.exp(np.where(distance >= 0, scores, -np.inf))
  expected = np.einsum("BHTS,BSHh->BTHh", weights / weights.sum(-1, keepdims=True), np.repeat(v, 2, axis=2))
  assert_close(attention(q, k, v, bias=bias, kernel=kernel), expected)

  def gradients(kernel):
    return jax.grad(lambda *qkv: (attention(*qkv, bias=bias, kernel=kernel) ** 2).sum(), (0, 1, 2))(q, k, v)

  assert_close(gradients(kernel), gradients("reference"), atol=1e-4)


@pytest.mark.parametrize("positions", [LogBias(), *(pytest.param(one, marks=pytest.mark.slow) for one in MINE[::2])])
def test_generation_with_a_cache_is_that_without(positions):
  config = tiny(positions=positions)
  params, tokens = random_params(config), [1, 5, 3]
  answer = generate(params, config, [tokens], max_new_tokens=5)[0]
  for token in answer:
    assert token == logits_of(params, config, jnp.asarray([tokens]))[0, -1].argmax()
    tokens.append(token)
  assert len(answer) == 5


def test_a_partial_drop_goes_by_a_scaling_of_ones_own():
  config = tiny(head_dim=8, positions=RoPE(100.0, Squeeze(50.0)))  # 10.2, 3.2, 0.02 and 0.006 turns in 64 tokens
  assert PartialDrop(1.0).apply(config, 64).positions == RoPE(100.0, Squeeze(50.0), pairs=2)
