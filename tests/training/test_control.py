"""How a run is stopped, extended, watched and profiled, and what it says of itself."""

import dataclasses
import logging
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from support.interrupting import terminate, when_step_is_logged
from support.tiny_run import contents, losses, records, tiny_run

from drope_jax import checkpoint, distributed
from drope_jax.config import ComputeConfig, InitConfig
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.objective import InTurn, NextToken
from drope_jax.optim import learning_rate
from drope_jax.optimizers import AdamW, Muon
from drope_jax.sharding import make_mesh
from drope_jax.train import train
from drope_jax.training.step import compiler_options


@pytest.fixture(scope="module")
def config(corpus):
  return tiny_run(corpus)


def longer(config, **optim):
  return dataclasses.replace(config, steps=14, optim=dataclasses.replace(config.optim, **optim))


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_the_same_call_goes_on_exactly(config, finished, tmp_path, monkeypatch):
  before = signal.getsignal(signal.SIGINT)
  when_step_is_logged(monkeypatch, 2, lambda: terminate(signal.SIGINT))
  assert train(config, tmp_path) == (3, False)
  assert signal.getsignal(signal.SIGINT) is before
  assert train(config, tmp_path) == (10, True)
  assert losses(tmp_path) == losses(finished)


def test_in_another_thread_nothing_listens():
  heard = []

  def listen():
    with distributed.sigterm() as stop_at:
      heard.append(stop_at(3))

  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert heard == [False]


# --- going on for longer ----------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_for_more_steps_and_at_another_rate(config, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  with pytest.raises(CheckpointError, match=r"steps: 10 there, 14 here; .*--extend"):
    train(longer(config), workdir)
  again = longer(config, peak_lr=5e-3, schedule="constant")
  assert train(again, workdir, extend=True) == (14, True)
  found = records(workdir)
  assert [record["step"] for record in found] == list(range(1, 15))
  assert losses(workdir)[:10] == losses(finished)
  schedule = learning_rate(again.optim, 14)
  rates = [float(schedule(step)) for step in range(10, 14)]
  assert [record["learning_rate"] for record in found[10:]] == pytest.approx(rates)
  recorded = checkpoint.open_step(workdir).config
  assert recorded is not None and (recorded.steps, recorded.optim) == (14, again.optim)
  assert train(again, workdir) == (14, True)  # now this is the run's config


def test_a_run_is_not_cut_short(config, finished):
  before = contents(finished)
  with pytest.raises(ConfigError, match="a run can be extended, not cut short"):
    train(dataclasses.replace(config, steps=3), finished, extend=True)
  assert contents(finished) == before


def test_what_is_trained_may_not_differ_when_a_run_is_extended(config, finished):
  before = contents(finished)
  for changes in ({"seed": 1}, {"optim": dataclasses.replace(config.optim, optimizer=AdamW(beta2=0.5))}):
    with pytest.raises(CheckpointError, match=r"belongs to another run: (seed|optim\.optimizer\.beta2)") as error:
      train(dataclasses.replace(longer(config), **changes), finished, extend=True)
    assert "--extend" not in str(error.value)
  assert contents(finished) == before


def test_a_run_whose_objective_has_changed_on_the_way_is_not_extended(config, tmp_path):
  both = InTurn(first=NextToken(), then=NextToken(z_loss=1e-3), share=0.5)
  inside = InTurn(first=both, then=NextToken(), share=0.9)
  for name, objective in (("one", both), ("inside", inside)):
    short = dataclasses.replace(config, objective=objective, steps=4, checkpoint_every=4)
    train(short, tmp_path / name)
    before = contents(tmp_path / name)
    with pytest.raises(ConfigError, match="with other steps InTurn would bring back what it has taken away"):
      train(dataclasses.replace(short, steps=12), tmp_path / name, extend=True)
    assert contents(tmp_path / name) == before


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_program_that_configured_logging_sees_what_a_run_is(config, tmp_path, caplog):
  with caplog.at_level(logging.INFO, logger="drope_jax"):
    train(config, tmp_path / "run")
  said = [record.getMessage() for record in caplog.records if record.name.startswith("drope_jax")]
  for facts in (
    ("model:", "8,144 parameters", "RoPE(theta=10000.0"),
    ("devices:", "1 of 1 devices", "mesh: one device"),
    ("data:", "80 documents", "about 2,311 tokens", "10 steps read 1,280", "0.55 epochs"),
    ("weights:", "seed 0"),
    ("compiling:", "8 x 16 tokens", "float32", "NextToken"),
    ("step 10/10", "loss"),
  ):
    assert sum(all(fact in line for fact in facts) for line in said) == 1, facts


