"""A teacher, a fade, Muon and the held-out loss on eight devices: the same numbers as on one."""

import json

import numpy as np
import pytest
from support.eight_devices import on_eight_devices
from support.tiny_run import WORDS, records, tiny_run
from support.training_mesh_script import MODEL, everything

from drope_jax.data.corpus import build_corpus
from drope_jax.train import train


@pytest.mark.slow
def test_eight_devices_are_as_one(tmp_path):
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(WORDS, size=12)) for _ in range(60)]
  corpus = str(build_corpus(tmp_path / "corpus", {"train": texts[:50], "heldout": texts[50:]}))
  rope = tmp_path / "rope"
  train(tiny_run(corpus, model=MODEL, steps=2), rope)
  train(everything(corpus, str(rope), {}), tmp_path / "one")
  answer = on_eight_devices(
    "training_mesh_script.py",
    *("everything", corpus, tmp_path / "eight", rope),
    jobs={"data": 2, "fsdp": 2, "tensor": 2},
    JAX_DISABLE_MOST_OPTIMIZATIONS="1",
  )
  ours, theirs = records(tmp_path / "one"), answer["records"]
  assert [(record["step"], record.get("extension")) for record in ours] == [
    (record["step"], record.get("extension")) for record in theirs
  ]
  for name, tolerance in (("loss", 1e-5), ("kl", 1e-3), ("grad_norm", 1e-4)):
    found = [[record[name] for record in side if record.get(name) is not None] for side in (ours, theirs)]
    assert len(found[0]) >= 3, json.dumps(ours)
    np.testing.assert_allclose(*found, rtol=tolerance)
