"""Run on eight simulated devices: `everything CORPUS WORKDIR ROPE` or `skips CORPUS WORKDIR`, a mesh on stdin.

The answer, a line of JSON, holds the records of a run: `everything`, or `run_that_skips`.
"""

import json
import sys
from pathlib import Path

import jax
from support.objectives import PoisonedSteps
from support.tiny_run import records, tiny_model, tiny_run

from drope_jax.config import ComputeConfig, InitConfig, MeshConfig
from drope_jax.objective import Distill
from drope_jax.optimizers import Muon
from drope_jax.train import train
from drope_jax.transitions import Fade

MODEL = tiny_model(num_kv_heads=4, init_std=0.3)


def everything(corpus: str, rope: str, mesh: dict):
  """A fade with a teacher and held-out losses, by Muon in two micro-batches."""
  return tiny_run(
    corpus,
    init=InitConfig(checkpoint=rope, transition=Fade(share=0.7)),
    objective=Distill(until=0.7),
    optim={"optimizer": Muon(), "accumulation": 2, "peak_lr": 1e-3},
    mesh=MeshConfig(**mesh),
    compute=ComputeConfig(dtype="float32"),
    steps=4,
    eval_every=2,
    eval_documents=3,
    eval_extensions=(1, 2),
  )


def run_that_skips(corpus: str, mesh: dict):
  """Two bad steps, of two micro-batches each, whose updates may be skipped."""
  return tiny_run(
    corpus,
    model=tiny_model(num_kv_heads=4),
    objective=PoisonedSteps(steps=(3, 8)),
    optim={"accumulation": 2},
    mesh=MeshConfig(**mesh),
    compute=ComputeConfig(dtype="float32"),
    skip_updates=2,
    checkpoint_every=1,
  )


if __name__ == "__main__":
  name, corpus, workdir, *rope = sys.argv[1:]
  mesh = json.load(sys.stdin)
  train(everything(corpus, *rope, mesh) if name == "everything" else run_that_skips(corpus, mesh), workdir)
  print(json.dumps({"devices": jax.device_count(), "records": records(Path(workdir))}))
