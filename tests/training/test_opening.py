"""Whose a workdir is while a run goes on in it, and from where the run goes on if not from its last step."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from support.full_disk import read_only
from support.interrupting import crash, when_step_is_logged
from support.objectives import Pull
from support.tiny_run import contents, losses, records, tiny_model, tiny_run

from drope_jax import checkpoint
from drope_jax.config import InitConfig
from drope_jax.errors import BusyError, CheckpointError, ConfigError, UserError
from drope_jax.train import train
from drope_jax.transitions import Keep
from drope_jax.workdir import sole_writer


@pytest.fixture(scope="module")
def config(corpus):
  return tiny_run(corpus, model=tiny_model(num_layers=1), objective=Pull(), steps=6, checkpoint_every=2, keep_latest=3)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  train(config, workdir)
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(finished, tmp_path / "run")


def same_run(ours, theirs):
  assert losses(ours) == losses(theirs)
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load(ours).params, checkpoint.load(theirs).params)


def test_two_starts_of_one_run_are_one(config, workdir, tmp_path):
  for place in (workdir, tmp_path / "new"):
    with sole_writer(place, "run"):
      before = contents(place)
      with pytest.raises(BusyError, match=f"{place}: another process writes here"):
        train(config, place)
      assert contents(place) == before
  assert not (tmp_path / "new").exists()
  assert train(config, workdir) == (6, True)


def test_a_run_holds_its_workdir_while_it_goes_on(config, tmp_path, monkeypatch):
  tried = []

  def start_another():
    with pytest.raises(BusyError):
      train(config, tmp_path / "run")
    tried.append(True)

  when_step_is_logged(monkeypatch, 3, start_another)
  assert train(config, tmp_path / "run") == (6, True) and tried


def test_a_damaged_last_step_is_named_and_the_run_goes_on_from_another_if_told_to(config, finished, workdir):
  shutil.rmtree(workdir / "checkpoints/6/meta")
  before = contents(workdir)
  with pytest.raises(CheckpointError, match=r"checkpoints/6: .* no meta; other steps here: 2, 4 \(--step=N"):
    train(config, workdir)
  with pytest.raises(CheckpointError, match="no checkpoint of step 3 to go on from; there are 2, 4, 6"):
    train(config, workdir, from_step=3)
  assert contents(workdir) == before
  assert train(config, workdir, from_step=4) == (6, True)
  same_run(workdir, finished)
  aside = workdir / "superseded/1"
  assert [path.name for path in sorted(aside.iterdir())] == ["6", "metrics.jsonl"]
  assert (aside / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]
  assert contents(aside / "6") == {
    name.removeprefix("checkpoints/6/"): content
    for name, content in before.items()
    if name.startswith("checkpoints/6/")
  }


def test_a_step_that_cannot_be_read_itself_changes_nothing(config, workdir):
  shutil.rmtree(workdir / "checkpoints/2/params")
  before = contents(workdir)
  with pytest.raises(CheckpointError, match=r"checkpoints/2: .* no params; other steps here: 4, 6"):
    train(config, workdir, from_step=2)
  assert contents(workdir) == before


@pytest.mark.parametrize("folder", ["empty", pytest.param("missing", marks=pytest.mark.slow)])
def test_checkpoints_that_are_gone_are_missed(config, finished, workdir, caplog, folder):
  shutil.rmtree(workdir / "checkpoints")
  if folder == "empty":
    (workdir / "checkpoints").mkdir()
  before = (workdir / "metrics.jsonl").read_bytes()
  with caplog.at_level("WARNING", logger="drope_jax"):
    assert train(config, workdir) == (6, True)
  (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("drope_jax")]
  assert f"{workdir} has no checkpoint, though its records go to step 6: it starts again from step 0" in said
  assert (workdir / "superseded/1/metrics.jsonl").read_bytes() == before
  same_run(workdir, finished)


def test_a_run_that_had_no_checkpoint_yet_is_not_missed(config, finished, tmp_path, monkeypatch, caplog):
  later = dataclasses.replace(config, checkpoint_every=6)
  when_step_is_logged(monkeypatch, 3, crash)
  with pytest.raises(InterruptedError):
    train(later, tmp_path / "run")
  with caplog.at_level("INFO", logger="drope_jax"):
    assert train(later, tmp_path / "run") == (6, True)
  assert not [record for record in caplog.records if record.levelname == "WARNING" and "drope_jax" in record.name]
  assert "has no checkpoint yet: it starts again from step 0" in caplog.text
  same_run(tmp_path / "run", finished)


def test_records_that_are_none_are_named_and_do_not_stop_the_run(config, finished, workdir, caplog):
  shutil.rmtree(workdir / "checkpoints/6")
  path = workdir / "metrics.jsonl"
  garbage = [b"\0" * 40, b'\xff\xfe{"step": 2}', b"{", b"[2]", b'{"loss": 1.0}', b'{"step": "2"}']
  lines = path.read_bytes().splitlines()
  path.write_bytes(b"\n".join([*garbage, *lines, b'{"step": 6, "lo']))
  assert train(config, workdir) == (6, True)
  same_run(workdir, finished)
  assert [record["step"] for record in records(workdir)] == list(range(1, 7))
  assert json.loads(path.read_bytes().splitlines()[0])["step"] == 1
  for number in (*range(1, len(garbage) + 1), len(garbage) + len(lines) + 1):
    assert f"metrics.jsonl:{number}: not the record of a step" in caplog.text


# --- what is written, and when ----------------------------------------------------------------------------------------


def test_a_start_that_fails_before_the_run_has_a_state_writes_nothing(config, finished, tmp_path):
  init = InitConfig(checkpoint=str(shutil.copytree(finished, tmp_path / "source")), transition=Keep())
  shutil.rmtree(tmp_path / "source/checkpoints/6/params/d")
  with pytest.raises(CheckpointError, match="checkpoints/6/params: this checkpoint is not complete"):
    train(dataclasses.replace(config, model=None, init=init), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_run_whose_last_step_cannot_be_read_is_not_extended(config, workdir):
  shutil.rmtree(workdir / "checkpoints/6/params/d")
  before = contents(workdir)
  with pytest.raises(CheckpointError, match="checkpoints/6/params: this checkpoint is not complete"):
    train(dataclasses.replace(config, steps=8), workdir, extend=True)
  assert contents(workdir) == before


def test_a_finished_run_is_not_recorded_with_a_rate_at_which_no_step_was_trained(config, workdir):
  before = contents(workdir)
  faster = dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=0.5))
  with pytest.raises(CheckpointError, match=r"optim\.peak_lr: 0\.01 there, 0\.5 here; .* to more steps"):
    train(faster, workdir, extend=True)
  assert contents(workdir) == before
  assert train(config, workdir, extend=True) == (6, True)


def test_where_there_is_no_run_none_is_extended(config, tmp_path):
  with pytest.raises(ConfigError, match=f"{tmp_path}/run: there is no run to extend"):
    train(config, tmp_path / "run", extend=True)
  assert not (tmp_path / "run").exists()


def test_a_config_that_was_cut_off_is_not_replaced_by_that_of_another_run(config, workdir):
  path = workdir / "config.json"
  path.write_bytes(path.read_bytes()[:200])
  before = contents(workdir)
  with pytest.raises(CheckpointError, match=r"belongs to another run: .*seed"):
    train(dataclasses.replace(config, seed=3), workdir)
  assert contents(workdir) == before


def test_a_finished_run_is_finished_on_a_disk_that_cannot_be_written(config, workdir):
  before = contents(workdir)
  with read_only(workdir):
    with pytest.raises(OSError, match="Read-only"):
      (workdir / "file").touch()
    assert train(config, workdir) == (6, True)
    with pytest.raises(UserError, match=f"{workdir}.* cannot be (written|saved)"):
      train(dataclasses.replace(config, steps=8), workdir, extend=True)
  assert contents(workdir) == before
