"""Positional embeddings: what a rotation does, the frequency tables of every scaling method, ALiBi's slopes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, alibi_slopes, layer_cycle, rnope_swa
from drope_jax.rotation import rotate
from drope_jax.scalings import NTK, PI, CoPE, DynamicNTK, DynamicYaRN, Llama3, LongRoPE, NTKByParts, YaRN

SCALINGS = [
  None,
  PI(4.0),
  NTK(4.0),
  NTKByParts(4.0, 64),
  YaRN(4.0, 64),
  DynamicNTK(64, factor=2.0),
  DynamicYaRN(64),
  Llama3(4.0, 64),
  LongRoPE((1.0,) * 8, tuple(1.0 + i for i in range(8)), 64, 4.0),
]
LENGTH = 200  # read by the dynamic scalings alone: beyond their original context


def normal(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def plain_frequencies(theta, head_dim):
  return np.array([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])


# --- rotation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  "embedding, position_ids", [(RoPE(), np.zeros((1, 6), int)), (RoPE(scaling=PI(1e300)), np.arange(6)[None])]
)
def test_rotation_by_zero_angles_is_no_rotation_bitwise(embedding, position_ids, dtype):
  x_BTHh = normal(0, 2, 6, 3, 8, dtype=dtype)
  table = embedding.rotation(position_ids, 8)
  assert (table.cos == 1).all() and (table.sin == 0).all()
  assert rotate(x_BTHh, table).dtype == dtype
  np.testing.assert_array_equal(rotate(x_BTHh, table), rotate(x_BTHh, None))


@pytest.mark.parametrize("embedding", [None, ALiBi()])
def test_only_rope_rotates(embedding):
  assert embedding is None or embedding.rotation(np.arange(6)[None], 8) is None


def test_rotation_turns_each_pair_of_half_split_dimensions_by_position_times_frequency():
  x_BTHh = np.asarray(normal(1, 2, 5, 3, 8))
  position_ids_BT = np.array([[0, 1, 2, 3, 4], [7, 5, 100, 0, 9]])
  as_complex = x_BTHh[..., :4] + 1j * x_BTHh[..., 4:]
  turned = as_complex * np.exp(1j * position_ids_BT[:, :, None, None] * plain_frequencies(100.0, 8))
  expected_BTHh = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(rotate(x_BTHh, RoPE(100.0).rotation(position_ids_BT, 8)), expected_BTHh, atol=1e-5)


def scores(embedding, q_BTHh, k_BTHh, position_ids):
  table = embedding.rotation(position_ids, q_BTHh.shape[-1], LENGTH)
  return np.einsum("BTHh,BSHh->BHTS", rotate(q_BTHh, table), rotate(k_BTHh, table))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shift", [1, 50, 1000])
def test_scores_depend_on_distance_alone(scaling, shift):
  # One query vector and one key vector at every position: what is left of the scores is the positional part.
  q_BTHh, k_BTHh = (jnp.broadcast_to(normal(seed, 1, 1, 2, 16), (1, 12, 2, 16)) for seed in (2, 3))
  embedding = RoPE(scaling=scaling)
  here = scores(embedding, q_BTHh, k_BTHh, np.arange(12)[None])
  shifted = scores(embedding, q_BTHh, k_BTHh, np.arange(12)[None] + shift)
  np.testing.assert_allclose(shifted, here, atol=2e-3)  # float32 angles at position 1000
  for distance in range(-11, 12):
    diagonal = np.diagonal(here, -distance, 2, 3)
    np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[..., :1], diagonal.shape), atol=1e-4)
  assert np.ptp(here[0, 0, -1]) > 0.1  # and on distance they do depend


def test_bfloat16_vectors_are_rotated_by_float32_angles():
  x_BTHh = normal(4, 1, 2, 1, 8, dtype=jnp.bfloat16)
  table = RoPE().rotation(np.array([[256, 257]]), 8)  # equal in bfloat16
  assert table.cos.dtype == jnp.float32
  rotated = rotate(x_BTHh, table)
  np.testing.assert_array_equal(rotated, rotate(x_BTHh.astype(jnp.float32), table).astype(jnp.bfloat16))
  same_vector = jnp.broadcast_to(x_BTHh[:, :1], x_BTHh.shape)
  assert (rotate(same_vector, table)[:, 0] != rotate(same_vector, table)[:, 1]).any()


@pytest.mark.parametrize(
  "scaling, expected", [(YaRN(8.0, 64), 0.1 * math.log(8) + 1), (YaRN(8.0, 64, attention_factor=1.5), 1.5)]
)
def test_attention_factor_multiplies_cos_and_sin(scaling, expected):
  cos, sin = RoPE(scaling=scaling).rotation(np.arange(20)[None], 16)
  np.testing.assert_allclose(np.hypot(cos, sin), expected, rtol=1e-6)


# --- frequency tables --------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [4, 64, 128])
@pytest.mark.parametrize("theta", [100.0, 10_000.0, 1_000_000.0])
def test_plain_table(theta, head_dim):
  omega, attention_factor = RoPE(theta).frequencies(head_dim)
  np.testing.assert_allclose(omega, plain_frequencies(theta, head_dim), rtol=1e-12)
  assert attention_factor == 1


@functools.cache
def hugging_face_rope(kind, theta, head_dim, context, seq_len=None, **parameters):
  """transformers' own table and attention factor, as numpy."""
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
  rope_parameters = {"rope_type": kind, "rope_theta": theta, "original_max_position_embeddings": context, **parameters}
  if kind in ("linear", "dynamic"):
    del rope_parameters["original_max_position_embeddings"]  # they read max_position_embeddings
  config = transformers.LlamaConfig(
    hidden_size=4 * head_dim,
    num_attention_heads=4,
    max_position_embeddings=context,
    rope_parameters=rope_parameters,
  )
  omega, attention_factor = rope_utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
  return omega.numpy(), attention_factor


