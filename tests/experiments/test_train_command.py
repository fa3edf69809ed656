"""The command experiments.train: it names bad input in one line, and never loses existing files."""

import shutil
from pydoc_data import topics

import pytest
from support.commands import ROOT
from support.smollm2 import CHECKPOINT, needs_smollm2
from support.tiny_run import contents, records

from drope_jax import checkpoint
from drope_jax.data.corpus import build_corpus
from drope_jax.positions import RoPE
from drope_jax.serialization import differences, to_dict


def test_train_with_an_override(command, files, tmp_path):
  arguments = (f"--config={files / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", "--config.optim.peak_lr=0.02")
  ended = command("experiments.train", *arguments)
  assert ended.status == 0, ended.stderr
  assert f"finished: step 10 in {tmp_path / 'run'}" in ended.stderr
  assert checkpoint.load(tmp_path / "run").config.optim.peak_lr == 0.02
  assert len(records(tmp_path / "run")) == 10
  before = contents(tmp_path / "run")
  assert command("experiments.train", *arguments).status == 0
  assert contents(tmp_path / "run") == before


def test_a_tokenizer_larger_than_the_model_is_refused_before_it_is_trained(command, files, tmp_path):
  arguments = (f"--config={files / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", f"--data={tmp_path}")
  ended = command("experiments.train", *arguments, "--train_tokenizer=8000")
  assert ended.status == 2 and not (tmp_path / "run").exists()
  assert "--train_tokenizer is 8000, and config.model.vocab_size" in ended.error()


RECALIBRATE = ROOT / "experiments" / "configs" / "recalibrate.py"
SHORT = ("--config.steps=10", "--config.optim.warmup_steps=2", "--config.log_every=1", "--config.trackers=()")


def test_a_recalibration_and_its_control_differ_in_one_override(command, files, tmp_path):
  corpus = checkpoint.load(files / "finished").config.data.directory
  arguments = (
    f"--config={RECALIBRATE}:smollm2_135m",
    f"--config.init.checkpoint={files / 'finished'}",
    f"--config.data.directory={corpus}",
    "--config.data.context=16",
    "--config.data.batch_size=8",
    "--config.optim.peak_lr=0.01",
    *SHORT,
  )
  for name, override in (("dropped", ()), ("control", ("--config.init.transition=Keep",))):
    ended = command("experiments.train", *arguments, f"--workdir={tmp_path / name}", *override)
    assert ended.status == 0, ended.stderr
  dropped, control = (checkpoint.load(tmp_path / name) for name in ("dropped", "control"))
  assert sorted(differences(to_dict(control.config), to_dict(dropped.config))) == [
    "init.transition.type: 'Keep' there, 'Drop' here",
    f"model.positions: {to_dict(RoPE())} there, None here",
  ]
  assert dropped.config.data.tokenizer == str(files / "finished")  # which its own copy came from
  assert dropped.model.qk_norm is not None
  loss = [record["loss"] for record in records(tmp_path / "dropped")]
  assert min(loss[-3:]) < loss[0] - 0.1


