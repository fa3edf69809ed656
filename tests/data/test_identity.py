"""By what a run knows its data again when it goes on: an edit is refused or told, a copy goes on."""

import contextlib
import json
import os
import re
import shutil

import pytest
from support.stored_documents import STORES, store

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import Mixture, SkipBad, Splits, Text, source
from drope_jax.errors import CheckpointError

TEXTS = [f"document {i}, {'x' * (i % 23)}" for i in range(200)]
FILES = ("text", "jsonl", "jsonl.gz", "parquet", "array_record", "tfds", "tfrecord")


@pytest.fixture(autouse=True)
def large(tmp_path, monkeypatch):
  """These sources count as large ones, of which a sample is read."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(source, "SMALL", 0)


def going_on(source, state=None):
  """The state at the start; `state` is that of an earlier start."""
  with contextlib.closing(train_batches(DataConfig(source=source, context=15, batch_size=4), 0)) as stream:
    if state is not None:
      stream.set_state(json.loads(json.dumps(state)))
    return stream.get_state()


def warnings(caplog):
  return [record.getMessage() for record in caplog.records if record.name == "drope_jax.data.identity"]


def edit(path):
  """Another letter in a document that no sample holds, of the same size; as an editor does it, now."""
  data = path.read_bytes()
  assert b"document 1," in data
  path.write_bytes(data.replace(b"document 1,", b"documemt 1,"))


def test_an_edit_of_json_lines_is_refused_and_their_copy_is_not(tmp_path, caplog):
  before = store("jsonl", tmp_path / "data", TEXTS)
  state = going_on(before)
  copied = going_on(store("jsonl", tmp_path / "copy", TEXTS), state)
  assert copied["content"] == {**state["content"], "files": copied["content"]["files"]}
  edit(tmp_path / "data" / "part0.jsonl")
  with pytest.raises(CheckpointError, match="the content of its files is another, by their checksums"):
    going_on(before, state)
  assert not warnings(caplog)


@pytest.mark.parametrize("kind", FILES)
def test_files_that_were_written_again_are_told_where_not_all_was_compared(kind, tmp_path, caplog):
  before = store(kind, tmp_path / "data", TEXTS)
  state = going_on(before)
  assert state["content"]["files"]["count"] == len(before.documents().stored) > 0
  going_on(before, state)
  assert not warnings(caplog)
  for path in (tmp_path / "data").rglob("*"):
    os.utime(path, ns=(0, 1))
  going_on(before, state)
  found = warnings(caplog)
  assert len(found) == (not kind.startswith("jsonl"))
  assert not found or re.search(r"files were written at another time.* 64 documents .*the others were not", found[0])


def test_an_edit_of_another_file_is_told(tmp_path, caplog):
  before = store("text", tmp_path, TEXTS)
  state = going_on(before)
  (path,) = (path for path in tmp_path.rglob("*.txt") if path.read_text() == TEXTS[1])
  edit(path)
  going_on(before, state)
  assert "were written at another time than before" in warnings(caplog)[0]
  path.rename(path.with_name(f"{path.stem}-b.txt"))
  going_on(before, state)
  assert "have other names than before" in warnings(caplog)[1]


def test_of_a_small_source_all_is_compared_and_nothing_is_told(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(source, "SMALL", 1 << 20)
  before = store("text", tmp_path, TEXTS)
  state = going_on(before)
  for path in tmp_path.rglob("*.txt"):
    os.utime(path, ns=(0, 1))
  going_on(before, state)
  assert not warnings(caplog)


def test_a_state_of_an_earlier_version_goes_on(tmp_path, caplog):
  before = store("text", tmp_path, TEXTS)
  state = going_on(before)
  del state["content"]["files"]
  going_on(before, state)
  assert not warnings(caplog)


def test_sources_of_others_know_their_files(tmp_path):
  text, lines = store("text", tmp_path / "text", TEXTS), store("jsonl", tmp_path / "lines", TEXTS)
  count = len(text.documents().stored) + len(lines.documents().stored)
  assert len(SkipBad(Mixture((text, lines), (1, 1))).documents().stored) == count
  shutil.copytree(tmp_path / "text", tmp_path / "held")
  assert len(Splits(lines, Text(f"{tmp_path}/held/**/*.txt")).documents().stored) == len(lines.documents().stored)


@pytest.mark.parametrize("kind", sorted({*STORES} - {*FILES}))
def test_every_source_goes_on(kind, tmp_path):
  before = store(kind, tmp_path, TEXTS)
  going_on(before, going_on(before))
