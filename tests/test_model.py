"""The decoder: which function it is, and that nothing about how it is computed changes it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax import model as model_module
from drope_jax.attention import attention
from drope_jax.config import ComputeConfig, ModelConfig, QKNorm
from drope_jax.model import (
  Decoder,
  ParameterSpec,
  count_parameters,
  hidden_states,
  init_cache,
  init_params,
  map_specs,
  parameter_specs,
  rms_norm,
  unembed,
)
from drope_jax.positions import PI, ALiBi, DynamicYaRN, Layer, LayerPattern, RoPE, rnope_swa

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


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """These programs run once: most of the time would go into optimising them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def tiny(**changes):
  return dataclasses.replace(TINY, **changes)


def random_params(config, seed=0):
  """Parameters of which none is a special value: norms are not ones, biases not zeros."""
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
  """One operation at a time: nothing is compiled for each config. What compilation may change has tests of its own."""
  with jax.disable_jit():
    return unembed(params, hidden_states(params, config, tokens_BT, **inputs)[0])


@functools.partial(jax.jit, static_argnums=(1,), static_argnames=("compute",))
def compiled_logits_of(params, config, tokens_BT, **inputs):
  return unembed(params, hidden_states(params, config, tokens_BT, **inputs)[0])


def assert_close(ours, expected, atol=1e-5):
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), ours, expected)


# --- causality and positions -------------------------------------------------------------------


def logit_gradients(config, params, length):
  """(T, T): the norm of the gradient of the logits at t with respect to the embedding of token j."""
  tokens = jnp.tile(jnp.arange(length), (2, 1))  # all different, so row j of the (untied) embedding is the input at j
  weights_V = jnp.asarray(np.random.default_rng(1).standard_normal(config.vocab_size), jnp.float32)

  def logits_of_all_positions(embedding):
    x_BTD, _ = hidden_states({**params, "embedding": embedding}, config, tokens)
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

  monkeypatch.setattr(model_module, "attention", attention_without_mask)
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
}
READ_BY_THE_LOSS_ALONE = {"loss_chunk"}  # see test_loss.py


def test_every_compute_field_is_tried_below():
  assert set(COMPUTE_CHANGES) | READ_BY_THE_LOSS_ALONE == {field.name for field in dataclasses.fields(ComputeConfig)}


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


# --- cache -------------------------------------------------------------------------------------


def step(params, config, tokens_BT, cache, length=None):
  with jax.disable_jit():
    x_BTD, cache = hidden_states(params, config, tokens_BT, cache=cache, length=length)
    return unembed(params, x_BTD), cache


CACHED = {**POSITIONS, "dynamic yarn": RoPE(100.0, DynamicYaRN(4))}


@pytest.mark.parametrize("positions", CACHED.values(), ids=CACHED)
def test_a_cache_changes_nothing_however_the_tokens_are_cut(positions):
  config = tiny(positions=positions)
  params, tokens = random_params(config), random_tokens(2, 8)
  expected = logits_of(params, config, tokens)
  for chunks in [(1,) * 8, (4, 4), (1, 4, 1, 1, 1)]:
    cache, logits = init_cache(config, batch=2, capacity=10), []
    for start, end in itertools.pairwise(np.cumsum([0, *chunks])):
      chunk_logits, cache = step(params, config, tokens[:, start:end], cache, 8)  # 8: the length of it all
      logits.append(chunk_logits)
    assert cache.lengths_B.tolist() == [8, 8]
    assert_close(jnp.concatenate(logits, 1), expected)


@POSITION_IDS
def test_rows_of_a_cache_may_have_lengths_of_their_own(positions):
  config = tiny(positions=positions)
  params, prompts, answers = random_params(config), random_tokens(2, 4), random_tokens(2, 4, seed=1)
  lengths = [1, 3]
  _, cache = step(params, config, prompts, init_cache(config, batch=2, capacity=10))
  # Rows shorter than the chunk hold tokens beyond their length: these must not be seen, and are written over.
  cache = dataclasses.replace(cache, lengths_B=jnp.array(lengths))
  logits, cache = step(params, config, answers, cache)
  assert cache.lengths_B.tolist() == [5, 7]
  rows = [[*prompts[row, :length], *answers[row]] for row, length in enumerate(lengths)]
  without_cache = logits_of(params, config, jnp.array([row + [0] * (8 - len(row)) for row in rows]))
  for row, length in enumerate(lengths):
    assert_close(logits[row], without_cache[row, length : length + 4])


def test_segments_cannot_be_used_with_a_cache():
  tokens = random_tokens(1, 3)
  with pytest.raises(ValueError, match="segments_BT"):
    hidden_states(random_params(TINY), TINY, tokens, cache=init_cache(TINY, 1, 4), segments_BT=tokens)


def test_position_ids_cannot_be_used_with_a_cache():
  # Keys are rotated by their slots when they are read: ids given for the queries alone would be another function.
  with pytest.raises(ValueError, match="position_ids_BT"):
    hidden_states(
      random_params(TINY),
      TINY,
      random_tokens(1, 3),
      cache=init_cache(TINY, 1, 4),
      position_ids_BT=jnp.array([[7, 8, 9]]),
    )


def test_a_chunk_longer_than_the_cache_is_refused():
  with pytest.raises(ValueError, match="cache"):
    hidden_states(random_params(TINY), TINY, random_tokens(1, 5), cache=init_cache(TINY, 1, 4))


def test_a_dynamic_scaling_with_a_cache_must_be_told_the_length():
  config = tiny(positions=RoPE(scaling=DynamicYaRN(4)))
  with pytest.raises(ValueError, match="length"):
    hidden_states(random_params(config), config, random_tokens(1, 3), cache=init_cache(config, 1, 4))


def test_rows_of_a_dynamic_scaling_may_have_lengths_of_their_own():
  config = tiny(positions=RoPE(100.0, DynamicYaRN(4)))
  params, tokens = random_params(config), random_tokens(2, 8)
  together = logits_of(params, config, tokens, length=jnp.array([[8], [20]]))
  for row, length in enumerate([8, 20]):
    assert_close(together[row], logits_of(params, config, tokens, length=length)[row], atol=1e-4)


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
  x_BTD, cache = jax.jit(hidden_states, static_argnums=1)(params, config, tokens)
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

  jax.tree.map(check, specs, params, is_leaf=lambda node: isinstance(node, ParameterSpec))
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
  x_BTD, _ = hidden_states(variables["params"], config, tokens, **inputs)
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