def test_a_finished_run_introduces_nothing(config, finished, caplog):
  with caplog.at_level(logging.INFO, logger="drope_jax"):
    train(config, finished)
  assert not [record for record in caplog.records if record.name.startswith("drope_jax")]


def test_norms_are_those_of_the_parameters_and_of_what_is_added_to_them(config, finished, tmp_path):
  train(dataclasses.replace(config, log_norms=True, checkpoint_every=1, keep_latest=3), tmp_path)
  found = records(tmp_path)
  assert all(record["update_norm"] > 0 for record in found)
  before, after = (checkpoint.load(tmp_path, step).params for step in (9, 10))
  last = found[-1]
  assert last["param_norm"] == pytest.approx(norm(before), rel=1e-5)
  assert last["update_norm"] == pytest.approx(norm(jax.tree.map(np.subtract, after, before)), rel=1e-3)
  assert "param_norm" not in records(finished)[0]


def norm(tree):
  return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def test_a_profile_is_written_of_the_steps_that_were_asked_for(config, finished, tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(("start", directory)))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  train(dataclasses.replace(config, profile_steps=2), tmp_path / "some")
  assert calls == [("start", str(tmp_path / "some" / "profile")), "stop"]
  calls.clear()
  train(dataclasses.replace(config, profile_steps=100), tmp_path / "more")  # than there are
  assert calls == [("start", str(tmp_path / "more" / "profile")), "stop"]
  assert losses(tmp_path / "some") == losses(finished)


def test_a_profile_is_a_trace_of_jax(config, tmp_path):
  train(dataclasses.replace(config, profile_steps=1), tmp_path)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# --- settings that are values -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_muon_trains_and_resumes_exactly(corpus, tmp_path, monkeypatch):
  config = tiny_run(corpus, optim={"optimizer": Muon()}, steps=6)
  train(config, tmp_path / "straight")
  when_step_is_logged(monkeypatch, 2, terminate)
  assert train(config, tmp_path / "stopped") == (3, False)
  assert train(config, tmp_path / "stopped") == (6, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
  assert losses(tmp_path / "straight")[-1][1] < losses(tmp_path / "straight")[0][1] - 0.3
  assert checkpoint.open_step(tmp_path / "stopped").config.optim.optimizer == Muon()
  init = InitConfig(checkpoint=str(tmp_path / "straight"), keep_optimizer=True)
  kept = tiny_run(corpus, optim={"optimizer": Muon()}, init=init, steps=2)
  assert train(kept, tmp_path / "kept") == (2, True)


def test_moments_of_another_optimizer_are_refused_in_one_line(corpus, finished, tmp_path):
  init = InitConfig(checkpoint=str(finished), keep_optimizer=True)
  with pytest.raises(
    ConfigError, match=f"keep_optimizer is True; the optimizer of {finished} is AdamW, and the run's Muon"
  ):
    train(tiny_run(corpus, init=init, optim={"optimizer": Muon()}), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_options_of_the_compiler_are_those_of_the_platform(config):
  mesh = make_mesh(config.mesh)
  assert compiler_options(ComputeConfig(), mesh) == {"xla_cpu_experimental_ynn_fusion_type": ""}
  options = ("cpu:a=1=2", "tpu:b=3", "cpu:c=")
  assert compiler_options(ComputeConfig(xla_options=options), mesh) == {"a": "1=2", "c": ""}
  for wrong in ("a=1", "cpu:a", ":a=1"):
    with pytest.raises(ConfigError, match=r"ComputeConfig\.xla_options has"):
      ComputeConfig(xla_options=(wrong,))
