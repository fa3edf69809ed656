"""The attention kernels of this device on typical calls: their error against the reference, and their speed."""

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from drope_jax.attention import Segments, attention
from drope_jax.attention.accelerators import PLATFORMS, obstacle
from drope_jax.model_config import ModelConfig

# The settings of each call; without any, rows attend to themselves.
CALLS: dict[str, dict[str, Any]] = {
  "documents": {"documents": True},
  "rows": {},
  "one token": {"queries": 1},
  "prompt": {"queries": 256},
  "heads of 256": {"head_dim": 256},
  "window": {"window": 128},
}


def kernels_of_calls(model: ModelConfig, length: int, dtype: str, rounds: int = 3) -> Iterator[dict[str, Any]]:
  """One record per call and kernel: relative error of values and gradients, and seconds to compute both.

  The error is the largest absolute error over the largest value of the reference in float32. Calls with cached keys
  have values only.
  """
  for name, call in CALLS.items():
    head_dim, queries = call.get("head_dim", model.head_dim), min(call.get("queries", length), length)
    shapes = [(4, queries, model.num_heads, head_dim), *[(4, length, model.num_kv_heads, head_dim)] * 2]
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    numbers = jnp.broadcast_to(jnp.arange(length) // max(length // 5, 1), (4, length)).astype(jnp.int32)
    settings: dict[str, Any] = {
      "segments": Segments(numbers, numbers) if call.get("documents") else None,
      "window": call.get("window"),
      "offset": 0 if queries == length else jnp.arange(4, dtype=jnp.int32) * ((length - queries) // 4),
    }
    expected = values([x.astype(jnp.float32) for x in arrays], "reference", settings)()
    q, k = arrays[:2]
    for kernel in (*PLATFORMS.get(jax.default_backend(), ()), "blockwise"):
      hindrance = obstacle(kernel, q, k, bias=None, **settings) if kernel != "blockwise" else None
      if hindrance is not None:
        continue
      run = values(arrays, kernel, settings)
      found = jax.block_until_ready(run())
      error = max(
        float(jnp.abs(ours.astype(jnp.float32) - theirs).max() / jnp.abs(theirs).max())
        for ours, theirs in itertools.zip_longest(found, expected)
      )
      seconds = []
      for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready([run() for _ in range(5)])
        seconds.append((time.perf_counter() - begin) / 5)
      yield {"call": name, "kernel": kernel, "error": error, "seconds": statistics.median(seconds)}


def values(arrays: list[jax.Array], kernel: str, settings: dict[str, Any]):
  """A compiled function without arguments that returns attention's values, and its gradients if no keys are cached."""
  cached = arrays[0].shape[1] != arrays[1].shape[1]

  def run(arrays):
    def loss(arrays):
      with jax.default_matmul_precision("highest" if kernel == "reference" else "default"):
        out = attention(*arrays, kernel=kernel, **settings)
      return (out.astype(jnp.float32) * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    if cached:
      return (loss(arrays)[1],)
    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
    return out, *gradients

  compiled = jax.jit(run)
  return lambda: compiled(arrays)
