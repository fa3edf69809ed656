"""A study: runs, and the evaluations that turn them into one table of the paper.

`python -m experiments.study --config=experiments/studies/NAME.py --workdir=DIR [--config.seed=1 ...]`

FILE's `get_config()` returns a dataclass of the study's settings with a method `study(workdir) -> Study`. Whatever is
finished is not done again: runs go on from their last checkpoint, figures that results.jsonl holds are not measured.
"""

import dataclasses
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from drope_jax import checkpoint, distributed
from drope_jax.config import ConfigError, TrainConfig, from_dict, library_versions, load_config, save_config, to_dict
from drope_jax.drope import drop
from drope_jax.evaluate.catalog import EvalData, make_tasks
from drope_jax.evaluate.measure import evaluate
from drope_jax.train import train
from experiments import cli
from experiments.report import write_report

logger = logging.getLogger("experiments.study")


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that follow one another, as one line of the loss plot. Role: "control", "drope" or "baseline"."""

  label: str
  runs: tuple[str, ...]
  role: str


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """In the place of a run: a checkpoint that is measured without training, as it is or without its embedding."""

  checkpoint: str  # an imported model, or the workdir of a run
  drop: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the result tables: a run's last checkpoint under an inference-time method."""

  run: str
  method: str
  label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What to prepare, train and measure."""

  title: str
  seed: int
  train_context: int
  prepare: Callable[[], None]  # makes the dataset, if it is not there
  runs: Mapping[str, TrainConfig | Pretrained]  # in order: a run may start from the weights of an earlier one
  arms: Sequence[Arm]
  rows: Sequence[Row]
  lengths: Sequence[int]  # in tokens
  tasks: Sequence[str]
  eval_data: Callable[[], EvalData]


def require(settings: Any, **commands: str) -> None:
  """Raises ConfigError if the path in one of the named fields is not there, with the command that makes it."""
  for field, command in commands.items():
    path = getattr(settings, field)
    if not Path(path).exists():
      raise ConfigError(f"{type(settings).__name__}.{field}: {path} is not there; `python -m {command}`")


def run_directory(workdir: Path, run: str) -> Path:
  """Where a run of a study lies."""
  return workdir / "runs" / run


def claim(workdir: Path, settings: Any) -> None:
  """Writes the settings as WORKDIR/config.json; raises ConfigError if the workdir is another study's."""
  path = workdir / "config.json"
  if path.exists():
    earlier = load_config(type(settings), path)
    if earlier != settings:
      names = [f.name for f in dataclasses.fields(settings) if getattr(earlier, f.name) != getattr(settings, f.name)]
      raise checkpoint.CheckpointError(
        f"{workdir} belongs to another study: {names[0]} is {getattr(earlier, names[0])!r} there, "
        f"{getattr(settings, names[0])!r} here"
      )
  elif workdir.exists() and any(workdir.iterdir()):
    raise ConfigError(f"--workdir: {workdir} is not empty and holds no study; choose another")
  workdir.mkdir(parents=True, exist_ok=True)
  save_config(settings, path)


def run_study(settings: Any, workdir: Path) -> bool:
  """Does what is still to be done of a study, and writes its report. False if SIGTERM stopped it in a run."""
  settings = from_dict(type(settings), to_dict(settings))  # checks overrides that were set in place
  study: Study = settings.study(workdir)
  claim(workdir, settings)
  started = time.monotonic()
  study.prepare()
  for name, config in study.runs.items():
    # Not `isinstance(config, Pretrained)`: a study's file imports this module anew where it is run as a program.
    if not isinstance(config, TrainConfig):
      continue
    logger.info("run %s (%d steps)", name, config.steps)
    outcome = train(config, run_directory(workdir, name))
    if not outcome.finished:
      logger.info(
        "stopped in run %s at step %d, which is saved; the same command goes on from there", name, outcome.step
      )
      return False
  data = study.eval_data()
  tasks = make_tasks(study.tasks, data)
  for name, config in study.runs.items():
    methods = [row.method for row in study.rows if row.run == name]
    if methods:
      loaded = _load(config, run_directory(workdir, name))
      evaluate(name, loaded, methods, study.lengths, tasks, data, workdir / "results.jsonl", command=cli.command_line())
  _describe(study, workdir, time.monotonic() - started)
  logger.info("report: %s", write_report(workdir))
  return True


def _load(run: TrainConfig | Pretrained, directory: Path) -> checkpoint.Checkpoint:
  """The last checkpoint of a run, or the pretrained one."""
  if isinstance(run, TrainConfig):
    return checkpoint.load(directory)
  loaded = checkpoint.load(run.checkpoint)
  return loaded._replace(model=drop(loaded.model)) if run.drop else loaded


def _describe(study: Study, workdir: Path, seconds: float) -> None:
  """study.json: what the report needs to know beside the records. The seconds of several starts add up."""
  path = workdir / "study.json"
  before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
  description = {
    "title": study.title,
    "command": cli.command_line(),
    "seed": study.seed,
    "train_context": study.train_context,
    "tasks": list(study.tasks),
    "machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {_processor()}",
    "versions": {"python": platform.python_version(), **library_versions()},
    "seconds": before + seconds,
    "arms": [dataclasses.asdict(arm) for arm in study.arms],
    "rows": [dataclasses.asdict(row) for row in study.rows],
    "pretrained": {
      name: dataclasses.asdict(run) | {"model": to_dict(checkpoint.load_model_config(run.checkpoint))}
      for name, run in study.runs.items()
      if not isinstance(run, TrainConfig)
    },
  }
  path.write_text(json.dumps(description, indent=2) + "\n")


def _processor() -> str:
  return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def main() -> None:
  if distributed.asked_for():
    raise ConfigError("a study runs in one process; of several, start its runs with experiments.train")
  run_study(cli.settings(CONFIG), Path(WORKDIR.value).resolve())


if __name__ == "__main__":
  CONFIG = config_flags.DEFINE_config_file("config", None, "Settings of the study: FILE[:ARG].")
  WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes.", required=True)
  flags.mark_flag_as_required("config")
  cli.run(main)
