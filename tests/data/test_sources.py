"""Every source gives the documents that were stored, whole, in order and at any place."""

import json
import pickle
import sys

import pytest
from support.stored_documents import STORES, Numbered, store, text_of

from drope_jax.config import DataConfig
from drope_jax.data import corpus
from drope_jax.data.sources import JSONL, TFDS, ArrayRecord, Cut, Mixture, Parquet, Text, Tokens, parquet, source_at
from drope_jax.errors import ConfigError, ToolError
from drope_jax.serialization import from_dict, to_dict
from drope_jax.values import members, recorded_name

TEXTS = [f"document {i}, naïve ☃\u2028{'x' * (i % 23)}\n\r\n" * (1 + i % 3) for i in range(45)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="module", params=STORES)
def source(request, tmp_path_factory):
  return store(request.param, tmp_path_factory.mktemp("store") / "data", TEXTS)


def test_documents_come_back_in_order_and_at_any_place(source):
  documents = source.documents()
  assert len(documents) == len(TEXTS)
  assert [text_of(document) for document in documents] == TEXTS
  assert text_of(documents[37]) == TEXTS[37] and text_of(documents[-1]) == TEXTS[-1]
  with pytest.raises(IndexError):
    documents[len(TEXTS)]


def test_documents_pickle_for_workers(source):
  documents = source.documents()
  _ = documents[3]  # what was opened by reading does not stand in the way
  assert text_of(pickle.loads(pickle.dumps(documents))[40]) == TEXTS[40]


def test_an_epoch_has_each_document_once_and_the_next_another_order(source):
  if isinstance(source, Mixture):
    pytest.skip("has epochs of each source")
  order = source.documents().order(seed=3)
  first, second = ([order[i] for i in range(n * 45, n * 45 + 45)] for n in (0, 1))
  assert sorted(first) == sorted(second) == list(range(45))
  assert len({tuple(first), tuple(second), tuple(range(45))}) == 3
  again = source.documents().order(seed=3)
  assert [again[i] for i in range(90)] == first + second
  other = source.documents().order(seed=4)
  assert [other[i] for i in range(45)] != first


def test_a_source_is_recorded_in_the_config_and_read_back(source):
  config = DataConfig(source=source, context=8, batch_size=2)
  data = json.loads(json.dumps(to_dict(config)))
  assert from_dict(DataConfig, data) == config
  assert data["source"]["type"] == recorded_name(type(source))


@pytest.mark.parametrize("kind", STORES)
def test_the_digest_is_that_of_the_content_wherever_it_lies(kind, tmp_path):
  here, there = (store(kind, tmp_path / name, TEXTS).documents() for name in ("here", "there"))
  changed = store(kind, tmp_path / "changed", [*TEXTS[:-1], TEXTS[-1].replace("document", "Document")]).documents()
  longer = store(kind, tmp_path / "longer", [*TEXTS, "one more"]).documents()
  assert here.digest == there.digest
  assert len({here.digest, changed.digest, longer.digest}) == 3


@pytest.mark.parametrize(
  ("kind", "expected"),
  [
    ("tfds", TFDS),
    ("tfrecord", TFDS),
    ("parquet", Parquet),
    ("jsonl", JSONL),
    ("jsonl.gz", JSONL),
    ("jsonl.zst", JSONL),
    ("text", Text),
    ("array_record", ArrayRecord),
    ("tokens", Tokens),
  ],
)
def test_a_path_is_what_lies_there(kind, expected, tmp_path):
  written = store(kind, tmp_path / "data", TEXTS)
  folder = {"tfds": "corpus", "tfrecord": "corpus", "tokens": "shards"}.get(kind, "")
  source = source_at(str(tmp_path / "data" / folder))
  inner = source.source if isinstance(source, Cut) else source
  assert type(inner) is expected
  assert [text_of(document) for document in inner.documents()] == [text_of(one) for one in written.documents()]
  if kind not in ("tfds", "tfrecord", "tokens"):  # one file alone is a source as well
    file = sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())[0]
    alone = source_at(str(file)).source.documents()
    assert 0 < len(alone) < len(TEXTS) and alone[0] == TEXTS[0]


def test_a_name_in_a_path_says_which_column_or_field(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"body": "here", "text": "no"}\n')
  source = source_at(f"{tmp_path}/a.jsonl#body")
  assert source == Cut(JSONL(f"{tmp_path}/a.jsonl", field="body"))
  assert list(source.source.documents()) == ["here"]


@pytest.mark.parametrize("name", ["d[1]", "p#q", "with, comma", "é x"])
def test_a_folder_is_the_one_of_that_name(name, tmp_path):
  for folder, text in ((name, "this"), ("d1", "not this"), ("p", "nor this")):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
  for path in (tmp_path / name, tmp_path / name / "a.jsonl"):
    assert list(source_at(str(path)).source.documents()) == ["this"]


