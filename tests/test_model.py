"""The decoder: which function it is, and that nothing about how it is computed changes it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import (
  POSITION_IDS,
  TINY,
  assert_close,
  compiled_logits_of,
  logits_of,
  random_params,
  random_tokens,
  tiny,
)

from drope_jax import sublayers
from drope_jax.attention import attention
from drope_jax.cache import init_cache
from drope_jax.config import ComputeConfig
from drope_jax.layers import rms_norm
from drope_jax.model import Decoder, hidden_states, init_params, unembed
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE
from drope_jax.scalings import PI

# --- causality and positions -------------------------------------------------------------------


def logit_gradients(config, params, length):
  """(T, T): the norm of the gradient of the logits at t with respect to the embedding of token j."""
  tokens = jnp.tile(jnp.arange(length), (2, 1))  # all different, so row j of the (untied) embedding is the input at j
  weights_V = jnp.asarray(np.random.default_rng(1).standard_normal(config.vocab_size), jnp.float32)

  def logits_of_all_positions(embedding):
    x_BTD, *_ = hidden_states({**params, "embedding": embedding}, config, tokens)
    return unembed(params, x_BTD)[0] @ weights_V

  with jax.disable_jit():
    _, backward = jax.vjp(logits_of_all_positions, params["embedding"])
    gradients = [backward(one_position)[0] for one_position in jnp.eye(length)]
  return np.stack([np.linalg.norm(gradient[:length], axis=-1) for gradient in gradients])


@POSITION_IDS
def test_a_token_moves_the_logits_at_and_after_it_and_none_before(positions):
  config = tiny(positions=positions, tie_embeddings=False, num_layers=3)
  gradients_TS = logit_gradients(config, random_params(config), 8)
  not_after = np.tril(np.ones((8, 8), bool))
  assert (gradients_TS[~not_after] == 0).all()
  assert (gradients_TS[not_after] > 1e-4).all()


def test_windows_add_up_through_the_layers():
  config = tiny(positions=LayerPattern((Layer(RoPE(), 3), Layer(None, 2))), tie_embeddings=False)
  gradients_TS = logit_gradients(config, random_params(config), 8)
  distance_TS = np.arange(8)[:, None] - np.arange(8)
  np.testing.assert_array_equal(gradients_TS > 0, (distance_TS >= 0) & (distance_TS <= (3 - 1) + (2 - 1)))


@pytest.mark.parametrize("kernel, dtype", [("reference", "float32"), ("blockwise", "bfloat16")])
@pytest.mark.parametrize("run", [logits_of, compiled_logits_of], ids=["eager", "compiled"])
def test_rope_by_zero_angles_is_nope_bitwise(run, kernel, dtype):
  rope, nope = tiny(positions=RoPE()), tiny(positions=None)
  params, tokens = random_params(rope), random_tokens(2, 8)
  run = functools.partial(run, compute=ComputeConfig(dtype=dtype, attention=kernel))
  zero_ids = run(params, rope, tokens, position_ids_BT=jnp.zeros((1, 8), jnp.int32))
  np.testing.assert_array_equal(zero_ids, run(params, nope, tokens))


def test_rope_of_frequency_zero_is_nope_bitwise():
  params, tokens = random_params(TINY), random_tokens(2, 8)
  without = logits_of(params, tiny(positions=None), tokens)
  np.testing.assert_array_equal(logits_of(params, tiny(positions=RoPE(scaling=PI(1e300))), tokens), without)
  assert np.abs(logits_of(params, tiny(positions=RoPE()), tokens) - without).max() > 0.01


def test_rope_logits_do_not_change_when_all_positions_are_shifted():
  params, tokens = random_params(TINY), random_tokens(2, 8)
  shifted = logits_of(params, TINY, tokens, position_ids_BT=jnp.arange(8)[None] + 50)
  assert_close(shifted, logits_of(params, TINY, tokens), atol=1e-4)


@pytest.mark.parametrize("positions", [None, ALiBi()])
def test_only_rope_reads_position_ids(positions):
  config = tiny(positions=positions)
  params, tokens = random_params(config), random_tokens(2, 8)
  given = logits_of(params, config, tokens, position_ids_BT=jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]]))
  np.testing.assert_array_equal(given, logits_of(params, config, tokens))


PERMUTATION = np.array([5, 2, 0, 1, 6, 3, 4, 7])  # the last token stays last


def test_nope_is_not_permutation_equivariant_because_of_the_mask_alone(monkeypatch):
  config = tiny(positions=None)
  params, tokens = random_params(config), random_tokens(2, 8)

  def gap():
    function = functools.partial(logits_of, params, config)
    return np.abs(function(tokens[:, PERMUTATION]) - function(tokens)[:, PERMUTATION]).max()

  assert gap() > 0.1

  def attention_without_mask(*qkv, offset, **features):
    return attention(*qkv, offset=7, **features)  # every query at index 7 or later: it sees all eight keys

  monkeypatch.setattr(sublayers, "attention", attention_without_mask)
  assert gap() < 1e-5


def test_one_nope_layer_sees_the_prefix_as_a_set_and_two_layers_or_rope_do_not():
  def change_of_last_logits(**changes):
    config = tiny(**changes)
    params, tokens = random_params(config), random_tokens(2, 8)
    return np.abs(logits_of(params, config, tokens[:, PERMUTATION]) - logits_of(params, config, tokens))[:, -1].max()

  assert change_of_last_logits(positions=None, num_layers=1) < 1e-5
  assert change_of_last_logits(positions=None, num_layers=2) > 0.01
  assert change_of_last_logits(positions=RoPE(), num_layers=1) > 0.01


@POSITION_IDS
@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
def test_packed_documents_are_separate_documents(positions, kernel):
  config = tiny(positions=positions)
  params, documents = random_params(config), [random_tokens(2, 4, seed) for seed in (1, 2)]
  packed = logits_of(
    params,
    config,
    jnp.concatenate(documents, 1),
    compute=ComputeConfig(attention=kernel),
    segments_BT=jnp.array([[1] * 4 + [2] * 4] * 2),
    position_ids_BT=jnp.array([[*range(4), *range(4)]]),
  )
  alone = [logits_of(params, config, document) for document in documents]
  assert_close(packed, jnp.concatenate(alone, 1))


# --- how it is computed ------------------------------------------------------------------------


def loss_and_gradients(compute, config, params, tokens):
  def loss(params):
    return (unembed(params, hidden_states(params, config, tokens, compute=compute)[0]) ** 2).mean()

  return jax.value_and_grad(loss)(params)


SCAN, UNROLL = {"scan_layers": True}, {"scan_layers": False}
TWO_KINDS = LayerPattern((Layer(RoPE(), 3), Layer(None)))


@pytest.mark.parametrize(
  "positions, num_layers, settings",
  [
    (RoPE(), 2, SCAN | {"remat": "full"}),
    (RoPE(), 2, SCAN | {"remat": "dots"}),
    (RoPE(), 2, UNROLL | {"remat": "full"}),
    (TWO_KINDS, 5, SCAN),  # two whole cycles are scanned, the fifth layer is not
  ],
  ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_scanned_unrolled_and_rematerialised_layers_are_one_function_with_one_gradient(positions, num_layers, settings):
  config = tiny(positions=positions, num_layers=num_layers)
  params, tokens = random_params(config), random_tokens(2, 8)
  with jax.disable_jit():
    expected = loss_and_gradients(ComputeConfig(**UNROLL), config, params, tokens)
  assert all(np.abs(gradient).max() > 1e-3 for gradient in jax.tree.leaves(expected[1]))
  run = jax.jit(loss_and_gradients, static_argnums=(0, 1))
  assert_close(run(ComputeConfig(**settings), config, params, tokens), expected)


# Every field of ComputeConfig, and a value that must change the program and must not change the function.
COMPUTE_CHANGES = {
  "dtype": "bfloat16",
  "attention": "blockwise",
  "scan_layers": False,
  "remat": "full",
  "derivatives": "jax",
}
READ_ELSEWHERE = {"loss_chunk", "xla_options", "remat_keep", "remat_offload"}  # test_loss, test_control, test_remat


def test_every_compute_field_is_tried_below():
  assert set(COMPUTE_CHANGES) | READ_ELSEWHERE == {field.name for field in dataclasses.fields(ComputeConfig)}


@pytest.mark.parametrize("field", COMPUTE_CHANGES)
def test_every_compute_field_changes_the_program_and_not_the_function(field):
  params, tokens = random_params(TINY), random_tokens(2, 8)
  plain, changed = ComputeConfig(dtype="float32"), ComputeConfig(**{"dtype": "float32", field: COMPUTE_CHANGES[field]})
  run = jax.jit(loss_and_gradients, static_argnums=(0, 1))
  lowered = [run.lower(compute, TINY, params, tokens) for compute in (plain, changed)]
  assert lowered[0].as_text() != lowered[1].as_text()
  values = [logits_of(params, TINY, tokens, compute=compute) for compute in (plain, changed)]
  assert_close(values[1], values[0], atol=0.2 if field == "dtype" else 1e-5)  # logits up to 10


def test_bfloat16_compute_keeps_float32_parameters_gradients_and_logits():
  compute = ComputeConfig(dtype="bfloat16")
  params, tokens = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0))), random_tokens(2, 8)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert (
    jax.eval_shape(lambda params: hidden_states(params, TINY, tokens, compute=compute)[0], params).dtype == jnp.bfloat16
  )
  assert jax.eval_shape(Decoder(TINY, compute).apply, {"params": params}, tokens).dtype == jnp.float32
  assert init_cache(TINY, 2, 8, compute).k_LBSKh.dtype == jnp.bfloat16
  loss, gradients = jax.eval_shape(functools.partial(loss_and_gradients, compute, TINY), params, tokens)
  assert {leaf.dtype for leaf in jax.tree.leaves((loss, gradients))} == {jnp.dtype("float32")}


def test_norms_are_computed_in_float32():
  x_BTD = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 1000)) * 30 + 300, jnp.bfloat16)
  expected = rms_norm(x_BTD.astype(jnp.float32), jnp.ones(1000), 1e-5).astype(jnp.bfloat16)
  np.testing.assert_array_equal(rms_norm(x_BTD, jnp.ones(1000), 1e-5), expected)
