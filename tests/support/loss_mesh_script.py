"""The training loss on eight simulated devices: run by test_summed_loss.py, which takes its shapes from here too."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax.aot import hlo
from drope_jax.aot.traffic import COLLECTIVES
from drope_jax.config import MeshConfig
from drope_jax.loss import summed_token_losses
from drope_jax.sharding import make_mesh, named_sharding

ROWS, LENGTH, WIDTH, VOCAB = 8, 10, 16, 96
JOBS = [
  {"data": 8},
  {"data": 1, "fsdp": 8},
  {"data": 2, "fsdp": 2, "tensor": 2},
  {"data": 2, "tensor": 2, "context": 2},
]
CHUNK = 4  # ragged


def arguments(dtype, vocab=VOCAB, width=WIDTH):
  """Embedding (float32), hidden states of `dtype`, targets, and weights, some of them 0."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((ROWS, LENGTH, width)), dtype)
  weight = jnp.asarray(rng.standard_normal((vocab, width)) * 0.3, jnp.float32)
  weights = rng.uniform(size=(ROWS, LENGTH)) * rng.integers(0, 2, (ROWS, LENGTH))
  targets = jnp.asarray(rng.integers(0, vocab, (ROWS, LENGTH)), jnp.int32)
  return weight, x, targets, jnp.asarray(weights, jnp.float32)


def loss_and_gradients(weight, x, targets, weights, **settings):
  """((total, nll), gradients of the total with respect to weight, x and weights)."""

  def total(weight, x, weights):
    found = summed_token_losses({"embedding": weight}, x, targets, weights, **settings)
    return found.total, found.nll

  (value, nll), gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(weight, x, weights)
  return (value, nll), gradients


def largest_collectives(text: str) -> dict[str, int]:
  """Bytes of the largest result of a collective, in all and in loops."""
  program = hlo.parse(text)
  counts, _ = hlo.runs(program)
  sizes = [
    (sum(shape.bytes for shape in instruction.shapes), counts[name])
    for name, instructions in program.computations.items()
    for instruction in instructions
    if instruction.opcode.removesuffix("-start") in COLLECTIVES
  ]
  return {
    "largest": max(size for size, _ in sizes),
    "largest_in_loop": max((size for size, runs in sizes if runs > 1), default=0),
  }


def on_mesh(axes: dict[str, int]) -> dict:
  mesh = make_mesh(MeshConfig(**axes))
  dimensions = [("vocab", "embed"), ("batch", "length", "features"), ("batch", "length"), ("batch", "length")]
  with jax.set_mesh(mesh):
    placed = [
      jax.device_put(x, named_sharding(mesh, names))
      for x, names in zip(arguments(jnp.float32), dimensions, strict=True)
    ]
    compiled = jax.jit(functools.partial(loss_and_gradients, chunk=CHUNK, z_loss=0.1)).lower(*placed).compile()
    sums, gradients = compiled(*placed)
  report = {"sums": [float(x) for x in sums], "gradients": [np.asarray(g).tolist() for g in gradients]}
  return report | largest_collectives(compiled.as_text())


if __name__ == "__main__":
  answers = [on_mesh(job) for job in json.load(sys.stdin)]
  print(json.dumps({"devices": jax.device_count(), "answers": answers}))
