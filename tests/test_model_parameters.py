"""The decoder's parameters: what each of them does, and how many there are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import TINY, assert_close, initial_params, logits_of, random_params, random_tokens, tiny

from drope_jax.config import ModelConfig, QKNorm
from drope_jax.model import Decoder, hidden_states, init_params, unembed
from drope_jax.parameters import count_parameters, parameter_specs
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import PI

# --- logit scale, QK-norm, biases, embeddings --------------------------------------------------


def with_layer(params, **arrays):
  return {**params, "layers": {**params["layers"], **arrays}}


@pytest.mark.parametrize("beta", [1.7, np.array([0.5, 1.0, 2.0, 3.0], np.float32)], ids=["scalar", "of each head"])
def test_logit_scale_is_a_multiple_of_the_query_weights(beta):
  params, tokens = random_params(TINY), random_tokens(2, 8)
  scaled = with_layer(params, q=params["layers"]["q"] * np.reshape(beta, (-1, 1)))
  logits = logits_of(params, TINY, tokens, logit_scale=beta)
  assert_close(logits, logits_of(scaled, TINY, tokens), atol=1e-4)
  assert np.abs(logits - logits_of(params, TINY, tokens)).max() > 0.01


QK_NORMS = [
  QKNorm(scope, *which) for scope in ("full", "head") for which in [(True, True), (True, False), (False, True)]
]
NORM_SHAPES = {
  # of one layer: each has H = 4, K = 2, h = 6
  ("full", "q"): (4, 6),
  ("full", "k"): (2, 6),
  ("head", "q"): (6,),
  ("head", "k"): (6,),
}


@pytest.mark.parametrize("qk_norm", QK_NORMS, ids=str)
def test_qk_norm_normalises_what_its_scope_says_and_nothing_else(qk_norm):
  config = tiny(qk_norm=qk_norm, norm_eps=1e-12)  # so small that a norm takes out every factor
  params, tokens = random_params(config), random_tokens(2, 8)
  logits = logits_of(params, config, tokens)

  def changes(name, factor):
    scaled = with_layer(params, **{name: params["layers"][name] * factor})
    gap = np.abs(logits_of(scaled, config, tokens) - logits).max()
    assert gap < 1e-4 or gap > 0.01, "neither unchanged nor changed"
    return gap > 0.01

  for name, normalised, heads in [("q", qk_norm.queries, 4), ("k", qk_norm.keys, 2)]:
    one_head = np.ones((heads, 1), np.float32)
    one_head[0] = 3.0
    assert changes(name, 3.0) == (not normalised)
    assert changes(name, one_head) == (not normalised or qk_norm.scope == "full")
    expected_shape = (config.num_layers, *NORM_SHAPES[qk_norm.scope, name]) if normalised else None
    weight = params["layers"].get(f"{name}_norm")
    assert (None if weight is None else weight.shape) == expected_shape
    if normalised:
      assert changes(f"{name}_norm", 3.0)


def test_qk_norm_adds_its_weights_of_one_and_changes_no_other_parameter():
  plain = initial_params(TINY)
  for qk_norm in (QKNorm("full"), QKNorm("head", keys=False)):
    normed = initial_params(tiny(qk_norm=qk_norm))
    added = set(normed["layers"]) - set(plain["layers"])
    assert added == {f"{name}_norm" for name, on in [("q", qk_norm.queries), ("k", qk_norm.keys)] if on}
    assert all((normed["layers"][name] == 1).all() for name in added)
    layers = {name: value for name, value in normed["layers"].items() if name not in added}
    jax.tree.map(np.testing.assert_array_equal, {**normed, "layers": layers}, plain)


def test_qkv_biases_are_added_to_the_projections():
  config = tiny(qkv_bias=True, positions=None)
  params, tokens = random_params(config), random_tokens(2, 8)

  def change(name, value):
    moved = with_layer(params, **{name: params["layers"][name] + value})
    return np.abs(logits_of(moved, config, tokens) - logits_of(params, config, tokens)).max()

  direction = np.random.default_rng(2).standard_normal(6).astype(np.float32)
  assert change("q_bias", direction) > 0.01
  assert change("v_bias", direction) > 0.01
  assert change("k_bias", direction) < 1e-4  # without rotations it adds the same number to all logits of a query
  without = {name: value for name, value in params["layers"].items() if not name.endswith("_bias")}
  zero = with_layer(params, **{f"{name}_bias": params["layers"][f"{name}_bias"] * 0 for name in "qkv"})
  np.testing.assert_array_equal(
    logits_of(zero, config, tokens), logits_of({**params, "layers": without}, tiny(positions=None), tokens)
  )


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_logits_are_read_off_the_embedding_or_a_matrix_of_its_own(tie_embeddings):
  config = tiny(tie_embeddings=tie_embeddings)
  params, tokens = random_params(config), random_tokens(2, 8)
  weight_VD = params["embedding" if tie_embeddings else "unembedding"]
  assert ("unembedding" in params) != tie_embeddings
  x_BTD, cache, _ = jax.jit(hidden_states, static_argnums=1)(params, config, tokens)
  assert cache is None
  assert_close(unembed(params, x_BTD), np.asarray(x_BTD) @ np.asarray(weight_VD).T)


# --- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [None, ALiBi(), rnope_swa(4), RoPE(500.0, PI(2.0))])
def test_parameters_do_not_know_about_positions(positions):
  jax.tree.map(np.testing.assert_array_equal, initial_params(tiny(positions=positions)), initial_params(TINY))


def test_initial_parameters_are_normal_matrices_zero_biases_and_norms_of_one():
  config = tiny(d_model=64, d_ff=128, qkv_bias=True, qk_norm=QKNorm(), tie_embeddings=False, init_std=0.05)
  params, specs = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)), parameter_specs(config)

  def check(spec, value):
    assert value.shape == spec.shape and value.dtype == jnp.float32
    if spec.decay:
      assert abs(value.mean()) < 0.005 and abs(value.std() - 0.05) < 0.005
    else:
      assert (value == value.ravel()[0]).all()

  jax.tree.map(check, specs, params)
  assert {name for name, value in params["layers"].items() if (value == 0).all()} == {"q_bias", "k_bias", "v_bias"}
  norms = {"attention_norm", "mlp_norm", "q_norm", "k_norm"}
  assert {name for name, value in params["layers"].items() if (value == 1).all()} == norms
  assert (params["final_norm"] == 1).all()
  matrices = [value for name, value in params["layers"].items() if name in ("q", "k", "v", "o", "gate", "up", "down")]
  assert all(np.abs(value[0] - value[1]).max() > 0.01 for value in matrices)  # layers differ


def test_the_decoder_is_hidden_states_and_unembed():
  config = tiny(qk_norm=QKNorm(), qkv_bias=True, tie_embeddings=False)
  tokens = random_tokens(2, 8)
  variables = Decoder(config).init(jax.random.key(0), tokens)
  assert set(variables) == {"params"}
  jax.tree.map(np.testing.assert_array_equal, variables["params"], init_params(config, jax.random.key(0)))
  inputs = {
    "position_ids_BT": jnp.arange(8)[None] * 2,
    "segments_BT": jnp.array([[0] * 3 + [1] * 5] * 2),
    "logit_scale": 1.5,
  }
  logits_BTV = Decoder(config).apply(variables, tokens, **inputs)
  assert logits_BTV.shape == (2, 8, config.vocab_size)
  x_BTD, *_ = hidden_states(variables["params"], config, tokens, **inputs)
  np.testing.assert_array_equal(logits_BTV, unembed(variables["params"], x_BTD))


SHAPES = {
  "494M": dict(vocab_size=151_936, d_model=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64, d_ff=4864),
  "SmolLM-360M": dict(
    vocab_size=49_152, d_model=960, num_layers=32, num_heads=15, num_kv_heads=5, head_dim=64, d_ff=2560
  ),
}


@pytest.mark.parametrize("name, millions, beside_embedding", [("494M", 494.0, 357.9), ("SmolLM-360M", 361.8, 314.6)])
def test_parameter_counts_are_those_of_the_papers_models(name, millions, beside_embedding):
  config = ModelConfig(**SHAPES[name])
  total = count_parameters(config)
  assert round(total / 1e6, 1) == millions
  assert round((total - config.vocab_size * config.d_model) / 1e6, 1) == beside_embedding
  abstract = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == total
  untied = count_parameters(dataclasses.replace(config, tie_embeddings=False))
  assert untied == total + config.vocab_size * config.d_model


# Every field of ModelConfig, and values that must change the parameters or the logits.
MODEL_CHANGES = {
  "vocab_size": [14],
  "d_model": [20],
  "num_layers": [3],
  "num_heads": [2],
  "num_kv_heads": [4],
  "head_dim": [8],
  "d_ff": [32],
  "positions": [None, ALiBi(), RoPE(50.0), RoPE(100.0, PI(2.0)), LayerPattern((Layer(RoPE()), Layer(RoPE(), 2)))],
  "qk_norm": QK_NORMS,
  "qkv_bias": [True],
  "tie_embeddings": [False],
  "norm_eps": [0.1],
  "init_std": [0.2],
  "norm_placement": ["post", "both"],
  "activation": ["gelu_tanh"],
  "attention_scale": [1.5],
  "attention_softcap": [0.1],
  "logits_softcap": [0.5],
  "embedding_multiplier": [3.0],
  "residual_multiplier": [0.5],
  "logits_divisor": [2.0],
  "token_shift": [True],
  "logn_scale": [True],
}


def test_every_model_field_is_tried_below():
  assert set(MODEL_CHANGES) == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize(
  "field, value", [(field, value) for field, values in MODEL_CHANGES.items() for value in values], ids=str
)
def test_every_model_field_changes_the_parameters_or_the_logits(field, value):
  config, changed = TINY, tiny(**{field: value})

  def tree(config):
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))

  if tree(config) == tree(changed):
    tokens = random_tokens(2, 8)
    before, after = (logits_of(initial_params(config), config, tokens) for config in (config, changed))
    assert np.abs(after - before).max() > 1e-3
