"""Text that cannot be trained on: one line that names the file and the row, and says what to do."""

import json
import re
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from support.stored_documents import store, without_sums

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import JSONL, TFDS, Parquet, Source, Text, Tokens, source_at
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import train_bpe
from drope_jax.errors import ConfigError, DataError, UserError

TEXTS = [f"document {i}, " * 20 for i in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def error_of(source: Source) -> str:
  """The one line that reading all of the source ends with."""
  with pytest.raises(UserError) as error:
    list(source.documents())
  assert "\n" not in str(error.value)
  return str(error.value)


def jsonl(folder, *lines: bytes) -> Source:
  (folder / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
  return JSONL(f"{folder}/*.jsonl")


@pytest.mark.parametrize(
  ("line", "said"),
  [
    (b'{"text": "caf\xe9"}', "not UTF-8.*convert"),
    (rb'{"text": "half \ud83d"}', "half a surrogate pair.*mend it"),
    (rb'{"text": "a\u0000b"}', "NUL character.*binary.*remove"),
    (b'{"text": null}', "no text \\(null\\).*remove"),
    (b'{"text": {"inner": "x"}}', "holds a dict, not a text"),
    (b'{"text": ["x"]}', "holds a list, not a text"),
    (b'{"body": "x", "id": 3}', "no field 'text'; fields: body, id; name one"),
    (b'{"text": "never ends', "not JSON.*cut off"),
    (b'["x"]', "holds a list, not an object"),
    (b"\x7fELF\x02\x01", "not JSON|not UTF-8"),
  ],
)
def test_a_bad_line_of_jsonl(line, said, tmp_path):
  for at, lines in ((3, [b'{"text": "x"}', b"", line, b'{"text": "y"}']), (2, [b'{"text": "x"}', line])):
    error = error_of(jsonl(tmp_path, *lines))
    assert error.startswith(f"{tmp_path}/a.jsonl, line {at}")
    assert re.search(said, error), error


def test_a_field_that_no_line_has_is_named_once_with_the_way_out(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"id": "1", "body": "long"}\n' * 51)
  with pytest.raises(DataError, match=r"a\.jsonl, line 1: has no field 'text'.*PATH#body"):
    source_at(f"{tmp_path}/a.jsonl").documents()
  assert len(source_at(f"{tmp_path}/a.jsonl#body").part("train").documents()) == 51
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"body": "long"}\n')
  with pytest.raises(DataError, match="line 2: has no field 'text'"):
    source_at(f"{tmp_path}/a.jsonl").documents()


def test_lines_end_at_line_feeds_alone(tmp_path):
  texts = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0bh\x0ci", "plain"]
  lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
  lines[0] = b"\xef\xbb\xbf" + lines[0]  # a byte-order mark
  lines[1] += b"\r"
  assert list(jsonl(tmp_path, *lines, b"", b"  ").documents()) == texts


def test_a_file_without_an_end_of_line_has_its_last_document(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "y"}')
  assert list(JSONL(f"{tmp_path}/a.jsonl").documents()) == ["x", "y"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off(suffix, tmp_path):
  store(f"jsonl{suffix}", tmp_path, TEXTS)
  file = tmp_path / f"part1.jsonl{suffix}"
  file.write_bytes(file.read_bytes()[:-7])
  error = error_of(JSONL(f"{tmp_path}/*.jsonl{suffix}"))
  assert str(file) in error and "cut off" in error
  assert not list((tmp_path / "cache" / "drope_jax" / "unpacked").glob(".*"))  # nor is a part of it left


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (b"caf\xe9", "not UTF-8 \\(byte 3"),
    (b"\x89PNG\x00\x01", "not UTF-8"),
    (b"a\0b", "NUL"),
    (b"", "is empty; copy it again, or remove it"),
  ],
)
def test_a_bad_text_file(content, said, tmp_path):
  (tmp_path / "a.txt").write_text("\ufeffgood", encoding="utf-8")
  assert list(Text(f"{tmp_path}/*.txt").documents()) == ["good"]  # without its byte-order mark
  (tmp_path / "b.txt").write_bytes(content)
  error = error_of(Text(f"{tmp_path}/*.txt"))
  assert error.startswith(f"{tmp_path}/b.txt: ") and re.search(said, error)


