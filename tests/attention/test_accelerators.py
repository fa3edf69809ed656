"""The accelerators' kernels against the reference, in the forms that run on a CPU."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.attention import Segments, attention
from drope_jax.attention import accelerators as kernels
from drope_jax.config import MeshConfig
from drope_jax.errors import ConfigError
from drope_jax.positions import ALiBi
from drope_jax.sharding import make_mesh


@pytest.fixture
def on_cpu(monkeypatch):
  """Splash in Pallas' interpreter, cuDNN's call by XLA."""
  monkeypatch.setitem(kernels.ACCELERATED, "splash", functools.partial(kernels.splash, interpret=True))
  monkeypatch.setitem(kernels.ACCELERATED, "cudnn", functools.partial(kernels.cudnn, implementation="xla"))


def inputs(length: int, dtype=jnp.float32):
  rng = np.random.default_rng(length)
  q, k, v = (jnp.asarray(rng.normal(size=(2, length, heads, 16)), dtype) for heads in (4, 2, 2))
  segments_BT = jnp.asarray(np.sort(rng.integers(0, 4, (2, length)), axis=1), jnp.int32)
  return (q, k, v), Segments(segments_BT, segments_BT)


@pytest.mark.slow  # the interpreter takes its time
# Whole blocks, and rows that must be padded.
@pytest.mark.parametrize(("length", "segmented", "window"), [(128, False, None), (200, True, None), (200, False, 40)])
def test_splash_is_the_reference(on_cpu, length, segmented, window):
  arrays, segments = inputs(length)
  settings = {"window": window, "segments": segments if segmented else None, "logit_scale": 1.3}
  compare(arrays, "splash", 2e-5, settings)


@pytest.mark.parametrize("window", [None, 40])
def test_cudnn_is_asked_for_the_same_function(on_cpu, window):
  arrays, _ = inputs(96, jnp.bfloat16)
  compare(arrays, "cudnn", 3e-2, {"window": window, "logit_scale": jnp.array([0.5, 1.0, 1.5, 2.0])})


def test_cudnn_is_asked_for_the_cached_keys_up_to_each_rows_own(on_cpu):
  arrays, _ = inputs(96, jnp.bfloat16)
  q, k, v = arrays[0][:, :1], *arrays[1:]
  decode = jax.jit(functools.partial(attention, offset=jnp.array([0, 70])), static_argnames="kernel")
  ours, expected = (decode(q, k, v, kernel=kernel) for kernel in ("cudnn", "reference"))
  np.testing.assert_allclose(ours.astype(jnp.float32), expected.astype(jnp.float32), rtol=3e-2, atol=3e-2)


def compare(arrays, kernel: str, tolerance: float, settings: dict):
  """Values and gradients of `kernel` against those of the reference."""

  def loss(arrays, kernel):
    out = attention(*arrays, kernel=kernel, **settings)
    return (out.astype(jnp.float32) * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

  value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  (_, expected), expected_grads = value_and_grad(arrays, "reference")
  (_, out), grads = value_and_grad(arrays, kernel)
  for ours, theirs in zip((out, *grads), (expected, *expected_grads), strict=True):
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
  ("kernel", "settings", "reason"),
  [
    ("splash", {"bias": ALiBi().bias(4)}, "a bias"),
    ("splash", {"offset": jnp.array([3])}, "cached keys"),
    ("cudnn", {"bias": ALiBi().bias(4)}, "a bias"),
    ("cudnn", {"segments": "given"}, "segments"),
    ("cudnn", {"offset": jnp.array([3, 4])}, "cached keys for more than one query"),
    ("cudnn", {"head_dim": 20}, r"heads of 20 \(only multiples of 8 up to 128 on this GPU\)"),
    ("cudnn", {"head_dim": 136}, "heads of 136"),
    ("triton", {"bias": ALiBi().bias(4)}, "a bias"),
    ("triton", {"head_dim": 264}, r"heads of 264 \(at most 256\)"),
    ("triton", {}, "float32"),
    ("cudnn", {}, r"float32 \(only bfloat16 and float16\)"),
  ],
)
def test_what_a_kernel_cannot_do_is_said(kernel, settings, reason):
  arrays, segments = inputs(128)
  if "segments" in settings:
    settings = {"segments": segments}
  if "head_dim" in settings:
    arrays, settings = [jnp.ones((*x.shape[:3], settings["head_dim"]), jnp.bfloat16) for x in arrays], {}
  with pytest.raises(ConfigError, match=f"ComputeConfig.attention is '{kernel}', which cannot take {reason}"):
    attention(*arrays, kernel=kernel, **settings)


def test_auto_takes_another_kernel_where_the_accelerators_cannot_serve(monkeypatch):
  arrays, _ = inputs(128)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # whose kernel takes no float32
  np.testing.assert_array_equal(attention(*arrays), attention(*arrays, kernel="unrolled"))


@pytest.mark.slow  # the interpreter takes its time
def test_splash_on_rows_in_pieces_is_the_reference():
  """In a process with four devices: two for the halves of each row, two for the heads."""
  from support.eight_devices import devices_flags  # which that process does not find

  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices_flags(4)}
  done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.splitlines() == [
    "agrees",
    "agrees",
    "rows of 200 tokens in 2 pieces (each must be a multiple of 256)",
  ]


def rows_in_pieces():
  kernels.ACCELERATED["splash"] = functools.partial(kernels.splash, interpret=True)
  with jax.set_mesh(make_mesh(MeshConfig(data=1, tensor=2, context=2))):
    for window, segmented in ((None, True), (40, False)):
      arrays, segments = inputs(512)
      settings = {"window": window, "segments": segments if segmented else None, "logit_scale": 1.3}
      compare(arrays, "splash", 2e-5, settings)
      print("agrees")
    (q, k, _), _ = inputs(200)
    print(kernels.obstacle("splash", q, k, offset=0, segments=None, bias=None).text)


if __name__ == "__main__":
  rows_in_pieces()
