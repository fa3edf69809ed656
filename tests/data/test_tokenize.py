"""Token shards: written once, by several processes and hosts, gone on with after a stop, and never mixed up."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from support.stored_documents import store, text_of

from drope_jax.config import DataConfig
from drope_jax.data import token_shards
from drope_jax.data.pipeline import train_batches
from drope_jax.data.report import summarise
from drope_jax.data.sources import Cut, Splits, Tokens
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenize import others_not_written
from drope_jax.data.tokenizers import ByteTokenizer, load_tokenizer, train_bpe
from drope_jax.errors import BusyError, ConfigError
from drope_jax.workdir import sole_writer

TEXTS = [f"document {i}, {'naïve ☃ ' * (i % 9)}" for i in range(50)] + [""]


@pytest.fixture
def source(tmp_path):
  return store("jsonl", tmp_path / "data", TEXTS)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_shards_are_flat_arrays_that_meta_json_describes(source, tmp_path):
  meta = write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=4)
  assert meta == json.loads((tmp_path / "out" / "meta.json").read_text())
  assert (meta["dtype"], meta["vocab_size"], meta["eos_id"], meta["documents"]) == ("uint16", 257, 0, len(TEXTS))
  flat = np.concatenate([np.fromfile(tmp_path / "out" / shard["tokens_file"], "<u2") for shard in meta["shards"]])
  expected = [id for text in TEXTS for id in [*ByteTokenizer().encode(text), 0]]
  assert flat.tolist() == expected and meta["tokens"] == len(expected)
  for shard in meta["shards"]:
    data = (tmp_path / "out" / shard["tokens_file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == shard["sha256"]
  assert [text_of(one) for one in Tokens(str(tmp_path / "out")).documents()] == TEXTS
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert not {name for name in names if name.endswith(".draft") or name.startswith(("plan", "shard-"))}


class Wide(ByteTokenizer):
  """Has ids that stand for nothing."""

  vocab_size = 70_000

  def decode(self, ids):
    return super().decode([i for i in ids if i < 257])


def test_a_damaged_shard_is_reported(source, tmp_path):
  meta = write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=4)
  file = tmp_path / "out" / meta["shards"][2]["tokens_file"]
  data = bytearray(file.read_bytes())
  data[10] ^= 1
  file.write_bytes(data)
  (line,) = summarise(Cut(Tokens(str(tmp_path / "out"))).documents(), ByteTokenizer()).bad
  assert line.startswith(f"{file}: its content is not what was written")


def test_a_large_vocabulary_takes_four_bytes(source, tmp_path):
  meta = write_shards(source.documents(), Wide(), tmp_path / "out", shards=2)
  assert meta["dtype"] == "uint32"
  assert [text_of(one) for one in Tokens(str(tmp_path / "out")).documents()] == TEXTS


def test_it_goes_on_where_it_stopped(source, tmp_path, monkeypatch):
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "whole", shards=5)
  written = []
  write = token_shards._Shard.write

  def breaks(shard):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(shard.index)
    return write(shard)

  monkeypatch.setattr(token_shards._Shard, "write", breaks)
  with pytest.raises(KeyboardInterrupt):
    write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=5)
  with pytest.raises(ConfigError, match="is tokenising finished"):
    Tokens(str(tmp_path / "out")).documents()
  before = {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("tokens-")}
  assert len(before) == 2
  monkeypatch.setattr(token_shards._Shard, "write", lambda shard: written.append(shard.index) or write(shard))
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "out")  # in as many shards as it had begun with
  assert sorted(written) == [0, 1, 2, 3, 4]
  assert contents(tmp_path / "out") == contents(tmp_path / "whole")
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "out")
  assert len(written) == 5  # a finished one is left as it is


def test_a_second_start_of_a_host_is_refused(source, tmp_path):
  """Both would write the same drafts."""
  documents, tokenizer = source.documents(), ByteTokenizer()
  with sole_writer(tmp_path / "out", "host-0"), pytest.raises(BusyError, match="another process writes here"):
    write_shards(documents, tokenizer, tmp_path / "out", 2)
  assert not (tmp_path / "out").exists()
  assert write_shards(documents, tokenizer, tmp_path / "out", 2)["documents"] == len(documents)


def test_hosts_share_the_shards(source, tmp_path):
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "whole", shards=5)
  first = write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=5, host=0, hosts=2)
  assert first is None and len(list((tmp_path / "out").glob("shard-*"))) == 3
  assert write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=5, host=1, hosts=2) is not None
  assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_processes_share_the_shards(source, tmp_path):
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "whole", shards=5)
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=5, processes=2)
  assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_of_other_content_are_not_overwritten(source, tmp_path):
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=3)
  before = contents(tmp_path / "out")
  train_bpe(TEXTS, 300, tmp_path / "bpe")
  other = store("jsonl", tmp_path / "other", [*TEXTS, "more"])
  for documents, tokenizer, said in (
    (source.documents(), load_tokenizer(tmp_path / "bpe"), "tokenizer"),
    (other.documents(), ByteTokenizer(), "source"),
  ):
    with pytest.raises(ConfigError, match=f"holds other shards \\({said}"):
      write_shards(documents, tokenizer, tmp_path / "out")
  with pytest.raises(ConfigError, match="as 3 shards, not 4"):
    write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=4)
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "a.txt").write_text("dear")
  with pytest.raises(ConfigError, match="holds something that is no token shards"):
    write_shards(source.documents(), ByteTokenizer(), tmp_path / "thesis")
  with pytest.raises(ConfigError, match="is tokenised already"):
    write_shards(Tokens(str(tmp_path / "out")).documents(), ByteTokenizer(), tmp_path / "again")
  assert contents(tmp_path / "out") == before
  assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["a.txt"]


def test_a_part_alone_and_its_tokenizer_beside_it(source, tmp_path):
  train_bpe(TEXTS, 300, tmp_path / "bpe")
  part = Cut(source, 0.2, 0.2).documents()
  write_shards(part, load_tokenizer(tmp_path / "bpe"), tmp_path / "out", shards=3)
  tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
  assert [tokenizer.decode(ids.tolist()) for ids in Tokens(str(tmp_path / "out")).documents()] == list(part)


def test_shards_have_the_parts_of_the_text_and_so_its_batches(source, tmp_path):
  """Where a document belongs is decided by the hash of its text."""
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=3)
  text, shards = (Cut(one, heldout=0.3, fit=0.2) for one in (source, Tokens(str(tmp_path / "out"))))
  for name in ("train", "heldout", "fit"):
    assert [text_of(one) for one in shards.part(name).documents()] == list(text.part(name).documents())
  config = DataConfig(source=text, context=15, batch_size=4)
  ours, theirs = (train_batches(dataclasses.replace(config, source=one), seed=0) for one in (shards, text))
  for _ in range(20):
    np.testing.assert_array_equal(next(ours)["tokens"], next(theirs)["tokens"])
  apart = Splits(Tokens(str(tmp_path / "out")), text.part("heldout"))  # what is held out is text, and known in tokens
  assert [text_of(one) for one in apart.documents()] == [
    one for one in source.documents() if one not in set(text.part("heldout").documents())
  ]


def test_splits_that_are_not_written_are_named(source, tmp_path):
  held_out = Splits(source, Cut(source).part("heldout"))
  assert "--data=OUT,heldout=PATH" in others_not_written(held_out, None, "OUT")
  assert not others_not_written(held_out, "heldout", "OUT") and not others_not_written(Cut(source), None, "OUT")


def test_batches_of_shards_are_those_of_the_text_at_any_context(source, tmp_path):
  write_shards(source.documents(), ByteTokenizer(), tmp_path / "out", shards=3)
  for context in (15, 40):
    text, shards = (
      train_batches(DataConfig(source=one, context=context, batch_size=4, document_mask=True), seed=0)
      for one in (source, Tokens(str(tmp_path / "out")))
    )
    for _ in range(20):
      ours, theirs = next(shards), next(text)
      assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
