"""Memory does not grow with the data set, nor with the length of what waits to be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grain
import pytest
from support.stored_documents import store

from drope_jax.config import DataConfig
from drope_jax.data import read_ahead
from drope_jax.data.packing import Tokenize
from drope_jax.data.read_ahead import ReadAhead
from drope_jax.data.sources import Documents
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.serialization import to_dict


class Texts(list):
  """A hundred short documents, and a hundred long ones; which of them have been read."""

  def __getitem__(self, index):
    self.append(index)
    return "x" * (9 if index < 100 else 999)

  def __len__(self):
    return 200


def test_few_documents_are_read_ahead_if_they_are_long(monkeypatch):
  monkeypatch.setattr(read_ahead, "AHEAD_BYTES", 4000)  # those of one long document
  texts = Texts()
  stream = iter(ReadAhead(grain.MapDataset.range(200).map(Tokenize(Documents(texts, "texts"), ByteTokenizer()))))
  for index in range(200):
    assert len(next(stream)["tokens"]) == (10 if index < 100 else 1000)
    ahead = sum(1 for _ in list.__iter__(texts)) - index - 1
    assert ahead <= (read_ahead.AHEAD if index < 110 else 1 + 4)  # one that waits, and one for each thread
  assert sorted(list.__iter__(texts)) == list(range(200))
  stream.close()


READER = """
import json, sys
from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import parquet
from drope_jax.serialization import from_dict
from experiments.benchmarks.measuring import host_memory_peak

parquet.CACHED_BYTES = 1 << 20
for config in sys.argv[1:]:
  stream = train_batches(from_dict(DataConfig, json.loads(config)), seed=0)
  for _ in range(40):
    next(stream)
  stream.close()
  print(host_memory_peak())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "packing"),
  [("jsonl.zst", "interleave"), ("parquet", "interleave"), ("tfrecord", "interleave"), ("tokens", "windows")],
)
def test_memory_does_not_grow_with_the_data_set(kind, packing, tmp_path, monkeypatch):
  """Forty times the documents, read by one process after the first: 200,000 of them, 60 MB of text."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr("support.stored_documents._GROUP", 500)
  configs = []
  for name, count in (("small", 5_000), ("large", 200_000)):
    source = store(kind, tmp_path / name, [f"document {i} " * 25 for i in range(count)])
    config = DataConfig(source=source, packing=packing, context=511, batch_size=8)
    configs.append(json.dumps(to_dict(config)))

  def peaks():
    done = subprocess.run(
      [sys.executable, "-c", READER, *configs], capture_output=True, text=True, check=True, timeout=300,
      env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu",
           "MALLOC_ARENA_MAX": "1"},  # the threads' arenas have more holes
    )  # fmt: skip
    return [int(line) for line in done.stdout.split()]

  peaks()  # unpacks and indexes what is read for the first time, in pieces of 16 MB
  small, large = peaks()
  slack = 24 if kind == "parquet" else 4  # MiB; Arrow keeps what it has once taken
  assert large - small < slack << 20, (small, large)