def assert_same_table(ours, theirs):
  np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-5)  # theirs is computed in float32
  np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)


tables = [
  pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0]),
  pytest.mark.parametrize("head_dim", [16, 128]),
  pytest.mark.parametrize("context", [128, 4096]),
  pytest.mark.parametrize("factor", [1.0, 2.0, 4.5, 32.0]),
]


def for_all_tables(test):
  return functools.reduce(lambda wrapped, mark: mark(wrapped), tables, test)


@for_all_tables
def test_pi_is_hugging_faces_linear(theta, head_dim, context, factor):
  ours = RoPE(theta, PI(factor)).frequencies(head_dim)
  assert_same_table(ours, hugging_face_rope("linear", theta, head_dim, context, factor=factor))


@for_all_tables
def test_yarn_is_hugging_faces(theta, head_dim, context, factor):
  ours = RoPE(theta, YaRN(factor, context)).frequencies(head_dim)
  assert_same_table(ours, hugging_face_rope("yarn", theta, head_dim, context, factor=factor))


@pytest.mark.parametrize("settings", [{"beta_fast": 16.0}, {"beta_slow": 2.0}, {"attention_factor": 1.7}], ids=str)
def test_yarn_settings_are_hugging_faces(settings):
  ours = RoPE(1e4, YaRN(4.0, 2048, **settings)).frequencies(64)
  assert_same_table(ours, hugging_face_rope("yarn", 1e4, 64, 2048, factor=4.0, **settings))


@for_all_tables
def test_llama3_is_hugging_faces(theta, head_dim, context, factor):
  ours = RoPE(theta, Llama3(factor, context)).frequencies(head_dim)
  parameters = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
  assert_same_table(ours, hugging_face_rope("llama3", theta, head_dim, context, **parameters))


@pytest.mark.parametrize("low, high", [(2.0, 4.0), (1.0, 8.0)])
def test_llama3_bands_are_hugging_faces(low, high):
  ours = RoPE(5e5, Llama3(8.0, 8192, low, high)).frequencies(128)
  parameters = {"factor": 8.0, "low_freq_factor": low, "high_freq_factor": high}
  assert_same_table(ours, hugging_face_rope("llama3", 5e5, 128, 8192, **parameters))


