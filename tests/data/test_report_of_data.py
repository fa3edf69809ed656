"""What `drope_jax.data.report` finds, and a tokenizer that is trained on the documents."""

import pytest
from support.stored_documents import store

from drope_jax.config import DataConfig
from drope_jax.data.identity import digest
from drope_jax.data.prepare import reading, trained_tokenizer
from drope_jax.data.report import summarise, tokenizer_of
from drope_jax.data.sources import JSONL, source_at
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import ByteTokenizer, load_tokenizer, train_bpe
from drope_jax.errors import ConfigError

TEXTS = ["x" * (1 << i) for i in range(12)] + ["double", "double", "é" * 10]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["text", "parquet", "tokens"])
def test_what_is_in_a_source(kind, tmp_path):
  summary = summarise(store(kind, tmp_path / "data", TEXTS).documents(), ByteTokenizer())
  assert summary.documents == 15 and summary.duplicates == 1 and not summary.bad
  assert summary.lengths.tolist() == [len(text.encode()) for text in TEXTS]
  assert summary.bytes == sum(len(text.encode()) for text in TEXTS)
  assert dict((low, count) for low, _, count in summary.histogram())[1024] == 1
  assert [sample[:4] for sample in summary.samples] == ["x", "xxxx", "éééé"]
  text = summary.text()
  assert "longer than 512     13.3% of the documents, with 74.4% of the tokens" in text
  assert "1.00 bytes per token" in text
  summary.plot(tmp_path / "lengths.png")
  assert (tmp_path / "lengths.png").stat().st_size > 1000


def test_token_shards_are_read_with_their_own_tokenizer(tmp_path):
  texts = [f"the {word} runs over the hills {i}" for i, word in enumerate(["fox", "dog", "cat"] * 20)]
  store("text", tmp_path / "data", texts)
  tokenizer = train_bpe(texts, 270, tmp_path / "bpe")
  write_shards(source_at(f"{tmp_path}/data").source.documents(), tokenizer, tmp_path / "out", 1)
  shards = f"{tmp_path}/out"
  documents = source_at(shards).documents()
  assert digest(tokenizer_of(documents, shards, None)) == digest(tokenizer)
  assert digest(tokenizer_of(documents, f"{shards},heldout={tmp_path}/data", f"{tmp_path}/bpe")) == digest(tokenizer)
  with pytest.raises(ConfigError, match="--tokenizer is byte, and not the one that these tokens were made with"):
    tokenizer_of(documents, shards, "byte")
  assert isinstance(tokenizer_of(source_at(f"{tmp_path}/data").documents(), "data", None), ByteTokenizer)


def test_bad_documents_are_counted_and_named(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": null}\n{"text": "y"}\n')
  summary = summarise(JSONL(f"{tmp_path}/a.jsonl").documents(), ByteTokenizer())
  assert len(summary.lengths) == 2 and len(summary.bad) == 1
  assert f"{tmp_path}/a.jsonl, line 2" in summary.text()
  (tmp_path / "b.jsonl").write_bytes(b'{"text": null}\n')
  with pytest.raises(ConfigError, match=r"none of 1 documents is text: .*b.jsonl, line 1"):
    summarise(JSONL(f"{tmp_path}/b.jsonl").documents(), ByteTokenizer())


def test_a_limit_reads_an_evenly_spread_part(tmp_path):
  summary = summarise(store("text", tmp_path / "data", TEXTS[:12]).documents(), ByteTokenizer(), limit=3)
  assert summary.lengths.tolist() == [1, 32, 2048] and "of 12" in summary.text()


def test_a_tokenizer_is_trained_once_and_known_by_its_documents(tmp_path):
  texts = [f"the {word} runs over the hills {i}" for i, word in enumerate(["fox", "dog", "cat"] * 20)]
  here, there = (store("text", tmp_path / name, texts).documents() for name in ("here", "there"))
  spec = trained_tokenizer(here, 270)
  assert load_tokenizer(spec).vocab_size == 270
  assert trained_tokenizer(there, 270) == spec != trained_tokenizer(here, 265)


def test_what_the_flags_mean(tmp_path):
  store("text", tmp_path / "data", [f"some text, number {i}, of many words" for i in range(60)])
  config = DataConfig(directory="elsewhere", context=8, batch_size=2)
  read = reading(config, str(tmp_path / "data"), 280)
  assert read.directory == str(tmp_path / "data") and load_tokenizer(read.tokenizer).vocab_size == 280
  assert reading(config, None) == config
  with pytest.raises(ConfigError, match="nowhere: no dataset here"):
    reading(config, str(tmp_path / "nowhere"))
