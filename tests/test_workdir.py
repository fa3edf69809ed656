"""The lock of a directory: one writer at a time, none that is dead, and no trace of it afterwards."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from support.tiny_run import contents

from drope_jax import workdir as workdir_module
from drope_jax.errors import BusyError
from drope_jax.files import holds_something
from drope_jax.workdir import run_name, set_aside, sole_writer

HOLDER = """
import sys, time
from drope_jax.workdir import sole_writer
with sole_writer(sys.argv[1], "run"):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("runs/drop", "drop"),
    ("runs/drop/", "drop"),
    ("runs/drop/../rope", "rope"),
    ("runs/smollm/checkpoint", "smollm"),
    ("gs://bucket/smollm/checkpoint", "smollm"),
    ("/checkpoint", "checkpoint"),
  ],
)
def test_a_run_has_the_name_of_its_workdir_and_an_imported_model_that_of_the_folder_above(path, name):
  assert run_name(path) == run_name(epath.Path(path)) == name


def test_the_name_of_a_run_is_that_of_the_link_to_it(tmp_path, monkeypatch):
  (tmp_path / "0a1b2c").mkdir()
  (tmp_path / "drop").symlink_to(tmp_path / "0a1b2c")
  assert run_name(tmp_path / "drop") == "drop"
  monkeypatch.chdir(tmp_path)
  assert run_name(".") == tmp_path.name


def test_a_second_writer_is_refused_in_one_line_and_the_first_one_left_alone(tmp_path):
  with sole_writer(tmp_path, "run"):
    before = contents(tmp_path)
    with (
      pytest.raises(BusyError, match=f"{tmp_path}: another process writes here \\(process {os.getpid()} on") as error,
      sole_writer(tmp_path, "run"),
    ):
      pytest.fail("there are two")
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before
    with sole_writer(tmp_path, "results"), sole_writer(tmp_path / "other", "run"):
      pass  # other records, and another directory
  assert contents(tmp_path) == {}
  with sole_writer(tmp_path, "run"):
    pass


def test_a_lock_file_that_cannot_be_written_is_locked_all_the_same(tmp_path, monkeypatch):
  """As that of another user in a shared folder."""
  (tmp_path / ".run.lock").touch()
  opened = os.open

  def reading_alone(path, flags, *mode):
    if flags & os.O_RDWR and Path(path).name == ".run.lock":
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return opened(path, flags, *mode)

  monkeypatch.setattr(os, "open", reading_alone)
  with sole_writer(tmp_path, "run"), pytest.raises(BusyError), sole_writer(tmp_path, "run"):
    pytest.fail("there are two")


def test_a_writer_that_was_killed_holds_nothing(tmp_path):
  root = Path(__file__).parents[1]
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
  )
  try:
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match=f"process {holder.pid} on"), sole_writer(tmp_path, "run"):
      pass
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
  assert contents(tmp_path) and not holds_something(tmp_path)  # its file is still there
  with sole_writer(tmp_path, "run"):
    pass


def test_a_directory_that_was_made_for_the_lock_alone_goes_with_it(tmp_path):
  with sole_writer(tmp_path / "a/b", "run"):
    assert (tmp_path / "a/b").is_dir()
  assert list(tmp_path.iterdir()) == []
  with sole_writer(tmp_path / "a/b", "run"):
    (tmp_path / "a/b/record").touch()
  assert list((tmp_path / "a/b").iterdir()) == [tmp_path / "a/b/record"]


@pytest.mark.parametrize("where", ["flock", "open"])
def test_where_nothing_can_be_locked_the_work_goes_on(tmp_path, monkeypatch, caplog, where):
  def refuse(*_):
    raise OSError(errno.ENOLCK if where == "flock" else errno.EROFS, "not here")

  monkeypatch.setattr(*((fcntl, "flock") if where == "flock" else (workdir_module.os, "open")), refuse)
  with sole_writer(tmp_path, "run"):
    done = True
  assert done and ("a second start would not be noticed" in caplog.text) == (where == "flock")


def test_nothing_is_locked_in_a_bucket():
  with sole_writer("gs://bucket/run", "run"), sole_writer("gs://bucket/run", "run"):
    pass


def test_what_is_set_aside_is_kept_whatever_was_set_aside_before(tmp_path):
  for number in (1, 2):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text(str(number))
    (tmp_path / "records").write_text(f"records {number}")
    aside = set_aside(tmp_path, [epath.Path(tmp_path / "folder")], copied=[epath.Path(tmp_path / "records")])
    assert aside == epath.Path(tmp_path / "superseded" / str(number))
  assert contents(tmp_path) == {
    "records": b"records 2",
    **{f"superseded/{n}/folder/file": str(n).encode() for n in (1, 2)},
    **{f"superseded/{n}/records": f"records {n}".encode() for n in (1, 2)},
  }
