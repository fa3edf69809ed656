"""Real English (about 84 MB from Debian packages) through every store: the same documents, batches and loss curves.

`DEBS=FOLDER python -m pytest -m slow tests/data/test_real_text.py`, where FOLDER holds the .deb files of
experiments.prose and of dict-gcide; without it they are downloaded with apt-get, and where that cannot be, the test is
skipped.
"""

import gzip
import hashlib
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from support.stored_documents import store
from support.tiny_run import losses, tiny_model

from drope_jax.config import DataConfig, OptimConfig, TrainConfig
from drope_jax.data.identity import digest
from drope_jax.data.pipeline import train_batches
from drope_jax.data.prepare import trained_tokenizer
from drope_jax.data.sources import Tokens
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.positions import RoPE
from drope_jax.train import train
from experiments import prose

pytestmark = pytest.mark.slow

KINDS = ("tfds", "parquet", "jsonl.zst", "text", "array_record")
BATCHES = 100


def dictionary(debs: Path, folder: Path) -> list[str]:
  """The GNU Collaborative International Dictionary, in pieces of about 20,000 characters."""
  if not list(debs.glob("dict-gcide_*.deb")):
    prose.run_program(["apt-get", "download", "dict-gcide"], debs)
  (package,) = debs.glob("dict-gcide_*.deb")
  prose.run_program(["dpkg", "-x", str(package), str(folder)], folder)
  text = gzip.decompress((folder / "usr/share/dictd/gcide.dict.dz").read_bytes()).decode(errors="replace")
  return [text[begin : begin + 20_000] for begin in range(0, len(text), 20_000)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  debs = Path(os.environ.get("DEBS") or tmp_path_factory.mktemp("debs"))
  try:
    if "DEBS" not in os.environ:
      for package in prose.SOURCES:
        prose.run_program(["apt-get", "download", package], debs)
    found = [document.text for document in prose.gather(debs)]
    found += dictionary(debs, tmp_path_factory.mktemp("gcide"))
  except (ConfigError, subprocess.SubprocessError) as error:
    pytest.skip(f"no packages here: {error}")
  assert sum(len(text.encode()) for text in found) > 50_000_000
  return found


def test_every_store_gives_the_same_documents_and_batches(texts, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr("support.stored_documents._GROUP", 100)  # rows of a row group
  sources = {kind: store(kind, tmp_path / kind, texts) for kind in KINDS}
  tokenizer = trained_tokenizer(sources["text"].documents(), 4096)
  lines = [f"{len(texts)} documents, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB"]
  wanted = hashlib.sha256("\0".join(texts).encode()).hexdigest()
  for kind, source in sources.items():
    begun = time.monotonic()
    documents = source.documents()
    opened = time.monotonic()
    assert hashlib.sha256("\0".join(documents).encode()).hexdigest() == wanted, kind
    read = time.monotonic()
    lines.append(f"{kind:<13} opened in {opened - begun:5.2f} s, read in {read - opened:5.2f} s")

  begun = time.monotonic()
  shards = tmp_path / "shards"
  meta = write_shards(sources["text"].documents(), load_tokenizer(tokenizer), shards, processes=2)
  lines.append(f"tokenised     {meta['tokens']:,} tokens in {time.monotonic() - begun:.1f} s, in 2 processes")
  sources["tokens"] = Tokens(str(shards))
  assert meta["tokenizer"] == digest(load_tokenizer(tokenizer))

  batches = {}
  for kind, source in sources.items():
    stream = train_batches(DataConfig(source=source, tokenizer=tokenizer, context=1024, batch_size=8), seed=0)
    begun = time.monotonic()
    batches[kind] = np.stack([next(stream)["tokens"] for _ in range(BATCHES)])
    seconds = time.monotonic() - begun
    lines.append(f"{kind:<13} {batches[kind].size / seconds:10,.0f} tokens/s over {BATCHES} batches")
    stream.close()
  for kind in batches:
    np.testing.assert_array_equal(batches[kind], batches["tfds"], kind)

  curves = {}
  for kind, source in sources.items():
    data = DataConfig(source=source, tokenizer=tokenizer, context=256, batch_size=4, interleave=64)
    model, optim = tiny_model(vocab_size=4096, positions=RoPE(theta=1e4)), OptimConfig(peak_lr=3e-3)
    config = TrainConfig(model=model, data=data, optim=optim, steps=30, log_every=1, trackers=())
    train(config, tmp_path / "runs" / kind)
    curves[kind] = losses(tmp_path / "runs" / kind)
    lines.append(f"{kind:<13} loss {curves[kind][0][1]:.4f} at step 1, {curves[kind][-1][1]:.4f} at step 30")
  assert curves["tfds"][-1][1] < curves["tfds"][0][1] - 0.3
  for kind in curves:
    assert curves[kind] == curves["tfds"], kind
  with capsys.disabled():
    print("", *lines, sep="\n")
