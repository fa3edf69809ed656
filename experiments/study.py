"""A study: runs, and the evaluations that turn them into one table of the paper.

`python -m experiments.study --config=experiments/studies/NAME.py --workdir=DIR [--mesh=context --config.seed=1 ...]`

FILE's `get_config()` returns a dataclass of the study's settings with a method `study(workdir) -> plan.Study`.
`--data=PATH` names the documents that its runs read and that it measures on (data/sources/at.py). Whatever is finished
is not done again: runs go on from their last checkpoint, figures that results.jsonl holds are not measured.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from drope_jax import checkpoint, cli, distributed
from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.errors import ConfigError
from drope_jax.evaluate.measure import check, evaluate
from drope_jax.evaluate.tasks import make_tasks
from drope_jax.files import holds_something, write_json
from drope_jax.serialization import (
  differences,
  from_dict,
  is_cut_off,
  library_versions,
  load_config,
  save_config,
  to_dict,
)
from drope_jax.sharding import make_mesh, using
from drope_jax.train import train
from drope_jax.training.run import resolve, start_from
from drope_jax.workdir import sole_writer
from experiments.plan import Pretrained, Study, reading, run_directory
from experiments.report import write_report

logger = logging.getLogger("experiments.study")

# Settings of a start whose data is not ready yet. One with other settings may take the workdir over: nothing has been
# trained in it. Then config.json takes its place.
BEGUN = "config.begun.json"


def reserve(workdir: Path, settings: Any) -> None:
  """Makes the workdir this study's; until `confirm`, a start with other settings may still take it over.

  Raises:
    CheckpointError: it is another study's.
    ConfigError: it holds something else.
  """
  path, begun = workdir / "config.json", workdir / BEGUN
  if path.exists() and not is_cut_off(path, type(settings)):
    found = differences(to_dict(load_config(type(settings), path)), to_dict(settings))
    if found:
      raise checkpoint.CheckpointError(f"{workdir} belongs to another study: {found[0]}")
    return
  if begun.exists():
    if not _says(begun, settings):
      shutil.rmtree(workdir / "data", ignore_errors=True)  # made for other settings, by a start that went no further
      begun.unlink()
  elif not path.exists() and holds_something(workdir):
    raise ConfigError(f"--workdir: {workdir} is not empty and holds no study; choose another")
  workdir.mkdir(parents=True, exist_ok=True)
  save_config(settings, begun)


def _says(path: Path, settings: Any) -> bool:
  """Whether a file has these settings, and not others, another study's, or half of them."""
  try:
    return load_config(type(settings), path) == settings
  except ConfigError:
    return False


def confirm(workdir: Path) -> None:
  """From here on the workdir is this study's alone."""
  if (workdir / BEGUN).exists():
    (workdir / BEGUN).replace(workdir / "config.json")


def _alone(do: Callable[..., None]) -> Callable[..., None]:
  """`do`, which takes settings and a workdir, as the only one that writes to the workdir; its runs have their own."""

  @functools.wraps(do)
  def locked(settings: Any, workdir: Path, *arguments: Any, **options: Any) -> None:
    with sole_writer(workdir, "results"):
      do(settings, workdir, *arguments, **options)

  return locked


@_alone
def run_study(settings: Any, workdir: Path, mesh: Mesh | None = None) -> None:
  """Does what is still to be done of a study, and writes its report.

  What can be known to be impossible is refused before the first run: data, tasks, methods and lengths. `mesh` is of the
  devices that measure; those that train are arranged as the runs' configs say.

  Raises:
    BusyError: another process writes to the workdir.
    cli.Terminated: SIGTERM stopped one of its runs, which is saved.
  """
  settings = from_dict(type(settings), to_dict(settings))  # checks overrides that were set in place
  study: Study = settings.study(workdir)
  models = run_models(study, workdir)
  reserve(workdir, settings)
  study.prepare()
  data = study.eval_data()
  tasks = make_tasks(study.tasks, data)
  for name, methods in _methods(study).items():
    check(models[name], study.train_context, methods, study.lengths, tasks)
    if "drope" in methods and max(study.lengths) > study.train_context:
      _ = data.fit_documents  # read now: the temperature will be fitted on them
  confirm(workdir)
  with _described(study, workdir):
    _train_all(study, workdir)
    for name, methods in _methods(study).items():
      loaded, out = _load(study.runs[name], run_directory(workdir, name), mesh), workdir / "results.jsonl"
      with using(mesh):
        evaluate(name, loaded, methods, study.lengths, tasks, data, out, command=cli.command_line())
  logger.info("report: %s", write_report(workdir))


