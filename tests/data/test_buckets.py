"""Data at gs://: every source reads there what it reads here, and one line says what is missing."""

import dataclasses
import sys

import numpy as np
import pytest
from support.bucket import fake_bucket, upload
from support.stored_documents import STORES, store, text_of

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import Cut, source_at
from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError, ToolError

TEXTS = [f"document {i}, naïve ☃ {'x' * (i % 23)}" for i in range(60)]
KINDS = [kind for kind in STORES if kind not in ("user", "mixture")]
FOLDERS = {"tfds": "/corpus", "tfrecord": "/corpus", "tokens": "/shards"}


@pytest.fixture
def bucket():
  with fake_bucket() as found:
    yield found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_a_bucket_is_the_one_here(kind, bucket, tmp_path):
  here = store(kind, tmp_path / "data", TEXTS)
  upload(bucket, tmp_path / "data", f"gs://bucket/{kind}")
  source = source_at(f"gs://bucket/{kind}{FOLDERS.get(kind, '')}")
  there = source.source if isinstance(source, Cut) else source
  assert type(there) is type(here)
  found = there.documents()
  assert [text_of(document) for document in found] == TEXTS
  assert found.digest == here.documents().digest
  batches = [
    next(train_batches(DataConfig(source=one, context=31, batch_size=4), seed=0))["tokens"] for one in (here, there)
  ]
  np.testing.assert_array_equal(*batches)
  assert found.where(7).startswith("gs://bucket/")


def test_patterns_and_named_parts_in_a_bucket(bucket, tmp_path):
  for name, texts in (("train", TEXTS), ("held", TEXTS[:2])):
    store("jsonl", tmp_path / name, texts)
    upload(bucket, tmp_path / name, f"gs://bucket/parts/{name}")
  path = "gs://bucket/parts/train/part*.jsonl,heldout=gs://bucket/parts/held/**/*.jsonl"
  assert [list(documents(path, name)) for name in ("heldout", "train")] == [TEXTS[:2], TEXTS[2:]]


@pytest.mark.parametrize("path", ["gs://bucket/nothing", "gs://bucket/nothing/*.jsonl", "gs://bucket/nothing.txt"])
def test_nothing_in_a_bucket_is_one_line(path, bucket):
  with pytest.raises(ConfigError, match=f"{path.replace('*', '.')}: no (dataset|file)"):
    source_at(path).documents()


@pytest.mark.parametrize("kind", ["tfds", "parquet", "jsonl", "text", "array_record", "tokens"])
def test_a_missing_client_library_is_one_line(kind, tmp_path, monkeypatch):
  here = store(kind, tmp_path / "data", TEXTS[:6])
  field = next(field.name for field in dataclasses.fields(here) if field.name in ("glob", "dataset", "directory"))
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(ToolError, match=r"gs://bucket/x.*pip install gcsfs"):
    dataclasses.replace(here, **{field: "gs://bucket/x"}).documents()
  with pytest.raises(ToolError, match=r"gs://bucket/x.*pip install gcsfs"):
    source_at("gs://bucket/x")
