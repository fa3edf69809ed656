"""Next-token cross-entropy: what is summed, over which targets, and that no array of all logits exists."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from support.objectives import sums
from support.tiny_run import tiny_model

from drope_jax.config import ComputeConfig
from drope_jax.loss import token_losses
from drope_jax.model import Decoder, init_params
from drope_jax.objective import NextToken

MODEL = tiny_model(vocab_size=50, init_std=0.3)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 11)), jnp.int32)  # 10 targets a row
# Documents of 4, 1 and 6 tokens; of 11; and of 7 and 4.
SEGMENTS = jnp.asarray([[1] * 4 + [2] + [3] * 6, [1] * 11, [1] * 7 + [2] * 4], jnp.int32)
POSITIONS = jnp.asarray([[*range(4), 0, *range(6)], [*range(11)], [*range(7), *range(4)]], jnp.int32)
PACKED = {"tokens": TOKENS, "segments": SEGMENTS, "positions": POSITIONS}


@pytest.fixture(scope="module")
def params():
  return jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("chunk", "z_loss"))
def loss(params, batch, chunk=512, z_loss=0.0):
  return sums(NextToken(z_loss), MODEL, params, batch, ComputeConfig(dtype="float32", loss_chunk=chunk))


@pytest.fixture(scope="module")
def logits_BTV(params):
  return np.asarray(jax.jit(Decoder(MODEL).apply)({"params": params}, TOKENS[:, :-1]), np.float64)


def log_partition(logits_BTV):
  return np.log(np.exp(logits_BTV).sum(axis=-1))


def test_is_the_negative_log_likelihood_of_the_next_token(params, logits_BTV):
  targets_BT = np.asarray(TOKENS[:, 1:])
  expected = (log_partition(logits_BTV) - np.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]).sum()
  total, sums = loss(params, {"tokens": TOKENS})
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  assert total == sums["nll"]
  assert sums["tokens"] == 30


def test_chunks_change_neither_value_nor_gradient(params):
  whole, in_chunks = (  # 4 leaves a ragged last chunk of the 10 targets
    jax.value_and_grad(loss, has_aux=True)(params, PACKED, chunk=size, z_loss=0.1) for size in (10, 4)
  )
  (_, sums), grads = whole
  assert sums["tokens"] > 0 and max(float(abs(g).max()) for g in jax.tree.leaves(grads)) > 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, in_chunks)


def shapes_in(jaxpr):
  """Shapes of every value that a program makes, those inside of its loops and calls too."""
  found = set()
  for equation in jaxpr.eqns:
    found |= {variable.aval.shape for variable in equation.outvars}
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      found |= shapes_in(inner)
  return found


def positions_with_logits(params, chunk):
  """How many positions of logits the arrays of value and gradient hold at most."""
  program = jax.make_jaxpr(jax.grad(functools.partial(loss, chunk=chunk), has_aux=True))(params, {"tokens": TOKENS})
  shapes = [
    shape for shape in shapes_in(program.jaxpr) if len(shape) > 2 and shape[-1] == MODEL.vocab_size
  ]  # (B, T, V)
  sizes = [int(np.prod(shape[:-1])) for shape in shapes]
  return max(sizes)


def test_no_array_of_all_logits_when_chunked(params):
  assert positions_with_logits(params, 512) == 3 * 10  # the check sees them where they are
  assert positions_with_logits(params, 2) == 3 * 2


def test_a_vocabulary_of_152k_costs_the_memory_of_a_few_chunks():
  vocab, width, length = 151_936, 8, 1024
  weight = jax.ShapeDtypeStruct((vocab, width), jnp.float32)
  x_BTD = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
  targets_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def temporaries(chunk):
    def mean(weight, x_BTD, targets_BT):
      return token_losses({"embedding": weight}, x_BTD, targets_BT, chunk).nll_BT.mean()

    compiled = jax.jit(jax.grad(mean, argnums=(0, 1))).lower(weight, x_BTD, targets_BT).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  whole_logits = length * vocab * 4
  assert temporaries(length) > whole_logits  # this measure sees them
  assert temporaries(32) < whole_logits / 4


def test_the_first_target_of_a_document_does_not_count(params):
  _, sums = loss(params, PACKED)
  assert sums["tokens"] == 30 - 3
  same_lengths = TOKENS.at[0, 4].set((TOKENS[0, 4] + 1) % 50)  # the whole second document: target of no token ...
  _, changed = loss(params, {**PACKED, "tokens": same_lengths})
  np.testing.assert_allclose(changed["nll"], sums["nll"], rtol=1e-6)  # ... and its own target belongs to the third
  inner = TOKENS.at[0, 6].set((TOKENS[0, 6] + 1) % 50)
  _, changed = loss(params, {**PACKED, "tokens": inner})
  assert abs(float(changed["nll"] - sums["nll"])) > 1e-3


def test_packed_documents_are_as_separate_ones(params):
  last = {name: value[2:] for name, value in PACKED.items()}
  total, _ = loss(params, last, z_loss=1.0)
  alone = sum(float(loss(params, {"tokens": piece}, z_loss=1.0)[0]) for piece in (TOKENS[2:, :7], TOKENS[2:, 7:]))
  np.testing.assert_allclose(total, alone, rtol=1e-5)


def test_z_loss_adds_its_weight_times_the_squared_log_partition(params, logits_BTV):
  plain, _ = loss(params, {"tokens": TOKENS})
  total, sums = loss(params, {"tokens": TOKENS}, z_loss=0.25)
  np.testing.assert_allclose((total - plain) / 30, 0.25 * (log_partition(logits_BTV) ** 2).mean(), rtol=1e-4)
  assert sums["nll"] == plain  # what is reported stays comparable


def test_losses_are_float32_whatever_the_activations(params):
  x_BTD = jax.random.normal(jax.random.key(1), (2, 6, MODEL.d_model), jnp.bfloat16)
  found = jax.jit(token_losses, static_argnums=3)(params, x_BTD, TOKENS[:2, :6], 4)
  assert found.nll_BT.dtype == found.log_z_BT.dtype == jnp.float32