@for_all_tables
def test_dynamic_ntk_is_hugging_faces(theta, head_dim, context, factor):
  for length in (context // 2, context, context + 1, 2 * context, 10 * context):
    ours = RoPE(theta, DynamicNTK(context, factor)).frequencies(head_dim, length)
    assert_same_table(ours, hugging_face_rope("dynamic", theta, head_dim, context, seq_len=length, factor=factor))


@for_all_tables
def test_ntk_keeps_the_fastest_frequency_and_divides_the_slowest_by_s(theta, head_dim, context, factor):
  omega, attention_factor = RoPE(theta, NTK(factor)).frequencies(head_dim)
  gamma = omega / plain_frequencies(theta, head_dim)
  assert gamma[0] == 1
  np.testing.assert_allclose(gamma[-1], 1 / factor, rtol=1e-9)
  np.testing.assert_allclose(np.log(gamma), np.linspace(0, -math.log(factor), head_dim // 2), atol=1e-9)
  assert attention_factor == 1


@for_all_tables
def test_ntk_by_parts_ramps_in_rotations_over_the_original_context(theta, head_dim, context, factor):
  slow, fast = 1.0, 32.0
  omega, attention_factor = RoPE(theta, NTKByParts(factor, context)).frequencies(head_dim)
  for omega_i, plain in zip(omega, plain_frequencies(theta, head_dim), strict=True):
    rotations = context * plain / (2 * math.pi)
    kappa = 0 if rotations < slow else 1 if rotations > fast else (rotations - slow) / (fast - slow)
    assert omega_i == pytest.approx((1 - kappa) * plain / factor + kappa * plain, rel=1e-9)
  assert attention_factor == 1


@pytest.mark.parametrize(
  "head_dim, theta, context, low, high", [(64, 1e4, 2048, 8, 21), (64, 1e6, 1024, 3, 12), (128, 1e4, 4096, 20, 46)]
)
def test_yarn_ramp_spans_the_indices_that_the_paper_digest_quotes(head_dim, theta, context, low, high):
  omega, _ = RoPE(theta, YaRN(4.0, context)).frequencies(head_dim)
  gamma = omega / plain_frequencies(theta, head_dim)
  kept, interpolated = np.isclose(gamma, 1, rtol=1e-9), np.isclose(gamma, 1 / 4, rtol=1e-9)
  assert np.flatnonzero(kept).tolist() == list(range(low + 1))
  assert np.flatnonzero(interpolated).tolist() == list(range(high, head_dim // 2))


@pytest.mark.parametrize("ratio", [1.5, 2.0, 8.0])
def test_dynamic_yarn_is_yarn_at_the_current_extension(ratio):
  length = int(64 * ratio)
  omega, attention_factor = RoPE(1e4, DynamicYaRN(64)).frequencies(32, length)
  expected, expected_factor = RoPE(1e4, YaRN(ratio, 64)).frequencies(32)
  np.testing.assert_allclose(omega, expected, rtol=1e-12)
  assert attention_factor == pytest.approx(expected_factor, rel=1e-12)
  assert attention_factor > 1


@pytest.mark.parametrize("ratio", [1.5, 2.0, 8.0])
def test_dynamic_ntk_of_factor_one_is_ntk_at_the_current_extension(ratio):
  omega, _ = RoPE(1e4, DynamicNTK(64)).frequencies(32, int(64 * ratio))
  np.testing.assert_allclose(omega, RoPE(1e4, NTK(ratio)).frequencies(32)[0], rtol=1e-12)


@pytest.mark.parametrize("scaling", [DynamicYaRN(64), DynamicNTK(64), DynamicNTK(64, factor=4.0)])
@pytest.mark.parametrize("length", [1, 63, 64])
def test_dynamic_scalings_change_nothing_within_the_original_context(scaling, length):
  omega, attention_factor = RoPE(1e4, scaling).frequencies(32, length)
  np.testing.assert_allclose(omega, plain_frequencies(1e4, 32), rtol=1e-12)
  assert attention_factor == 1


DYNAMIC = [DynamicYaRN(64), DynamicNTK(64, factor=2.0)]


@pytest.mark.parametrize("scaling", DYNAMIC)
def test_a_traced_length_gives_the_table_of_the_static_one(scaling):
  embedding = RoPE(1e4, scaling)
  traced = jax.jit(lambda length: embedding.frequencies(32, length))
  for length in (10, 64, 100, 1000):
    omega, attention_factor = traced(length)
    expected, expected_factor = embedding.frequencies(32, length)
    np.testing.assert_allclose(omega, expected, rtol=1e-5)
    np.testing.assert_allclose(attention_factor, expected_factor, rtol=1e-6)


@pytest.mark.parametrize("scaling", DYNAMIC)
@pytest.mark.parametrize("num_positions", [3, 7])  # 3 is the number of rows: a broadcast along the wrong axis would fit
@pytest.mark.parametrize("rows_of_ids", [1, 3])
def test_each_row_may_have_a_length_of_its_own(scaling, num_positions, rows_of_ids):
  embedding = RoPE(1e4, scaling)
  lengths_B1 = jnp.array([[32], [100], [500]])
  position_ids = jnp.broadcast_to(jnp.arange(num_positions), (rows_of_ids, num_positions))
  together = embedding.rotation(position_ids, 16, lengths_B1)
  for row, length in enumerate(lengths_B1[:, 0].tolist()):
    alone = embedding.rotation(position_ids[:1], 16, length)
    np.testing.assert_allclose(together.cos[row], alone.cos[0], atol=1e-5)
    np.testing.assert_allclose(together.sin[row], alone.sin[0], atol=1e-5)


@pytest.mark.parametrize("scaling", DYNAMIC)
def test_a_dynamic_scaling_must_be_told_the_length(scaling):
  assert RoPE(scaling=scaling).dynamic
  with pytest.raises(ValueError, match="length"):
    RoPE(scaling=scaling).rotation(np.arange(4)[None], 16)


@pytest.mark.parametrize("scaling", [PI(4.0), NTK(4.0), NTKByParts(4.0, 64), YaRN(4.0, 64), Llama3(4.0, 64)])
def test_the_other_scalings_do_not_look_at_the_length(scaling):
  embedding = RoPE(scaling=scaling)
  assert not embedding.dynamic
  np.testing.assert_array_equal(embedding.frequencies(16)[0], embedding.frequencies(16, 10_000)[0])


@pytest.mark.parametrize("theta, head_dim, context, clipped", [(1e4, 32, 128, 10), (5e5, 128, 8192, 29)])
def test_cope_slows_the_pairs_that_do_not_come_full_circle(theta, head_dim, context, clipped):
  """By the authors' code: the last n frequencies times (1 + cos(linspace(0, pi, n))) / 2."""
  omega, plain = RoPE(theta, CoPE(context)).frequencies(head_dim).omega, plain_frequencies(theta, head_dim)
  assert (context * plain < 2 * np.pi).sum() == clipped
  np.testing.assert_allclose(omega[:-clipped], plain[:-clipped])
  np.testing.assert_allclose(omega[-clipped:], plain[-clipped:] * (1 + np.cos(np.linspace(0, np.pi, clipped))) / 2)
  assert omega[-1] == 0


# Every field of every scaling, and a value that must change the table at h = 64, theta = 1e4 and the length below.
CHANGES = {
  PI(4.0): {"factor": 5.0},
  NTK(4.0): {"factor": 5.0},
  NTKByParts(4.0, 2048): {"factor": 5.0, "original_context": 1024, "slow": 2.0, "fast": 16.0},
  YaRN(4.0, 2048): {
    "factor": 5.0,
    "original_context": 1024,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "attention_factor": 1.5,
  },
  DynamicNTK(2048, factor=2.0): {"original_context": 1024, "factor": 3.0},
  DynamicYaRN(2048): {"original_context": 1024, "beta_fast": 16.0, "beta_slow": 2.0},
  CoPE(2048): {"original_context": 1024},
  Llama3(4.0, 2048): {"factor": 5.0, "original_context": 1024, "low_freq_factor": 2.0, "high_freq_factor": 8.0},
}


@pytest.mark.parametrize("scaling", CHANGES, ids=lambda scaling: type(scaling).__name__)
def test_every_field_of_a_scaling_changes_its_table(scaling):
  assert set(CHANGES[scaling]) == {field.name for field in dataclasses.fields(scaling)}
  omega, attention_factor = RoPE(scaling=scaling).frequencies(64, 5000)
  for field, value in CHANGES[scaling].items():
    changed = dataclasses.replace(scaling, **{field: value})
    new_omega, new_factor = RoPE(scaling=changed).frequencies(64, 5000)
    assert not np.allclose(new_omega, omega, rtol=1e-3) or new_factor != attention_factor, field


# --- ALiBi -------------------------------------------------------------------------------------

FOURTEEN = [2.0**-h for h in range(1, 9)] + [2 ** -(0.5 + h) for h in range(6)]


@pytest.mark.parametrize(
  "num_heads, slopes", [(8, [2.0**-h for h in range(1, 9)]), (14, FOURTEEN), (15, [*FOURTEEN, 2**-6.5])]
)
def test_alibi_slopes_are_those_of_the_paper_digest(num_heads, slopes):
  np.testing.assert_allclose(alibi_slopes(num_heads), slopes, rtol=1e-6)


def test_alibi_slopes_are_blooms():
  torch = pytest.importorskip("torch")
  bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
  for num_heads in range(1, 40):
    bias_of_second_key = bloom.build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    np.testing.assert_allclose(alibi_slopes(num_heads), bias_of_second_key.numpy(), rtol=1e-6)


# --- patterns ----------------------------------------------------------------------------------


def test_rnope_swa_is_three_windowed_rope_layers_and_a_global_layer_without_embedding():
  windowed = Layer(RoPE(500.0), 256)
  assert layer_cycle(rnope_swa(256, theta=500.0)) == (windowed, windowed, windowed, Layer(None, None))


@pytest.mark.parametrize("positions", [RoPE(), ALiBi(), None])
def test_one_embedding_is_a_cycle_of_one_global_layer(positions):
  assert layer_cycle(positions) == (Layer(positions, None),)


# --- impossible values -------------------------------------------------------------------------


@pytest.mark.parametrize(
  "build, named",
  [
    (lambda: RoPE(theta=1.0), "RoPE.theta"),
    (lambda: RoPE(theta=math.nan), "RoPE.theta"),
    (lambda: PI(0.5), "PI.factor"),
    (lambda: PI(math.nan), "PI.factor"),
    (lambda: NTK(-1.0), "NTK.factor"),
    (lambda: NTKByParts(0.0, 64), "NTKByParts.factor"),
    (lambda: NTKByParts(2.0, 0), "NTKByParts.original_context"),
    (lambda: NTKByParts(2.0, 64, slow=4.0, fast=4.0), "NTKByParts.fast"),
    (lambda: YaRN(0.5, 64), "YaRN.factor"),
    (lambda: YaRN(2.0, 0), "YaRN.original_context"),
    (lambda: YaRN(2.0, 64, beta_fast=1.0, beta_slow=32.0), "YaRN.beta_fast"),
    (lambda: YaRN(2.0, 64, beta_slow=0.0), "YaRN.beta_slow"),
    (lambda: DynamicNTK(0), "DynamicNTK.original_context"),
    (lambda: DynamicNTK(64, factor=0.0), "DynamicNTK.factor"),
    (lambda: DynamicYaRN(-1), "DynamicYaRN.original_context"),
    (lambda: DynamicYaRN(64, beta_fast=1.0, beta_slow=32.0), "DynamicYaRN.beta_fast"),
    (lambda: Llama3(0.5, 64), "Llama3.factor"),
    (lambda: Llama3(2.0, 0), "Llama3.original_context"),
    (lambda: Llama3(2.0, 64, 4.0, 4.0), "Llama3.high_freq_factor"),
    (lambda: Layer(RoPE(), window=0), "Layer.window"),
    (lambda: LayerPattern(()), "LayerPattern.layers"),
  ],
)
def test_impossible_values_are_refused_by_name(build, named):
  with pytest.raises(ValueError, match=named) as error:
    build()
  assert "\n" not in str(error.value)
