"""Folders of data as people have them: with links, names in capitals, and workdirs that someone put there."""

import gzip

import pytest
from support.stored_documents import store

from drope_jax.data.prepare import check_outside
from drope_jax.data.sources import JSONL, Cut, Mixture, Text, source_at
from drope_jax.data.sources.files import fixed_part
from drope_jax.errors import ConfigError, DataError


@pytest.fixture
def texts(tmp_path):
  (tmp_path / "data" / "sub").mkdir(parents=True)
  for name in ("a.txt", "b.txt", "sub/c.txt"):
    (tmp_path / "data" / name).write_text(name)
  return tmp_path / "data"


def read(path):
  return [document for document in source_at(str(path)).source.documents()]


def test_links_to_folders_and_files_elsewhere_are_followed(texts, tmp_path):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere" / "d.txt").write_text("d")
  (texts / "linked").symlink_to(tmp_path / "elsewhere")
  (texts / "z.txt").symlink_to(tmp_path / "elsewhere" / "d.txt")
  assert read(texts) == ["a.txt", "b.txt", "d", "sub/c.txt", "d"]


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_loop_of_links_is_named(texts, target):
  (texts / "sub" / "again").symlink_to(target)
  for path in (texts, texts / "**/*.txt"):
    with pytest.raises(DataError, match=f"{texts}/sub/again.*: a link to a folder that it lies in"):
      source_at(str(path)).documents()


def test_a_link_to_nothing_is_named(texts):
  (texts / "sub" / "gone.txt").symlink_to("/nowhere/gone.txt")
  for path in (texts, texts / "sub" / "*.txt"):
    with pytest.raises(DataError, match=f"{texts}/sub/gone.txt: a link to nothing"):
      source_at(str(path)).documents()


def test_names_in_capitals_are_read_and_not_passed_over(tmp_path):
  for name in ("a.TXT", "b.TXT"):
    (tmp_path / name).write_text(name)
  assert read(tmp_path) == ["a.TXT", "b.TXT"]
  (tmp_path / "c.txt").write_text("c")
  with pytest.raises(ConfigError, match=r"several kinds; .*\*\.TXT.*\*\.txt"):
    source_at(str(tmp_path))


@pytest.mark.parametrize(
  ("name", "pack"), [("a.JSONL", bytes), ("a.jsonl.GZ", gzip.compress), ("A.Json.gz", gzip.compress)]
)
def test_a_file_in_capitals_is_of_its_kind(tmp_path, monkeypatch, name, pack):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / name).write_bytes(pack(b'{"text": "x"}\n'))
  assert read(tmp_path / name) == ["x"]


def test_the_fixed_part_of_a_pattern():
  for pattern, expected in (("a/b/*.txt", "a/b"), ("/a/**/*.txt", "/a"), ("a[[]1]/b*/c", "a[1]"), ("*.txt", ".")):
    assert str(fixed_part(pattern)) == expected


def test_what_is_written_lies_outside_of_what_is_read(texts, tmp_path):
  inside, outside = texts / "sub" / "run", tmp_path / "run"
  (tmp_path / "linked").symlink_to(texts)
  refused = [
    (str(texts), inside),
    (str(texts), texts),
    (str(texts), tmp_path / "linked" / "run"),
    (f"{tmp_path}/linked,bad=skip", inside),
    (f"/nowhere/*.txt,heldout={texts}", inside),
    (f"{tmp_path}/**/*.json", inside),
    (Cut(JSONL(f"{texts}/**/*.jsonl")), inside),
    (Mixture((Text(f"{texts}/*.txt"), JSONL(f"{tmp_path}/**/*")), (1.0, 1.0)), inside),
  ]
  for dataset, directory in refused:
    with pytest.raises(ConfigError, match=f"--out: {directory} lies in .*, all of which is read as data"):
      check_outside(dataset, directory, "--out")
  allowed = [(str(texts), outside), (f"{texts}/*.txt", inside), (f"{texts}/**/*.txt", inside), ("", inside)]
  for dataset, directory in (*allowed, (Cut(Text(f"{texts}/**/*.txt")), inside), (str(texts), "gs://bucket/run")):
    check_outside(dataset, directory, "--out")


def test_a_run_within_token_shards_or_a_dataset_of_tfds_does_no_harm(tmp_path):
  store("tokens", tmp_path, ["a text"] * 3)
  check_outside(str(tmp_path / "shards"), tmp_path / "shards" / "run", "--workdir")