def run_models(study: Study, workdir: Path) -> dict[str, ModelConfig]:
  """The model of every run, of which none need be there yet."""
  models: dict[str, ModelConfig] = {}
  by_path = {str(run_directory(workdir, name)): name for name in study.runs}
  for name, run in study.runs.items():
    if isinstance(run, Pretrained):
      found = checkpoint.open_step(run.checkpoint)
      models[name] = run.transition.apply(found.model, found.context)
      continue
    source = None if run.init is None else by_path.get(run.init.checkpoint)
    models[name] = start_from(run, models[source]).model if source in models else resolve(run).model
  return models


def _methods(study: Study) -> dict[str, list[str]]:
  """By run: the methods that its rows ask for."""
  rows = {name: [row.method for row in study.rows if row.run == name] for name in study.runs}
  return {name: methods for name, methods in rows.items() if methods}


def _train_all(study: Study, workdir: Path) -> None:
  """Every run to its end."""
  for name, run in study.runs.items():
    if isinstance(run, Pretrained):
      continue
    logger.info("run %s (%d steps)", name, run.steps)
    outcome = train(run, run_directory(workdir, name))
    if not outcome.finished:
      raise cli.Terminated(f"in run {name} at step {outcome.step}")


def _load(run: TrainConfig | Pretrained, directory: Path, mesh: Mesh | None) -> checkpoint.Checkpoint:
  """The last checkpoint of a run, or the pretrained one."""
  if isinstance(run, TrainConfig):
    return checkpoint.load(directory, mesh=mesh)
  loaded = checkpoint.load(run.checkpoint, mesh=mesh)
  return loaded._replace(model=run.transition.apply(loaded.model, loaded.context))


@contextlib.contextmanager
def _described(study: Study, workdir: Path) -> Iterator[None]:
  """study.json: what the report needs beside the records, there while the work goes on.

  How it was made is that of the first start; the seconds of all starts add up, but for those that find nothing to do.
  """
  path = workdir / "study.json"
  description = json.loads(path.read_text()) if path.exists() else _provenance()
  description |= {
    "title": study.title,
    "seed": study.seed,
    "train_context": study.train_context,
    "spread": study.spread,
    "arms": [dataclasses.asdict(arm) for arm in study.arms],
    "rows": [dataclasses.asdict(row) for row in study.rows],
    "pretrained": {
      name: {**to_dict(run), "model": to_dict(checkpoint.open_step(run.checkpoint).model)}
      for name, run in study.runs.items()
      if isinstance(run, Pretrained)
    },
  }
  write_json(description, path)
  before, started = _records(workdir), time.monotonic()
  try:
    yield
  finally:
    if _records(workdir) != before:
      write_json(description | {"seconds": description["seconds"] + time.monotonic() - started}, path)


def _provenance() -> dict[str, Any]:
  return {
    "command": cli.command_line(),
    "machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores "
    f"({platform.machine()})",
    "versions": {"python": platform.python_version(), **library_versions()},
    "seconds": 0.0,
  }


def _records(workdir: Path) -> dict[Path, int]:
  """How much has been recorded, by file: unchanged after a start that had nothing to do."""
  paths = [workdir / "results.jsonl", *workdir.glob("runs/*/metrics.jsonl")]
  return {path: path.stat().st_size for path in paths if path.exists()}


def main(config: flags.FlagHolder, workdir: flags.FlagHolder, mesh: flags.FlagHolder, data: flags.FlagHolder) -> None:
  if distributed.asked_for():
    raise ConfigError("a study runs in one process; of several, start its runs with experiments.train")
  settings = cli.settings(config, "the settings of a study", lambda found: callable(getattr(found, "study", None)))
  if data.value is not None:
    settings = reading(settings, data.value)
  arranged = cli.mesh_config(mesh)
  run_study(settings, Path(workdir.value).resolve(), None if arranged is None else make_mesh(arranged))


if __name__ == "__main__":
  CONFIG = cli.define_config("Settings of the study: FILE[:ARG].")
  WORKDIR = cli.define_path("workdir", None, "Where everything goes.", required=True)
  MESH = cli.define_mesh("Devices that measure")
  DATA = cli.define_path("data", None, "What its runs read and it measures on: see drope_jax/data/sources/at.py.")
  cli.run(lambda: main(CONFIG, WORKDIR, MESH, DATA), computes=True)