def test_bad_rows_and_columns_of_parquet(tmp_path):
  def written(**columns):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    return Parquet(f"{tmp_path}/a.parquet")

  assert "row 2 (row group 1), column 'text': has no text (null)" in error_of(written(text=["a", "b", None, "d"]))
  latin = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xe9")]
  )
  assert "row 0 (row group 0), column 'text': not UTF-8" in error_of(written(text=latin))
  error = error_of(written(body=["a"], id=[1]))
  assert f"{tmp_path}/a.parquet: has no column 'text'; columns: body, id" in error
  assert "holds list<" in error_of(written(text=[["a"], ["b"]]))
  assert "has no rows" in error_of(written(text=pa.array([], pa.string())))
  (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-3])
  assert "a.parquet: not a parquet file, or cut off" in error_of(Parquet(f"{tmp_path}/a.parquet"))


def test_a_missing_shard_is_named(tmp_path):
  store("parquet", tmp_path, TEXTS)
  (tmp_path / "train-00000-of-00002.parquet").unlink()
  assert "train-00000-of-00002.parquet: this shard is missing" in error_of(source_at(str(tmp_path)))
  assert len(Parquet(f"{tmp_path}/train-00001*.parquet").documents()) == 20  # unless the others are not asked for


class Crawl(tfds.core.GeneratorBasedBuilder):
  """Its eighth document is Latin-1: features.Text takes bytes as they are."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, text in enumerate(TEXTS):
      yield i, {"text": text if i != 7 else "café".encode("latin-1")}


def test_latin_1_in_a_dataset_of_tfds_is_named_by_the_batches_too(tmp_path):
  builder = Crawl(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  assert "record 7, feature 'text': not UTF-8" in error_of(TFDS(builder.data_dir))
  batches = train_batches(DataConfig(directory=builder.data_dir, context=32, batch_size=4), seed=0)
  with pytest.raises(DataError, match="record 7, feature 'text': not UTF-8"):
    for _ in range(200):
      next(batches)


@pytest.mark.parametrize("kind", ["tfds", "tfrecord", "array_record"])
@pytest.mark.parametrize("what", ["missing", "empty", "cut off"])
def test_a_broken_shard(kind, what, tmp_path):
  source = store(kind, tmp_path / "data", TEXTS * 200)
  file = sorted(path for path in (tmp_path / "data").rglob("*record*") if path.is_file())[0]
  data = file.read_bytes()
  file.unlink()
  if what != "missing":
    file.write_bytes(data[: len(data) // 2] if what == "cut off" else b"")
  error = error_of(source)
  assert str(file) in error and "copy it" in error


def test_bad_token_shards(tmp_path):
  source = store("tokens", tmp_path / "data", TEXTS)
  folder = tmp_path / "data" / "shards"
  config = DataConfig(source=source, context=32, batch_size=2)
  next(train_batches(config, seed=0))

  train_bpe(TEXTS, 300, tmp_path / "tokenizer")
  other = DataConfig(source=source, tokenizer=str(tmp_path / "tokenizer"), context=32, batch_size=2)
  with pytest.raises(ConfigError, match=r"made with \w+; name that tokenizer, or tokenise again"):
    train_batches(other, seed=0)

  file = folder / "tokens-00001-of-00003.bin"
  data = file.read_bytes()
  file.write_bytes(struct.pack("<H", 60_000) + data[2:])
  without_sums(folder)  # which would find it first
  batches = train_batches(config, seed=0)
  with pytest.raises(DataError, match=r"tokens-00001-of-00003.bin, document 0: holds the ids \d+ to 60000"):
    for _ in range(400):
      next(batches)
  file.write_bytes(data[:-2])
  assert f"{file}: has {len(data) - 2} bytes instead of {len(data)}; copy it again" in error_of(source)
  file.unlink()
  assert f"{file}: this shard is missing" in error_of(source)
  (folder / "meta.json").unlink()
  assert "no token shards here" in error_of(Tokens(str(folder)))


def test_bad_text_is_not_tokenised(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": null}\n{"text": "y"}\n')
  with pytest.raises(DataError, match="line 2, field 'text': has no text"):
    write_shards(JSONL(f"{tmp_path}/a.jsonl").documents(), train_bpe(TEXTS, 300, tmp_path / "t"), tmp_path / "out")
  assert not (tmp_path / "out" / "meta.json").exists()
