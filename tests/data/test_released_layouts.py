"""Datasets in the layout in which they are released, or prepared by TFDS: FineWeb, C4, PG-19."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from support.stored_documents import as_tfrecord

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import TFDS, Cut, Parquet, Splits, source_at
from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError

TEXTS = [f"Page {i}, naïve ☃. " * (1 + i % 7) for i in range(60)]
TEXT = tfds.features.Text


def test_fineweb_is_nested_folders_of_parquet(tmp_path):
  """As in the repositories of FineWeb and FineWeb-edu: a card, data/CC-MAIN-.../000_00000.parquet, many columns."""
  (tmp_path / "README.md").write_text("---\nconfigs:\n---\n# FineWeb\n")
  (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs\n")
  for number, crawl in enumerate(("CC-MAIN-2023-50", "CC-MAIN-2024-10")):
    folder = tmp_path / "data" / crawl
    folder.mkdir(parents=True)
    texts = TEXTS[number * 30 : number * 30 + 30]
    table = {
      "text": texts,
      "id": [f"<urn:uuid:{i}>" for i in range(30)],
      "dump": [crawl] * 30,
      "url": ["http://a"] * 30,
      "file_path": ["s3://commoncrawl/x"] * 30,
      "language": ["en"] * 30,
      "language_score": [0.9] * 30,
      "token_count": [9] * 30,
      "score": [2.5] * 30,
      "int_score": [3] * 30,
    }
    pq.write_table(pa.table(table), folder / "000_00000.parquet", row_group_size=8, compression="snappy")
  source = source_at(str(tmp_path))
  assert source == Cut(Parquet(f"{tmp_path}/**/*.parquet"))
  assert list(source.source.documents()) == TEXTS
  next(train_batches(DataConfig(directory=str(tmp_path), context=63, batch_size=4), seed=0))


class C4(tfds.core.GeneratorBasedBuilder):
  """The features of TFDS's c4."""

  VERSION = tfds.core.Version("3.1.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en")]  # noqa: RUF012
  FEATURES = ("text", "timestamp", "url", "content-length", "content-type")

  def _info(self):
    features = tfds.features.FeaturesDict({name: TEXT() for name in self.FEATURES})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(0, 50), "validation": self._generate_examples(50, 60)}

  def _generate_examples(self, begin, end):
    for i in range(begin, end):
      yield i, {name: TEXTS[i] if name == "text" else f"{name} {i}" for name in self.FEATURES}


class Pg19(C4):
  """Those of TFDS's pg19: a number, and book_text."""

  VERSION = tfds.core.Version("0.1.1")
  BUILDER_CONFIGS = []  # noqa: RUF012
  FEATURES = ("book_title", "publication_date", "book_link", "book_text")

  def _info(self):
    features = {name: TEXT() for name in self.FEATURES} | {"book_id": np.int32}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _generate_examples(self, begin, end):
    for i, example in super()._generate_examples(begin, end):
      yield i, example | {"book_id": i, "book_text": TEXTS[i]}


@pytest.fixture(params=["array_record", "tfrecord"])
def prepared(request, tmp_path, monkeypatch):
  """$TFDS_DATA_DIR with c4/en and pg19, in either format."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  for builder in (C4(config="en", data_dir=tmp_path / "tfds", file_format="array_record"),
                  Pg19(data_dir=tmp_path / "tfds", file_format="array_record")):  # fmt: skip
    builder.download_and_prepare()
    if request.param == "tfrecord":
      as_tfrecord(tmp_path / "tfds" / builder.info.full_name)


def test_c4_and_pg19_are_found_by_name_and_read_without_tensorflow(prepared):
  for name, feature in (("c4/en", ""), ("c4/en:3.1.0", ""), ("pg19", "#book_text")):
    assert set(documents(name + feature, "train")) == set(TEXTS[:50])
    assert set(documents(name + feature, "validation")) == set(TEXTS[50:])
  with pytest.raises(ConfigError, match=r"no feature 'text'; features: .*book_text.*PATH#FEATURE"):
    documents("pg19", "train")
  assert "tensorflow" not in sys.modules


def test_the_splits_of_tfds_are_named_in_the_path(prepared):
  path = "c4/en,heldout=validation[:50%],fit=validation[50%:]"
  heldout, fit = (set(documents(path, name)) for name in ("heldout", "fit"))
  assert source_at(path) == Splits(TFDS("c4/en"), TFDS("c4/en", "validation[:50%]"), TFDS("c4/en", "validation[50%:]"))
  assert len(heldout) == len(fit) == 5 and heldout | fit == set(TEXTS[50:])
  assert set(documents(path, "train")) == set(TEXTS[:50])
  with pytest.raises(ConfigError, match=r"'heldout' is missing or empty; splits: train, validation; .*heldout=SPLIT"):
    documents("c4/en", "heldout")
  stream = train_batches(DataConfig(directory="pg19#book_text,heldout=validation", context=63, batch_size=4), seed=0)
  assert next(stream)["tokens"].shape == (4, 64)
