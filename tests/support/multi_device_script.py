"""Run by test_multi_device.py in a process with its own number of devices: `CORPUS WORKDIR`, a list of jobs on stdin.

A job is {"run": directory, "mesh": {...}, "crash_at": step or null}, or {"lengths": [...], "mesh": {...}}; the answers,
a line of JSON, are what became of them.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from support.tiny_run import losses, tiny_model, tiny_run

from drope_jax import checkpoint, metrics
from drope_jax import train as train_module
from drope_jax.config import ComputeConfig, MeshConfig
from drope_jax.loss import token_losses
from drope_jax.model import hidden_states
from drope_jax.parameters import map_specs
from drope_jax.sharding import make_mesh, named_sharding

MODEL = tiny_model(num_kv_heads=4)
LONG_MODEL = tiny_model(num_kv_heads=1, d_ff=64)  # whose gathered keys are a small part of its activations


class Crash(Exception):
  pass


def curve_config(corpus: str, mesh: dict, steps: int = 6):
  """The run whose loss curve is that of every mesh; its position is saved half-way."""
  return tiny_run(
    corpus,
    model=MODEL,
    mesh=MeshConfig(**mesh),
    compute=ComputeConfig(dtype="float32"),
    steps=steps,
    checkpoint_every=steps // 2,
  )


def run(corpus: str, workdir: Path, mesh: dict, crash_at: int | None) -> dict:
  """Trains; returns what the compiled step takes on each device, in bytes."""
  write, jit_train_step = metrics.JsonLines.write, train_module.jit_train_step
  memory = {}

  def watched(self, record):
    write(self, record)
    if record["step"] == crash_at:
      raise Crash

  def compiled_step(*arguments):
    jitted, compiled = jit_train_step(*arguments), []

    def step(*arguments):
      if not compiled:
        compiled.append(jitted.lower(*arguments).compile())
        memory["arguments"] = compiled[0].memory_analysis().argument_size_in_bytes
      return compiled[0](*arguments)

    return step

  metrics.JsonLines.write, train_module.jit_train_step = watched, compiled_step
  try:
    train_module.train(curve_config(corpus, mesh), workdir)
  except Crash:
    pass
  finally:
    metrics.JsonLines.write, train_module.jit_train_step = write, jit_train_step
  return memory


def loaded_on(workdir: Path, mesh: dict) -> dict:
  """Where weights lie that are loaded alone, and their sum."""
  params = checkpoint.load(workdir, mesh=make_mesh(MeshConfig(**mesh))).params
  return {
    "shard": list(params["layers"]["gate"].addressable_shards[0].data.shape),
    "shape": list(params["layers"]["gate"].shape),
    "sum": float(abs(params["embedding"]).sum()),
  }


def evaluation_memory(mesh: dict, lengths: list[int]) -> list[int]:
  """Temporary bytes on each device of the losses of one row of each length."""
  on = make_mesh(MeshConfig(**mesh))
  params = map_specs(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=named_sharding(on, spec.dimensions)),
    LONG_MODEL,
  )
  compute = ComputeConfig(dtype="float32", attention="blockwise")

  def row_losses(params, tokens):
    x_BTD, *_ = hidden_states(params, LONG_MODEL, tokens[:, :-1], compute=compute)
    return token_losses(params, x_BTD, tokens[:, 1:], compute.loss_chunk).nll_BT

  found = []
  with jax.set_mesh(on):
    for length in lengths:
      tokens = jax.ShapeDtypeStruct((1, length + 1), jnp.int32, sharding=named_sharding(on, ("features", "features")))
      found.append(jax.jit(row_losses).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes)
  return found


def answer(job: dict, corpus: str, workdir: Path) -> dict:
  if "lengths" in job:
    return {"temporary": evaluation_memory(job["mesh"], job["lengths"])}
  directory = workdir / job["run"]
  memory = run(corpus, directory, job["mesh"], job.get("crash_at"))
  return {"losses": losses(directory), "memory": memory, "loaded": loaded_on(directory, job["mesh"])}


if __name__ == "__main__":
  corpus, workdir = sys.argv[1], Path(sys.argv[2])
  answers = [answer(job, corpus, workdir) for job in json.load(sys.stdin)]
  print(json.dumps({"devices": jax.device_count(), "answers": answers}))
