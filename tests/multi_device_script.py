"""Run by test_multi_device.py in a process with its own number of devices: `CORPUS WORKDIR`, a job a line on stdin.

A job is {"run": directory, "mesh": {...}, "crash_at": step or null}; the answer, a line of JSON, is what became of it.
"""

import json
import sys
from pathlib import Path

import jax
from tiny_run import losses, tiny_model, tiny_run

from drope_jax import checkpoint, metrics
from drope_jax.config import ComputeConfig, MeshConfig
from drope_jax.sharding import make_mesh
from drope_jax.train import train


class Crash(Exception):
  pass


def run(corpus: str, workdir: Path, mesh: dict, crash_at: int | None) -> None:
  write = metrics.JsonLines.write

  def watched(self, record):
    write(self, record)
    if record["step"] == crash_at:
      raise Crash

  metrics.JsonLines.write = watched
  config = tiny_run(
    corpus,
    model=tiny_model(num_kv_heads=4),
    mesh=MeshConfig(**{"data": 1, **mesh}),
    compute=ComputeConfig(dtype="float32"),
    steps=12,
    checkpoint_every=6,
  )
  try:
    train(config, workdir)
  except Crash:
    pass
  finally:
    metrics.JsonLines.write = write


def loaded_on(workdir: Path, mesh: dict) -> dict:
  """Where weights lie that are loaded alone, and their sum."""
  params = checkpoint.load(workdir, mesh=make_mesh(MeshConfig(**{"data": 1, **mesh}))).params
  return {
    "shard": list(params["layers"]["gate"].addressable_shards[0].data.shape),
    "shape": list(params["layers"]["gate"].shape),
    "sum": float(abs(params["embedding"]).sum()),
  }


if __name__ == "__main__":
  corpus, workdir = sys.argv[1], Path(sys.argv[2])
  answers = []
  for job in json.load(sys.stdin):
    directory = workdir / job["run"]
    if not job.get("load"):
      run(corpus, directory, job["mesh"], job.get("crash_at"))
    answers.append(
      {"losses": losses(directory), "loaded": loaded_on(directory, job["mesh"]), "devices": jax.device_count()}
    )
  print(json.dumps(answers))
