"""What a full disk does to files that are kept: one line that names the file, and no draft."""

import json

import pytest
from support.full_disk import files_of_at_most
from support.stored_documents import store

from drope_jax.data.corpus import build_corpus
from drope_jax.data.prepare import trained_tokenizer
from drope_jax.errors import FileError
from drope_jax.files import append_json_lines, replace_whole

TEXTS = [f"document {i}, {'some words ' * (i % 9)}" for i in range(400)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache"


def check_no_draft(folder):
  assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "tfrecord"])
def test_what_is_kept_of_files(kind, tmp_path, cache):
  source = store(kind, tmp_path / "data", TEXTS)
  said = f"{cache}/drope_jax/.*: cannot be written \\(File too large\\); make room, or .* XDG_CACHE_HOME"
  with files_of_at_most(500), pytest.raises(FileError, match=said):
    source.documents()
  check_no_draft(cache)
  assert len(source.documents()) == len(TEXTS)


def test_a_cache_that_is_no_folder(tmp_path, cache):
  cache.touch()
  with pytest.raises(FileError, match=f"{cache}/drope_jax/.*: cannot be written \\(Not a directory\\)"):
    store("jsonl", tmp_path / "data", TEXTS).documents()


def test_a_corpus(tmp_path):
  with files_of_at_most(500), pytest.raises(FileError, match=f"{tmp_path}/corpus: cannot be written .*File too large"):
    build_corpus(tmp_path / "corpus", {"train": TEXTS})
  check_no_draft(tmp_path)


def test_a_tokenizer_that_is_trained(tmp_path, cache):
  documents = store("text", tmp_path / "data", TEXTS).documents()
  with files_of_at_most(500), pytest.raises(FileError, match=r"tokenizer\.json: cannot be written"):
    trained_tokenizer(documents, 300)
  assert not list(cache.rglob("*.draft")) and not list(cache.rglob("tokenizer.json"))
  trained_tokenizer(documents, 300)


def test_a_file_that_is_replaced_keeps_its_content(tmp_path):
  path = tmp_path / "a.json"
  replace_whole(path, "before")
  with files_of_at_most(500), pytest.raises(FileError, match=f"{path}: cannot be written"):
    replace_whole(path, "x" * 1000)
  assert [one.read_text() for one in tmp_path.iterdir() if one.is_file()] == ["before"]


def test_records_that_are_appended(tmp_path):
  path = tmp_path / "records.jsonl"
  append_json_lines([{"a": 1}], path)
  with files_of_at_most(500), pytest.raises(FileError, match=f"{path}: cannot be written"):
    append_json_lines([{"text": "x" * 1000}], path)
  append_json_lines([{"a": 2}], path)
  assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 2}]