def test_a_dataset_of_tfds_is_found_by_its_name_in_its_last_version(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  store("tfds", tmp_path / "made", TEXTS)
  for version in ("1.2.0", "1.10.0"):
    (tmp_path / "books" / "en").mkdir(parents=True, exist_ok=True)
    (tmp_path / "made" / "corpus").rename(tmp_path / "books" / "en" / version)
    store("tfds", tmp_path / "made", [version])
  assert list(source_at("books/en").documents()) == ["1.2.0"]  # which is what 1.10.0 holds
  assert len(source_at("books/en:1.2.0").documents()) == len(TEXTS)


@pytest.mark.parametrize(
  ("files", "path", "message"),
  [
    ([], "", "no dataset here"),
    ([], "nowhere", "nowhere: no dataset here"),
    (["notes.doc"], "", "no dataset here"),
    (["notes.doc"], "notes.doc", "its name does not say"),
    (["a.txt", "b.jsonl"], "", r"several kinds.*\*\*/\*.jsonl, .*\*\*/\*.txt"),
    (["train.jsonl", "test.jsonl"], "", "several splits.*train\\*,heldout="),
    (["a.train.jsonl", "a.eval.jsonl"], "", "several splits"),
    (["train/a.jsonl", "valid/a.jsonl"], "", "several splits"),
    (["a.txt"], "a.txt#text", "text has no columns"),
    (["a.txt"], "a.txt,heldout=", "once each, each with a value"),
    (["a.txt"], "a.txt,bad=skip,bad=refuse", "once each"),
    (["a.txt"], "*.md", "no file matches"),
  ],
)
def test_a_path_that_means_nothing_is_one_line(files, path, message, tmp_path):
  for name in files:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("text")
  with pytest.raises(ConfigError, match=message) as error:
    source_at(f"{tmp_path}/{path}".rstrip("/")).documents()
  assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_source_of_a_user_is_recorded_by_its_module():
  from drope_jax.data.sources import Source

  assert members(Source)["support.stored_documents:Numbered"] is Numbered
  with pytest.raises(ConfigError, match="import nobody first"):
    from_dict(DataConfig, {"source": {"type": "nobody:Missing"}, "context": 8, "batch_size": 2})


def test_directory_and_source_exclude_each_other():
  with pytest.raises(ConfigError, match=r"both directory .* and source"):
    DataConfig(directory="d", source=Text("*.txt"), context=8, batch_size=2)


def test_compressed_files_are_unpacked_once_and_the_copy_follows_the_file(tmp_path):
  file = tmp_path / "a.jsonl.gz"
  store("jsonl.gz", tmp_path, TEXTS)
  documents = JSONL(str(tmp_path / "part0.jsonl.gz")).documents()
  copy = documents.raw.files[0].bytes.path
  before = copy.stat().mtime
  again = JSONL(str(tmp_path / "part0.jsonl.gz")).documents()
  assert again.raw.files[0].bytes.path == copy and copy.stat().mtime == before
  (tmp_path / "part1.jsonl.gz").replace(file)
  file.replace(tmp_path / "part0.jsonl.gz")
  assert list(JSONL(str(tmp_path / "part0.jsonl.gz")).documents()) == TEXTS[22:]


def test_parquet_shuffles_row_groups_near_each_other(tmp_path, monkeypatch):
  """So that reading is bounded, where not all of it is kept: of 7 rows a group, 16 groups are shuffled together."""
  monkeypatch.setattr(parquet, "CACHED_BYTES", 4000)
  documents = store("parquet", tmp_path, [str(i) for i in range(700)]).documents()
  order = documents.order(seed=0)
  groups = [order[i] // 7 for i in range(112)]
  assert len(set(groups)) == 16 and groups != sorted(groups)


def test_without_tfds_only_its_datasets_are_out_of_reach(tmp_path, monkeypatch):
  there = store("tfds", tmp_path / "there", TEXTS)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it raises ImportError
  monkeypatch.setattr(corpus, "_builder", corpus._builder.__wrapped__)
  for use in (there.documents, lambda: corpus.build_corpus(tmp_path / "new", {"train": TEXTS})):
    with pytest.raises(ToolError, match=r"tensorflow_datasets.* cannot be imported .*pip install tensorflow-datasets"):
      use()
  assert not (tmp_path / "new").exists()
  assert corpus.build_corpus(there.dataset, {"train": TEXTS}) and corpus.is_built(tmp_path / "there" / "corpus")
  assert len(store("jsonl", tmp_path / "lines", TEXTS).documents()) == len(TEXTS)
