"""Run by test_evaluate_mesh.py in a process with eight devices: `CORPUS CHECKPOINT OUT`, meshes as JSON on stdin.

Evaluates the checkpoint on each mesh (null: on one device) into OUT/NAME/results.jsonl; a line of JSON says, of one
long prompt, how many keys a device holds and how many queries it attends with; and how many rows of a batch it has.
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from drope_jax import attention, checkpoint
from drope_jax.config import MeshConfig
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.measure import evaluate
from drope_jax.evaluate.tasks import make_tasks
from drope_jax.generation import Generation
from drope_jax.sharding import make_mesh


def measure(corpus: str, workdir: str, out: Path, mesh: jax.sharding.Mesh | None) -> dict:
  loaded = checkpoint.load(workdir, mesh=mesh)
  data = EvalData(
    tokenizer=load_tokenizer(workdir),
    longest=91,
    dataset=corpus,
    num_documents=5,  # which eight devices do not divide, nor two the length of 91
    needles_per_depth=2,
  )
  tasks = make_tasks(["perplexity", "needles"], data)
  evaluate("run", loaded, ["dynamic_ntk", "crop"], [91], tasks, data, out / "results.jsonl")
  one = Generation(loaded.params, loaded.model, [np.arange(200)], max_new_tokens=1)
  queries = queries_of(one.prefill)
  many = Generation(loaded.params, loaded.model, [np.arange(20)] * 8, max_new_tokens=1)
  many.prefill()
  sizes = [g._state.cache.k_LBSKh.addressable_shards[0].data.shape for g in (one, many)]
  return {"long": sizes[0][2], "queries": queries, "rows": sizes[1][1]}


def queries_of(program) -> int:
  """The most queries that one device's attention takes at once in a program, which is traced for it."""
  compute, taken = attention._compute, []

  def watched(scaled_BTHh, *rest, **settings):
    taken.append(scaled_BTHh.shape[1])
    return compute(scaled_BTHh, *rest, **settings)

  attention._compute = watched
  try:
    program()
  finally:
    attention._compute = compute
  return max(taken)


if __name__ == "__main__":
  corpus, workdir, out = sys.argv[1:]
  answers = {}
  for name, sizes in json.load(sys.stdin).items():
    mesh = None if sizes is None else make_mesh(MeshConfig(**sizes))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      answers[name] = measure(corpus, workdir, Path(out) / name, mesh)
  print(json.dumps({"devices": jax.device_count(), "shards": answers}))
