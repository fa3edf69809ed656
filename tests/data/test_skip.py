"""Bad documents that the user wants left out: counted, named in warnings, and gone from every part and packing."""

import json
import logging

import pytest

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.report import summarise
from drope_jax.data.sources import JSONL, Cut, SkipBad, Splits, Tokens, source_at
from drope_jax.data.splits import documents
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError, DataError
from drope_jax.serialization import from_dict, to_dict

BAD = (b'{"text": null}', b'{"text": "caf\xe9"}', b'{"body": "x"}', b"{", rb'{"text": "a\u0000b"}', b'{"text": 3}')


@pytest.fixture
def path(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  lines = [json.dumps({"text": f"document {i} of a crawl"}).encode() for i in range(300)]
  for number, line in enumerate(BAD):
    lines.insert(17 + 40 * number, line)
  (tmp_path / "crawl.jsonl").write_bytes(b"\n".join(lines) + b"\n")
  return f"{tmp_path}/crawl.jsonl"


def test_a_bad_document_ends_a_run_unless_the_path_says_otherwise(path):
  good = {f"document {i} of a crawl" for i in range(300)}
  with pytest.raises(DataError, match="line 18"):
    list(documents(path, "train"))
  parts = [set(documents(f"{path},bad=skip", name)) for name in ("train", "heldout", "fit")]
  assert set().union(*parts) == good and sum(map(len, parts)) == len(good)
  assert source_at(f"{path},bad=skip") == Cut(SkipBad(JSONL(path)))
  assert source_at(f"{path},bad=refuse") == source_at(path)
  assert source_at(f"{path},heldout={path},bad=skip") == Splits(SkipBad(JSONL(path)), SkipBad(JSONL(path)))
  with pytest.raises(ConfigError, match="bad=ignore; allowed: refuse, skip"):
    source_at(f"{path},bad=ignore")


def test_they_are_counted_and_the_first_are_named(path, caplog):
  found = source_at(f"{path},bad=skip").documents()
  with caplog.at_level(logging.WARNING):
    assert len(list(found)) > 250
  assert found.left_out == len(BAD)
  assert len(caplog.messages) == 5 and "crawl.jsonl, line 18, field 'text': has no text" in caplog.messages[0]


def test_a_stream_goes_on_exactly_without_them(path):
  config = DataConfig(directory=f"{path},bad=skip", context=63, batch_size=4)
  stream = train_batches(config, seed=0)
  for _ in range(20):
    next(stream)
  resumed = train_batches(from_dict(DataConfig, to_dict(config)), seed=0)
  resumed.set_state(json.loads(json.dumps(stream.get_state())))
  for _ in range(5):
    assert next(resumed)["tokens"].tolist() == next(stream)["tokens"].tolist()


def test_shards_and_the_report_say_how_many(path, tmp_path):
  source = SkipBad(JSONL(path))
  meta = write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=3)
  assert (meta["documents"], meta["left_out"]) == (300, len(BAD))
  assert len(Tokens(str(tmp_path / "out")).documents()) == 300
  summary = summarise(source.documents(), ByteTokenizer())
  assert summary.left_out == len(BAD) and not summary.bad
  assert f"bad and left out    {len(BAD)}" in summary.text()


def test_what_concerns_a_file_is_not_skipped(path, tmp_path):
  (tmp_path / "empty.jsonl").write_bytes(b"")
  with pytest.raises(DataError, match=r"empty.jsonl: is empty"):
    source_at(f"{tmp_path}/*.jsonl,bad=skip").documents()
