"""Imports and exports are there whole or not at all, under the path that was meant; numbers have bounds."""

import os
import subprocess
import sys

import pytest
from support.checkpoints import write_checkpoint
from support.full_disk import files_of_at_most
from support.tiny_run import contents, tiny_model

from drope_jax.errors import CheckpointError, FileError
from drope_jax.interop.__main__ import main
from drope_jax.interop.drafts import draft_of, local


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  directory = tmp_path_factory.mktemp("made") / "run"
  write_checkpoint(tiny_model(), directory)
  return directory


@pytest.mark.parametrize("format", ["llama", "gguf"])
def test_an_export_without_room_leaves_no_trace_and_is_one_line(format, run, tmp_path, capsys):
  with files_of_at_most(8000):
    assert main(["export", str(run), str(tmp_path / "new/out"), f"--format={format}"]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: {tmp_path / 'new/out'}: cannot be written (") and "None" not in line
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_made_is_one_line(run, tmp_path, capsys):
  (tmp_path / "file").write_text("mine")
  assert main(["export", str(run), str(tmp_path / "file/out")]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: {tmp_path / 'file/out'}: cannot be written")
  assert contents(tmp_path) == {"file": b"mine"}


def test_what_comes_to_lie_in_its_place_stays(tmp_path):
  target = tmp_path / "target"
  with pytest.raises(CheckpointError, match="holds something already"), draft_of(target) as draft:
    (draft / "file").write_text("ours")
    target.mkdir()
    (target / "file").write_text("theirs")
  assert contents(tmp_path) == {"target/file": b"theirs"}


KILLED = """
import os, pathlib, signal, sys
from drope_jax.interop.drafts import draft_of
with draft_of(pathlib.Path(sys.argv[1])) as draft:
  (draft / "weights").write_text("half")
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_left_is_removed_by_the_next_one_and_nothing_else(tmp_path):
  target = tmp_path / "target"
  (tmp_path / ".target-archived").mkdir()  # of the user's
  subprocess.run([sys.executable, "-c", KILLED, target], check=False)
  (left,) = tmp_path.glob(".target-*.draft")
  with draft_of(tmp_path / "other"):
    assert left.exists()  # nobody knows that one
  with draft_of(target) as running:
    assert not left.exists()
    with draft_of(target):
      assert running.exists()
    target.rmdir()
  assert {path.name for path in tmp_path.iterdir()} == {".target-archived", "other", "target"}


def test_an_error_while_reading_is_not_called_one_of_writing(tmp_path):
  (tmp_path / "elsewhere").mkdir()
  with pytest.raises(FileNotFoundError), draft_of(tmp_path / "here/target"):
    (tmp_path / "elsewhere/absent").read_bytes()
  with pytest.raises(FileError, match="here/target: cannot be written"), draft_of(tmp_path / "here/target") as draft:
    (draft / "absent/file").write_text("x")
  assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_the_home_directory_is_meant_by_its_sign(run, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert local("~/x") == tmp_path / "x"
  os.symlink(run, tmp_path / "run")
  assert main(["export", "~/run", "~/out"]) == 0
  assert main(["import", "~/out", "~/again", "--tokenizer=~/out"]) == 0
  assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "again"}


NUMBERS = ["--target-length=0", "--target-length=3000000000", "--shard-bytes=0", "--shard-bytes=-1", "--step=-1"]
NUMBERS += [f"--target-length=64 --c={c}" for c in ("nan", "inf", "-9", "x")] + ["--c=0.1", "--dtype=float8"]


@pytest.mark.parametrize("arguments", NUMBERS)
def test_a_number_out_of_bounds_is_refused_by_name(arguments, run, tmp_path, capsys):
  status = main(["export", str(run), str(tmp_path / "out"), *arguments.split()])
  (line,) = capsys.readouterr().err.splitlines()
  name = arguments.split()[-1].split("=")[0].removeprefix("--")
  assert status in (1, 2) and (name in line or name.replace("-", "_") in line), line
  assert not list(tmp_path.iterdir())
