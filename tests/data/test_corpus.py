"""The corpus on disk: what goes in comes out, whole or not at all."""

import json
import pickle
import shutil

import pytest

from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError

SPLITS = {"train": [f"document {i}, naïve ☃\n" * i for i in range(40)], "held_out": ["one", "two"]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return build_corpus(tmp_path_factory.mktemp("corpora") / "corpus", SPLITS)


def test_documents_come_back_in_order(corpus):
  for name, texts in SPLITS.items():
    source = documents(corpus, name)
    assert len(source) == len(texts)
    assert list(source) == texts
    assert source[len(texts) - 1] == texts[-1]
  assert len(documents(corpus, "train[:25%]")) == 10


def test_documents_pickle(corpus):
  assert pickle.loads(pickle.dumps(documents(corpus, "train")))[3] == SPLITS["train"][3]


def test_generators_will_do(tmp_path):
  build_corpus(tmp_path / "corpus", {"train": (str(i) for i in range(5))})
  assert list(documents(tmp_path / "corpus", "train")) == ["0", "1", "2", "3", "4"]


def test_built_already_is_left_alone(corpus):
  def never():
    raise AssertionError("read")
    yield

  before = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
  assert build_corpus(corpus, {"train": never()}) == corpus
  assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == before


def test_interrupted_build_leaves_nothing(tmp_path):
  def breaks():
    yield from SPLITS["train"]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    build_corpus(tmp_path / "corpus", {"held_out": ["whole"], "train": breaks()})
  assert list(tmp_path.iterdir()) == []
  build_corpus(tmp_path / "corpus", SPLITS)
  assert list(documents(tmp_path / "corpus", "train")) == SPLITS["train"]


def test_other_content_is_not_overwritten(tmp_path):
  (tmp_path / "thesis.txt").write_text("dear")
  with pytest.raises(ConfigError, match=str(tmp_path)):
    build_corpus(tmp_path, SPLITS)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_empty_split_is_an_error_naming_it(tmp_path):
  with pytest.raises(ConfigError, match="'held_out'"):
    build_corpus(tmp_path / "corpus", {"train": ["text"], "held_out": []})
  assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("split", ["test", "train[", "train[:0]"])
def test_bad_split_is_one_line_naming_it(corpus, split):
  with pytest.raises(ConfigError, match=r"missing or empty; splits: .*train") as error:
    documents(corpus, split)
  assert str(corpus) in str(error.value) and repr(split) in str(error.value) and "\n" not in str(error.value)


def test_missing_dataset_is_one_line_naming_it(tmp_path):
  for directory in (tmp_path, tmp_path / "missing"):
    with pytest.raises(ConfigError, match="no dataset here") as error:
      documents(directory, "train")
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("file", "old", "new", "message"),
  [
    ("dataset_info.json", '"array_record"', '"parquet"', "stored as parquet"),
    ("features.json", '"features": {\n            "text"', '"features": {\n            "body"', "features: body"),
  ],
)
def test_dataset_of_another_kind_is_one_line_naming_it(corpus, tmp_path, file, old, new, message):
  other = shutil.copytree(corpus, tmp_path / "other")
  assert old in (other / file).read_text()
  (other / file).write_text((other / file).read_text().replace(old, new))
  with pytest.raises(ConfigError, match=message) as error:
    documents(other, "train")
  assert str(other) in str(error.value) and "\n" not in str(error.value)


def test_dataset_without_splits_is_an_error(corpus, tmp_path):
  other = shutil.copytree(corpus, tmp_path / "other")
  info = json.loads((other / "dataset_info.json").read_text())
  (other / "dataset_info.json").write_text(json.dumps({**info, "splits": []}))
  with pytest.raises(ConfigError, match="splits: none"):
    documents(other, "train")
