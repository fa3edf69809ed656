"""Saves that fail: one line, soon, and the steps before are kept."""

import contextlib
import dataclasses
import shutil
import subprocess
import time

import pytest
from support.full_disk import files_of_at_most
from support.interrupting import when_step_is_logged
from support.objectives import Pull
from support.tiny_run import losses, tiny_model, tiny_run

from drope_jax import checkpoint
from drope_jax.errors import CheckpointError, FileError
from drope_jax.train import train


@pytest.fixture(scope="module")
def config(corpus):
  return tiny_run(corpus, model=tiny_model(num_layers=1), objective=Pull(), checkpoint_every=4, keep_latest=5)


def fails(config, workdir, capfd):
  """The one line with which a run ends; nothing else is printed."""
  capfd.readouterr()
  began = time.monotonic()
  with pytest.raises(CheckpointError) as error:
    train(config, workdir)
  assert time.monotonic() - began < 60  # orbax would wait for ten minutes for a folder that cannot be created
  assert "Traceback" not in capfd.readouterr().err
  message = str(error.value)
  assert "\n" not in message and f"{workdir / 'checkpoints'}" in message
  return message


def wait_for(step):
  """Until a step is saved, which goes on in the background."""
  while not step.exists():
    time.sleep(0.01)


def test_a_step_that_cannot_be_written_ends_the_run_and_it_goes_on_from_the_one_before(
  config, tmp_path, monkeypatch, capfd
):
  workdir = tmp_path / "run"
  with contextlib.ExitStack() as limited:

    def fill():
      wait_for(workdir / "checkpoints/4")
      limited.enter_context(files_of_at_most(8_000))

    when_step_is_logged(monkeypatch, 5, fill)
    said = fails(config, workdir, capfd)
  assert "File too large" in said
  assert "kept: step 4, from the last of which the same command goes on" in said
  assert checkpoint.load(workdir).step == 4
  assert train(config, workdir) == (10, True)
  assert [step for step, _ in losses(workdir)] == list(range(1, 11))


@pytest.mark.parametrize("in_its_place", [None, "a file"])
def test_a_folder_that_is_removed_while_the_run_goes_on(config, tmp_path, monkeypatch, capfd, in_its_place):
  folder = tmp_path / "run/checkpoints"

  def remove():
    wait_for(folder / "4")
    shutil.rmtree(folder)
    if in_its_place:
      folder.write_text(in_its_place)

  when_step_is_logged(monkeypatch, 8, remove)  # step 8 is saved after this
  if in_its_place:
    assert "no earlier step is there" in fails(config, tmp_path / "run", capfd)
    assert folder.read_text() == in_its_place
    assert "a file, where the folder of checkpoints should be" in fails(config, tmp_path / "run", capfd)
  else:
    assert train(config, tmp_path / "run") == (10, True)  # the folder is made again
    assert checkpoint.load(tmp_path / "run", 8).step == 8


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_checkpoints(config, tmp_path, capfd):
  disk = tmp_path / "disk"
  disk.mkdir()
  mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
  if mounted.returncode:
    pytest.skip("only root can mount a small disk")
  try:
    config = dataclasses.replace(
      config, model=tiny_model(num_layers=1, d_model=64, d_ff=128), checkpoint_every=1, keep_latest=20
    )
    with pytest.raises((CheckpointError, FileError), match="No space left on device") as error:
      train(config, disk / "run")
    assert "\n" not in str(error.value) and "Traceback" not in capfd.readouterr().err
    steps = sorted(int(path.name) for path in (disk / "run/checkpoints").iterdir() if path.name.isdigit())
    assert steps and checkpoint.load(disk / "run").step == steps[-1] < 10
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    assert train(config, disk / "run") == (10, True)
  finally:
    subprocess.run(["umount", str(disk)], check=True)
