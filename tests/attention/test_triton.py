"""The Triton kernel against the reference, in Pallas' interpreter, and which blocks it visits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.attention import Segments, attention
from drope_jax.attention import triton as kernel
from drope_jax.attention.scores import Limits

DOCUMENTS = np.repeat([0, 1, 2, 3], [30, 90, 60, 20])  # of rows of 200 tokens: whole blocks, parts of them, and borders


def arrays(queries: int = 200, keys: int = 200, heads: int = 4, kv_heads: int = 2, head_dim: int = 24):
  rng = np.random.default_rng(0)
  shapes = [(2, queries, heads, head_dim), (2, keys, kv_heads, head_dim), (2, keys, kv_heads, head_dim)]
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def ours(q, k, v, *, offset=0, window=None, segments=None, softcap=None):
  scaled = q / np.sqrt(q.shape[-1])
  return kernel.triton_attention(scaled, k, v, offset, Limits(window, softcap), segments, interpret=True)


def value_and_gradients(function, inputs, **settings):
  def loss(inputs):
    out = function(*inputs, **settings)
    return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

  (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
  return out, *gradients


def documents() -> Segments:
  ids = jnp.asarray([DOCUMENTS, DOCUMENTS[::-1] * -1], jnp.int32)
  return Segments(ids, ids)


CASES = {
  "documents and a window": {"segments": True, "window": 40},
  "documents": {"segments": True},
  "a cap": {"softcap": 2.0},
  "a window": {"window": 70},
}


@pytest.mark.parametrize(
  "case",
  [name if name == "documents and a window" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_it_is_the_reference_with_the_reference_s_gradients(case):
  settings = {**CASES[case], "segments": documents() if "segments" in CASES[case] else None}
  expected = value_and_gradients(functools.partial(attention, kernel="reference"), arrays(), **settings)
  for found, wanted in zip(value_and_gradients(ours, arrays(), **settings), expected, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, pytest.param(50, marks=pytest.mark.slow)])
def test_rows_may_have_cached_keys_each_as_many_as_it_has(window):
  inputs, settings = arrays(queries=40), {"offset": jnp.array([3, 130]), "window": window}
  expected = attention(*inputs, kernel="reference", **settings)
  np.testing.assert_allclose(jax.jit(functools.partial(ours, **settings))(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_query_that_sees_nothing_gets_nothing_and_gives_no_gradient():
  segments = Segments(jnp.asarray([DOCUMENTS, DOCUMENTS]), jnp.asarray([DOCUMENTS + 10, DOCUMENTS]))
  out, *gradients = value_and_gradients(ours, arrays(), segments=segments)
  assert not out[0].any() and out[1].all(axis=(-1, -2)).all()
  for gradient in gradients:
    assert not gradient[0].any() and jnp.isfinite(gradient).all()


def visited(queries: int, offset: int = 0, window: int | None = None, ids: np.ndarray | None = None) -> list:
  """Of each block of 16 queries, the blocks of 16 keys that its program goes through."""
  q, k, v = (jnp.zeros((1, queries, 1, 16)) for _ in range(3))
  call = kernel._Call(q, k, v, jnp.array([offset]), *(None if ids is None else jnp.asarray(ids)[None] for _ in "qk"))
  reach = kernel._reach(kernel._meetings(call, Limits(window, None), kernel._Sizes(16, 16, 4)))
  return [list(range(first, end)) for first, end in zip(*(x[0].tolist() for x in reach), strict=True)]


def test_blocks_in_which_nothing_is_visible_are_skipped():
  assert visited(64) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
  assert visited(64, window=16) == [[0], [0, 1], [1, 2], [2, 3]]
  assert visited(64, ids=np.repeat([0, 1, 2], [16, 24, 24])) == [[0], [1], [1, 2], [2, 3]]
  assert visited(64, ids=np.arange(64)) == [[0], [1], [2], [3]]