@pytest.mark.slow
@needs_smollm2
def test_ten_steps_of_recalibration_help_a_dropped_smollm2(command, tmp_path):
  texts = [text for _, text in sorted(topics.topics.items())]
  corpus = build_corpus(tmp_path / "topics", {"train": texts})
  ended = command(
    "experiments.train",
    f"--config={RECALIBRATE}:smollm2_135m",
    f"--workdir={tmp_path / 'run'}",
    f"--config.init.checkpoint={CHECKPOINT}",
    f"--config.data.directory={corpus}",
    "--config.data.context=256",
    "--config.data.batch_size=4",
    "--config.data.interleave=1",  # so few steps then read few documents, whose losses can be compared
    "--config.data.seed=0",
    *SHORT,
  )
  assert ended.status == 0, ended.stderr
  loss = [record["loss"] for record in records(tmp_path / "run")]
  assert len(loss) == 10
  assert sum(loss[-3:]) / 3 < loss[0] - 1


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["--config.optim.peek_lr=1"], "peek_lr"),
    (["--config.depth=1"], "depth"),
    (["--config.steps=many"], "steps"),
    (["--no_such_flag"], "no_such_flag"),
    (["positional"], "positional"),
    (["--config.model.num_heads=3"], "ModelConfig.num_heads is 3"),
    (["--config.model.head_dim=5"], "ModelConfig.head_dim is 5"),
    (["--config.data.context=0"], "DataConfig.context is 0"),
    (["--config.data.batch_size=-1"], "DataConfig.batch_size is -1"),
    (["--config.optim.schedule=linear"], "OptimConfig.schedule is 'linear'"),
    (["--config.optim.schedule=constant", "--config.optim.floor=0.5"], "OptimConfig.floor is 0.5"),
    (["--config.compute.attention=splash"], "ComputeConfig.attention is 'splash', which runs on tpu; this is cpu"),
    (["--config.data.directory=/nowhere/at/all"], "/nowhere/at/all: no dataset here"),
    (["--config.data.split=test"], "split 'test' is missing or empty"),
    (["--config.data.tokenizer=/nowhere/tokenizer.json"], "/nowhere/tokenizer.json"),
    (["--config.mesh.fsdp=3"], "MeshConfig (data=-1, fsdp=3"),
    (["--mesh=fsdp=3"], "MeshConfig (data=-1, fsdp=3"),
    (["--mesh=fsdp3"], "--mesh has 'fsdp3'"),
    (["--config.seed=-1"], "TrainConfig.seed is -1"),
    (["--config.seed=1099511627776"], "TrainConfig.seed is 1099511627776"),
    (["--config.model.positions=Rope"], "TrainConfig.model.positions.type is 'Rope'; allowed: RoPE, RoPETable, ALiBi"),
    (["--config.model.positions.thta=3"], "thta is not a field; fields: theta"),
    (["--import=no_such_module"], "no_such_module"),
  ],
)
def test_train_names_what_is_wrong_and_writes_nothing(command, files, tmp_path, overrides, named):
  ended = command("experiments.train", f"--config={files / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *overrides)
  assert named in ended.error()
  assert ended.status == 2
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--workdir=/dev/null/unused"], "--config"),
    (["--config=/nowhere/config.py", "--workdir=/dev/null/unused"], "/nowhere/config.py"),
    (
      [f"--config={ROOT}/experiments/studies/quickstart.py", "--workdir=/dev/null/unused"],
      "--config: the file has a Quickstart; this command needs a TrainConfig",
    ),
  ],
)
def test_train_without_a_config(command, arguments, named):
  ended = command("experiments.train", *arguments)
  assert named in ended.error()
  assert ended.status == 2


@pytest.mark.parametrize(
  ("raised", "said"),
  [
    ("raise ValueError", "config.py: line 3: ValueError"),
    ("raise ConfigError('no rop')", "config.py: no rop"),
    ("raise KeyError", "config.py: line 3: KeyError"),
    ("import no_such_module", "No module named 'no_such_module'"),
  ],
)
def test_a_config_file_that_fails_is_told_by_what_it_says(command, tmp_path, raised, said):
  program = f"from drope_jax.errors import ConfigError\ndef get_config():\n  {raised}\n"
  (tmp_path / "config.py").write_text(program)
  ended = command("experiments.train", f"--config={tmp_path / 'config.py'}", "--workdir=/dev/null/unused")
  assert ended.error().endswith(said)
  assert ended.status == 2


def test_train_refuses_the_workdir_of_another_config(command, files):
  before = contents(files / "finished")
  ended = command(
    "experiments.train",
    f"--config={files / 'tiny.py'}",
    f"--workdir={files / 'finished'}",
    "--config.optim.peak_lr=0.5",
  )
  assert ended.status == 1
  assert f"{files / 'finished'} belongs to another run: optim.peak_lr: 0.01 there, 0.5 here" in ended.error()
  assert contents(files / "finished") == before


def test_train_refuses_a_checkpoint_of_another_architecture(command, files, tmp_path):
  config = f"--config={files / 'tiny.py'}:{files / 'wider'}"
  ended = command("experiments.train", config, f"--workdir={tmp_path / 'run'}")
  assert ended.status == 2
  assert "d_ff: 32 there, 24 here" in ended.error() and str(files / "wider") in ended.error()
  assert not (tmp_path / "run").exists()


def test_train_names_a_checkpoint_that_is_not_there(command, files, tmp_path):
  ended = command("experiments.train", f"--config={files / 'tiny.py'}:/nowhere/run", f"--workdir={tmp_path / 'run'}")
  assert ended.status == 1
  assert "/nowhere/run: not the workdir of a run" in ended.error()


def test_sigterm_while_a_run_starts_ends_with_the_status_asked_for(command, files, tmp_path):
  program = """
import sys, time
from pathlib import Path
from drope_jax import checkpoint
from drope_jax import cli
from experiments import train

def wait(*arguments, **named):
  started.touch()
  time.sleep(60)

started = Path(sys.argv.pop(1))

checkpoint.check_ours = wait
cli.run(train.main, stopped_status=train.STOPPED_STATUS)
"""
  workdir = shutil.copytree(files / "finished", tmp_path / "run")
  arguments = [f"--config={files / 'tiny.py'}", f"--workdir={workdir}", "--stopped_status=75"]
  before = contents(workdir)
  started = tmp_path / "started"
  ended = command("-c", program, started, *arguments, terminate_at=started)
  assert started.exists()
  assert ended.status == 75
  assert ended.stderr.endswith("stopped by SIGTERM; run the same command to go on from there\n"), ended.stderr
  assert contents(workdir) == before
