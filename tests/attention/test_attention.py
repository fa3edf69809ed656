"""Attention: what a query sees, and that the blockwise kernel is the reference in linear memory."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax import attention as attention_module
from drope_jax.attention import Segments, attention, blockwise, unrolled
from drope_jax.positions import ALiBi

BLOCK = 6  # of queries and of keys, in the tests with small_blocks
KERNELS = ["reference", "blockwise"]


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(blockwise, "_BLOCK", BLOCK)


@pytest.fixture
def eager():
  """Loops run as Python loops: the same operations, and no compilation for each combination of features."""
  with jax.disable_jit():
    yield


def qkv(num_queries, num_keys, heads=(4, 2), batch=2, head_dim=8, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shapes = [(num_queries, heads[0]), (num_keys, heads[1]), (num_keys, heads[1])]
  return [jnp.asarray(rng.standard_normal((batch, n, h, head_dim)), dtype) for n, h in shapes]


def documents(batch, length, seed=0):
  """Ascending document numbers, cut at random places that differ by row."""
  return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (batch, length)).cumsum(1), jnp.int32)


def by_definition(q_BTHh, k_BSKh, v_BSKh, offset_B, window=None, segments=None, bias=None, logit_scale=1.0):
  """The docstring of `attention`, in loops."""
  q_BTHh, k_BSKh, v_BSKh = (np.asarray(x, np.float64) for x in (q_BTHh, k_BSKh, v_BSKh))
  batch, num_queries, num_heads, head_dim = q_BTHh.shape
  num_keys, num_kv_heads = k_BSKh.shape[1:3]
  scale_H = np.broadcast_to(logit_scale, (num_heads,)) / math.sqrt(head_dim)
  out_BTHh = np.zeros_like(q_BTHh)
  for b, t, head in itertools.product(range(batch), range(num_queries), range(num_heads)):
    i, kv_head = offset_B[b] + t, head // (num_heads // num_kv_heads)
    seen = [j for j in range(num_keys) if j <= i]
    if window is not None:
      seen = [j for j in seen if i - j < window]
    if segments is not None:
      seen = [j for j in seen if segments.queries[b, t] == segments.keys[b, j]]
    logits = scale_H[head] * k_BSKh[b, seen, kv_head] @ q_BTHh[b, t, head]
    if bias is not None:
      logits += bias.of_distance(*(coefficient[head] for coefficient in bias.coefficients), i - np.array(seen))
    weights = np.exp(logits - logits.max())
    out_BTHh[b, t, head] = weights / weights.sum() @ v_BSKh[b, seen, kv_head]
  return out_BTHh


SHAPES = {
  # T, S, (H, K), offset of each row
  "T = S, whole blocks, a key head for each query head": (12, 12, (2, 2), (0, 0)),
  "T = S, ragged blocks, grouped heads": (10, 10, (4, 2), (0, 0)),
  "T < S, ragged blocks, grouped heads, rows at their own offsets": (10, 13, (4, 2), (3, 1)),
}
# The slow one has nothing that neither of the others has.
SHAPES_BY_DEFAULT = [
  pytest.param(shape, marks=pytest.mark.slow) if shape == "T = S, ragged blocks, grouped heads" else shape
  for shape in SHAPES
]
# Each feature alone, and all together; their pairs are slow tests.
MASKS = [
  masks if sum(map(bool, masks)) in (0, 1, 3) else pytest.param(masks, marks=pytest.mark.slow)
  for masks in itertools.product([None, 3], [False, True], [False, True])
]


def mask_features(masks, num_queries, num_keys, num_heads, offset_B):
  window, segmented, biased = masks
  segments = None
  if segmented:
    keys_BS = documents(2, num_keys)
    queries_BT = jnp.stack([keys_BS[b, offset : offset + num_queries] for b, offset in enumerate(offset_B)])
    segments = Segments(queries_BT, keys_BS)
  return {"window": window, "segments": segments, "bias": ALiBi().bias(num_heads) if biased else None}


def values_and_gradients(kernel, inputs, offset, d_out_BTHh, **features):
  """The output, and the gradients of q, k, v and logit_scale."""

  def loss(q_BTHh, k_BSKh, v_BSKh, logit_scale_H):
    out_BTHh = attention(q_BTHh, k_BSKh, v_BSKh, offset=offset, logit_scale=logit_scale_H, kernel=kernel, **features)
    return (out_BTHh * d_out_BTHh).sum(), out_BTHh

  (_, out_BTHh), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*inputs)
  return out_BTHh, gradients


@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: f"window={masks[0]},segments={masks[1]},alibi={masks[2]}")
@pytest.mark.parametrize("shape", SHAPES_BY_DEFAULT)
def test_both_kernels_are_the_definition_and_their_gradients_agree(shape, masks, small_blocks, eager):
  num_queries, num_keys, heads, offset_B = SHAPES[shape]
  inputs = [*qkv(num_queries, num_keys, heads), jnp.linspace(0.5, 2.0, heads[0])]
  features = mask_features(masks, num_queries, num_keys, heads[0], offset_B)
  d_out_BTHh = qkv(num_queries, num_keys, heads)[0][::-1]
  results = {
    kernel: values_and_gradients(kernel, inputs, jnp.array(offset_B), d_out_BTHh, **features) for kernel in KERNELS
  }
  expected_BTHh = by_definition(*inputs[:3], offset_B, logit_scale=inputs[3], **features)
  for kernel in KERNELS:
    np.testing.assert_allclose(results[kernel][0], expected_BTHh, atol=1e-5, err_msg=kernel)
  gradients = [results[kernel][1] for kernel in KERNELS]
  for name, expected, ours in zip(["q", "k", "v", "logit_scale"], *gradients, strict=True):
    np.testing.assert_allclose(ours, expected, atol=3e-5, err_msg=f"gradient of {name}")
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("masks", [MASKS[0], MASKS[-1]], ids=["causal alone", "window, segments and alibi"])
def test_the_compiled_blockwise_kernel_is_the_reference(masks, small_blocks):
  num_queries, num_keys, heads, offset_B = SHAPES["T < S, ragged blocks, grouped heads, rows at their own offsets"]
  inputs = [*qkv(num_queries, num_keys), jnp.linspace(0.5, 2.0, 4)]
  features = mask_features(masks, num_queries, num_keys, heads[0], offset_B)

  def run(kernel, inputs):
    return values_and_gradients(kernel, inputs, jnp.array(offset_B), inputs[0], **features)

  compiled = jax.jit(run, static_argnums=0)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=3e-5), *(compiled(kernel, inputs) for kernel in KERNELS)
  )


@pytest.mark.parametrize("num_queries, num_keys, offset", [(1, 13, 9), (13, 8, 0)])
@pytest.mark.parametrize("window", [None, 5])
def test_both_kernels_are_the_definition_for_any_lengths(num_queries, num_keys, offset, window, small_blocks, eager):
  window = None if num_queries > num_keys else window  # the last queries of (13, 8) would see no key
  inputs = qkv(num_queries, num_keys)
  expected = by_definition(*inputs, offset_B=(offset, offset), window=window)
  for kernel in KERNELS:
    out = attention(*inputs, offset=offset, window=window, kernel=kernel)
    np.testing.assert_allclose(out, expected, atol=1e-5, err_msg=kernel)


@pytest.mark.parametrize("window", [None, 300])
def test_long_rows_are_those_of_the_reference_too(window):
  """Their blocks are wider."""
  inputs = [*qkv(2100, 2100, heads=(2, 1), batch=1), jnp.ones(2)]
  ours, reference = (
    jax.jit(values_and_gradients, static_argnames=("kernel", "window"))(
      kernel, inputs, 0, inputs[0][:, ::-1], window=window
    )
    for kernel in ("blockwise", "reference")
  )
  jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-4, rtol=1e-4), ours, reference)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_query_that_sees_no_key_gets_no_value_from_it(kernel, small_blocks, eager):
  # The query is at index 20, its window reaches back to 19, and there are keys up to 12 only.
  out = attention(*qkv(1, 13), offset=20, window=2, kernel=kernel)
  np.testing.assert_array_equal(out, np.zeros_like(out))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_stays_near_float32(kernel, small_blocks, eager):
  inputs = qkv(10, 10, dtype=jnp.bfloat16)
  features = dict(window=6, bias=ALiBi().bias(4), logit_scale=1.3)
  out = attention(*inputs, kernel=kernel, **features)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), by_definition(*inputs, offset_B=(0, 0), **features), atol=3e-2)


def test_bfloat16_gradients_stay_near_float32(small_blocks, eager):
  inputs = qkv(10, 10, dtype=jnp.bfloat16)

  def gradients(kernel, *inputs):
    def loss(*inputs):
      return (attention(*inputs, window=6, kernel=kernel).astype(jnp.float32) ** 2).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(*inputs)

  expected = gradients("reference", *(x.astype(jnp.float32) for x in inputs))
  for ours, theirs in zip(gradients("blockwise", *inputs), expected, strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.02 * np.abs(theirs).max())


# --- what a query sees -------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_a_window_holds_that_many_keys_the_query_itself_included(kernel, window, small_blocks, eager):
  q_BTHh, k_BSKh, v_BSKh = qkv(10, 10, head_dim=10)
  identity = jnp.broadcast_to(jnp.eye(10)[:, None], v_BSKh.shape)  # as values: the output is the weights
  weights_BTHS = attention(q_BTHh, k_BSKh, identity, window=window, kernel=kernel)
  distance_TS = np.arange(10)[:, None] - np.arange(10)
  seen_TS = (distance_TS >= 0) & (distance_TS < (window or 10))
  np.testing.assert_array_equal(weights_BTHS > 0, np.broadcast_to(seen_TS[:, None], weights_BTHS.shape))
  np.testing.assert_allclose(weights_BTHS.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_segments_are_separate_attention_calls(kernel, small_blocks, eager):
  inputs = qkv(10, 10)
  numbers = jnp.array([[0] * 3 + [1] * 6 + [2]] * 2)
  packed = attention(*inputs, segments=Segments(numbers, numbers), kernel=kernel)
  for start, end in [(0, 3), (3, 9), (9, 10)]:
    alone = by_definition(*(x[:, start:end] for x in inputs), offset_B=(0, 0))
    np.testing.assert_allclose(packed[:, start:end], alone, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_logit_scale_is_per_head_and_multiplies_the_queries(kernel, small_blocks, eager):
  q_BTHh, k_BSKh, v_BSKh = qkv(10, 10)
  scale_H = jnp.array([0.5, 1.0, 2.0, 3.0])
  out_BTHh = attention(q_BTHh, k_BSKh, v_BSKh, logit_scale=scale_H, kernel=kernel)
  np.testing.assert_allclose(out_BTHh, attention(q_BTHh * scale_H[:, None], k_BSKh, v_BSKh, kernel=kernel), atol=1e-5)
  for head, scale in enumerate(scale_H.tolist()):
    alone_BTHh = attention(q_BTHh, k_BSKh, v_BSKh, logit_scale=scale, kernel=kernel)
    np.testing.assert_allclose(out_BTHh[:, :, head], alone_BTHh[:, :, head], atol=1e-6)
  assert np.abs(out_BTHh - attention(q_BTHh, k_BSKh, v_BSKh, kernel=kernel))[:, :, [0, 2, 3]].max() > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_mask_attention_is_permutation_equivariant_and_with_it_not(kernel, small_blocks, eager):
  inputs = qkv(12, 12, heads=(2, 2))
  permutation = np.array([5, 2, 7, 11, 0, 9, 1, 10, 6, 3, 4, 8])

  def gap(offset):
    permuted = attention(*(x[:, permutation] for x in inputs), offset=offset, kernel=kernel)
    return np.abs(permuted - attention(*inputs, offset=offset, kernel=kernel)[:, permutation]).max()

  assert gap(offset=11) < 1e-5  # every index is at least 11: all twelve keys are visible to all queries
  assert gap(offset=0) > 0.1


# --- the blockwise kernel does no more than it must --------------------------------------------


@pytest.mark.parametrize(
  "num_queries, num_keys, offset, window",
  [
    (10, 10, 0, None),
    (10, 10, 0, 1),
    (10, 10, 0, 2),
    (10, 13, 0, None),
    (10, 13, 3, 4),
    (10, 13, 3, 1),
    (10, 24, 8, 7),
  ],
)
def test_just_the_blocks_with_a_visible_pair_are_computed(
  num_queries, num_keys, offset, window, small_blocks, eager, monkeypatch
):
  visited = {"forward": [], "backward": []}
  phase = "forward"
  scores = blockwise.biased_scores

  def counting(q, k, q_index_BT, k_index_S, *rest):
    visited[phase].append((int(q_index_BT[0, 0]), int(k_index_S[0])))
    return scores(q, k, q_index_BT, k_index_S, *rest)

  monkeypatch.setattr(blockwise, "biased_scores", counting)
  inputs = qkv(num_queries, num_keys)
  out, backward = jax.vjp(lambda *x: attention(*x, offset=offset, window=window, kernel="blockwise"), *inputs)
  phase = "backward"
  backward(out)

  padded_queries, padded_keys = (-(-n // BLOCK) * BLOCK for n in (num_queries, num_keys))
  expected = []
  for q_start, k_start in itertools.product(range(0, padded_queries, BLOCK), range(0, padded_keys, BLOCK)):
    i, j = np.meshgrid(offset + q_start + np.arange(BLOCK), k_start + np.arange(BLOCK), indexing="ij")
    if ((j <= i) & (i - j < (window or 1000))).any():
      expected.append((offset + q_start, k_start))
  assert sorted(visited["forward"]) == expected
  assert sorted(visited["backward"]) == expected
  assert len(expected) < padded_queries * padded_keys // BLOCK**2  # there was something to skip


def test_what_lies_in_skipped_blocks_does_not_matter_even_if_it_is_nan(small_blocks, eager):
  q_BTHh, k_BSKh, v_BSKh = qkv(10, 10)
  bad_k_BSKh, bad_v_BSKh = (x.at[:, BLOCK:].set(jnp.nan) for x in (k_BSKh, v_BSKh))
  inputs = (q_BTHh, bad_k_BSKh, bad_v_BSKh)
  assert not np.isnan(attention(*inputs, kernel="blockwise")[:, :BLOCK]).any()
  assert np.isnan(attention(*inputs, kernel="reference")[:, :BLOCK]).any()  # 0 * nan: masking alone would not do


FUNCTIONS = {"forward": lambda function: function, "backward": lambda function: jax.grad(function, argnums=(0, 1, 2))}


def compiled_temporary_bytes(kernel, direction, length):
  inputs = [jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)] * 3
  numbers = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def function(q_BTHh, k_BSKh, v_BSKh, numbers_BT):
    segments = Segments(numbers_BT, numbers_BT)
    return attention(
      q_BTHh, k_BSKh, v_BSKh, segments=segments, bias=ALiBi().bias(2), window=length // 2, kernel=kernel
    ).sum()

  compiled = jax.jit(FUNCTIONS[direction](function)).lower(*inputs, numbers).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("direction", FUNCTIONS)
def test_blockwise_memory_is_linear_in_the_length(direction):
  # With the real block size.
  middle, long = (compiled_temporary_bytes("blockwise", direction, length) for length in (2048, 4096))
  assert long <= 2.2 * middle
  assert long < 4096 * 4096  # less than one byte for each pair
  assert compiled_temporary_bytes("reference", direction, 2048) > 2048 * 2048 * 4  # this measure would have seen it


# --- the call ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: f"window={masks[0]},segments={masks[1]},alibi={masks[2]}")
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["a key head each", "grouped heads"])
def test_the_unrolled_kernel_is_the_reference_with_its_gradients(heads, masks, monkeypatch, eager):
  monkeypatch.setattr(unrolled, "_SMALLEST_UNROLLED", 1)  # two blocks of 5 queries
  inputs = [*qkv(10, 10, heads), jnp.linspace(0.5, 2.0, heads[0])]
  features = mask_features(masks, 10, 10, heads[0], (0, 0))
  d_out_BTHh = qkv(10, 10, heads)[0][::-1]
  expected, ours = (
    values_and_gradients(kernel, inputs, 0, d_out_BTHh, **features) for kernel in ("reference", "unrolled")
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), ours, expected)


def test_the_unrolled_kernel_gives_nothing_to_a_query_that_sees_nothing(eager):
  segments = Segments(jnp.array([[0, 0, 7, 7]] * 2), jnp.zeros((2, 4), jnp.int32))
  out = attention(*qkv(4, 4), segments=segments, kernel="unrolled")
  np.testing.assert_array_equal(out[:, 2:], np.zeros_like(out[:, 2:]))
  assert np.isfinite(out).all() and np.abs(out[:, :2]).min() > 0


def test_the_unrolled_kernel_refuses_cached_keys():
  with pytest.raises(ValueError, match="'unrolled', which cannot take cached keys"):
    attention(*qkv(4, 8), offset=4, kernel="unrolled")


def test_auto_takes_the_unrolled_kernel_for_short_whole_rows_and_the_reference_for_others():
  def program(kernel, num_keys, offset):
    call = functools.partial(attention, kernel=kernel, offset=offset)
    return str(jax.make_jaxpr(call)(*qkv(8, num_keys)))

  assert program("auto", 8, 0) == program("unrolled", 8, 0) != program("reference", 8, 0)
  assert program("auto", 13, 5) == program("reference", 13, 5)


def test_auto_takes_the_blockwise_kernel_for_long_rows(monkeypatch):
  inputs = qkv(8, 8)

  def program(kernel):
    return str(jax.make_jaxpr(functools.partial(attention, kernel=kernel))(*inputs))

  assert program("auto") != program("blockwise")
  monkeypatch.setattr(attention_module, "_LARGEST_REFERENCE", 8 * 8 - 1)
  assert program("auto") == program("blockwise")


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="3 query heads cannot share 2 key/value heads"):
    attention(*qkv(4, 4, heads=(3, 2)))


def test_an_unknown_kernel_is_refused_and_the_known_ones_named():
  with pytest.raises(ValueError, match="'flash'; allowed: auto, reference, blockwise"):
    attention(*qkv(4, 4), kernel="flash")
