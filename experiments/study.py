"""A study: runs, and the evaluations that turn them into one table of the paper.

`python -m experiments.study --config=experiments/studies/NAME.py:SIZE --workdir=DIR [--seeds=0,1,2 --runs=DIR
--only=RUN,RUN --dry_run --mesh=context --config.seed=1 ...]`

FILE's `get_config()` returns a dataclass of the study's settings with a method `study(workdir) -> plan.Study`. Whatever
is finished is not done again: runs go on from their last checkpoint, figures that results.jsonl holds are not measured.
A workdir that was moved goes on where it lies now. `--data=PATH` names the documents that its runs read and that it
measures on (data/sources/at.py).

`--dry_run` prints what would be run, its tokens and FLOPs, and about how long it takes here. `--seeds=0,1,2` does the
study in DIR/seed-0, DIR/seed-1, ..., and writes DIR/seeds.md, their paired differences. `--runs=DIR` keeps the runs in
a folder that several studies share (store.py). `--only=RUN` does that run, what it starts from, and its measurements.
"""

import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from drope_jax import checkpoint, cli, distributed
from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.data.prepare import check_outside
from drope_jax.errors import CheckpointError, ConfigError
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
from drope_jax.workdir import sole_writer
from experiments import store
from experiments.commands import COMMANDS
from experiments.dry_run import dry_run
from experiments.models import run_models
from experiments.plan import Pretrained, Study, needed_runs, reading, run_directory
from experiments.report import write_report
from experiments.reporting.stored import read_json
from experiments.seeds import write_seeds

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
      raise CheckpointError(f"{workdir} belongs to another study: {found[0]}")
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
def run_study(
  settings: Any, workdir: Path, mesh: Mesh | None = None, *, only: Sequence[str] = (), runs: Path | None = None
) -> None:
  """Does what is still to be done of a study, and writes its report.

  What can be known to be impossible is refused before the first run: data, tasks, methods and lengths.

  Args:
    mesh: of the devices that measure; those that train are arranged as the runs' configs say.
    only: names of runs; all others are left as they are, but for those that these start from. None named: all are done.
    runs: a folder of runs that other studies share; see store.py.

  Raises:
    BusyError: another process writes to the workdir.
    cli.Terminated: SIGTERM stopped one of its runs, which is saved.
  """
  settings = from_dict(type(settings), to_dict(settings))  # checks overrides that were set in place
  study: Study = settings.study(workdir)
  models = run_models(study, workdir)
  chosen = needed_runs(study, workdir, only)
  reserve(workdir, settings)
  study.prepare()
  data = study.eval_data()
  tasks = make_tasks(study.tasks, data)
  methods_of = {name: methods for name, methods in _methods(study).items() if name in chosen}
  for name, methods in methods_of.items():
    check(models[name], study.train_context, methods, study.lengths, tasks)
    if "drope" in methods and max(study.lengths) > study.train_context:
      _ = data.fit_documents  # read now: the temperature will be fitted on them
  confirm(workdir)
  shared = {} if runs is None else store.link(study, workdir, runs)
  with _described(study, models, workdir) as settle:
    _train_all({name: study.runs[name] for name in chosen}, workdir, shared)
    for name, methods in methods_of.items():
      loaded, out = _load(settle(name), run_directory(workdir, name), mesh), workdir / "results.jsonl"
      with using(mesh):
        evaluate(name, loaded, methods, study.lengths, tasks, data, out, command=cli.command_line())
  logger.info("report: %s", write_report(workdir))


def _methods(study: Study) -> dict[str, list[str]]:
  """By run: the methods that its rows ask for."""
  rows = {name: [row.method for row in study.rows if row.run == name] for name in study.runs}
  return {name: methods for name, methods in rows.items() if methods}


def _train_all(runs: Mapping[str, TrainConfig | Pretrained], workdir: Path, shared: Mapping[str, Path]) -> None:
  """Every run to its end; `shared`: where those lie that other studies use too."""
  for name, run in runs.items():
    if isinstance(run, Pretrained):
      continue
    logger.info("run %s (%d steps)", name, run.steps)
    with store.held(shared[name]) if name in shared else contextlib.nullcontext():
      if name in shared and store.steps_done(shared[name]) >= run.steps:
        continue  # its config.json is that of the study that trained it, and stays as it is
      outcome = train(run, run_directory(workdir, name).resolve())
    if not outcome.finished:
      raise cli.Terminated(f"in run {name} at step {outcome.step}")


def _load(run: TrainConfig | Pretrained, directory: Path, mesh: Mesh | None) -> checkpoint.Checkpoint:
  """The last checkpoint of a run, or the pretrained one."""
  if isinstance(run, TrainConfig):
    return checkpoint.load(directory, mesh=mesh)
  loaded = checkpoint.load(run.checkpoint, mesh=mesh)
  return loaded._replace(model=run.transition.apply(loaded.model, loaded.context))


@contextlib.contextmanager
def _described(
  study: Study, models: Mapping[str, ModelConfig], workdir: Path
) -> Iterator[Callable[[str], TrainConfig | Pretrained]]:
  """study.json: what the report needs beside the records, there while the work goes on.

  How it was made is that of the first start; the seconds of all starts add up, but for those that find nothing to do.
  Yields a function that settles a run before it is measured (`Pretrained.settled`), and writes down what it is.
  """
  path = workdir / "study.json"
  description = read_json(path) if path.exists() else _provenance()
  description |= {
    "title": study.title,
    "seed": study.seed,
    "train_context": study.train_context,
    "spread": study.spread,
    "arms": [dataclasses.asdict(arm) for arm in study.arms],
    "rows": [dataclasses.asdict(row) for row in study.rows],
    "pretrained": {
      name: _stored(Pretrained(run.checkpoint, run.transition), _held(run, models, workdir))
      for name, run in study.runs.items()
      if isinstance(run, Pretrained)
    },
  }
  write_json(description, path)
  before, started = _records(workdir), time.monotonic()

  def settle(name: str) -> TrainConfig | Pretrained:
    run = study.runs[name]
    if isinstance(run, Pretrained):
      run = run.settled(run_directory(workdir, name))
      description["pretrained"][name] = _stored(run, _held(run, models, workdir))
      write_json(description, path)
    return run

  try:
    yield settle
  finally:
    if _records(workdir) != before:
      write_json(description | {"seconds": description["seconds"] + time.monotonic() - started}, path)


def _stored(run: Pretrained, held: ModelConfig) -> dict[str, Any]:
  """What study.json says of a checkpoint in the place of a run, and of the model that it holds."""
  return {**to_dict(run), "model": to_dict(held)}


def _held(run: Pretrained, models: Mapping[str, ModelConfig], workdir: Path) -> ModelConfig:
  """The model that the checkpoint in the place of a run holds."""
  by_path = {str(run_directory(workdir, name)): model for name, model in models.items()}
  return by_path[run.checkpoint] if run.checkpoint in by_path else checkpoint.open_step(run.checkpoint).model


def _provenance() -> dict[str, Any]:
  return {
    "command": cli.command_line(),
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "commit": _commit(),
    "machine": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores "
    f"({platform.machine()})",
    "versions": {"python": platform.python_version(), **library_versions()},
    "seconds": 0.0,
  }


def _commit() -> str:
  """Of the clone that this runs from, with a "+" behind it if files were changed; empty outside of one."""
  try:
    told = subprocess.run(
      ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"],
      capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return ""
  return told.stdout.strip()


def _records(workdir: Path) -> dict[Path, int]:
  """How much has been recorded, by file: unchanged after a start that had nothing to do."""
  paths = [workdir / "results.jsonl", *workdir.glob("runs/*/metrics.jsonl")]
  return {path: path.stat().st_size for path in paths if path.exists()}


def run_seeds(settings: Any, seeds: Sequence[int], workdir: Path, **how: Any) -> None:
  """The study for each seed, in WORKDIR/seed-N, and seeds.md: figures over seeds, paired with the control's."""
  done = []
  for seed in seeds:
    logger.info("seed %d", seed)
    done.append(_of_seed(workdir, seed))
    run_study(_with_seed(settings, seed), done[-1], **how)
  if len(done) > 1:
    logger.info("over seeds: %s", write_seeds(done, workdir))


def _of_seed(workdir: Path, seed: int) -> Path:
  """Where the study of a seed lies; launch/one_gpu.sh uses the same names."""
  return workdir / f"seed-{seed}"


def _with_seed(settings: Any, seed: int) -> Any:
  if "seed" not in {field.name for field in dataclasses.fields(settings)}:
    raise ConfigError(f"--seeds: {type(settings).__name__} has no seed: the study trains nothing and draws nothing")
  return dataclasses.replace(settings, seed=seed)


def main(
  config: flags.FlagHolder,
  workdir: flags.FlagHolder,
  mesh: flags.FlagHolder,
  seeds: flags.FlagHolder,
  only: flags.FlagHolder,
  runs: flags.FlagHolder,
  dry: flags.FlagHolder,
  data: flags.FlagHolder,
) -> None:
  if distributed.asked_for():
    raise ConfigError("a study runs in one process; of several, start its runs with experiments.train")
  _check_is_no_figure(Path(config.value.partition(":")[0]))
  settings = cli.settings(config, "the settings of a study", lambda found: callable(getattr(found, "study", None)))
  if data.value is not None:
    settings = reading(settings, data.value)
  if workdir.value is None and not dry.value:
    raise ConfigError("--workdir is required, except by --dry_run (--help lists the flags)")
  if data.value is not None and workdir.value is not None:
    check_outside(data.value, workdir.value, "--workdir")
  arranged, directory = cli.mesh_config(mesh), Path(workdir.value or "WORKDIR").resolve()
  chosen, store_directory = only.value or [], Path(runs.value).resolve() if runs.value else None
  numbers = _parsed_seeds(seeds.value) if seeds.value else None
  if dry.value:
    settings = settings if numbers is None else _with_seed(settings, numbers[0])
    where = directory if numbers is None else _of_seed(directory, numbers[0])
    print(dry_run(settings, where, len(numbers or [0]), chosen, store_directory))
    return
  how: dict[str, Any] = {"only": chosen, "runs": store_directory}
  how["mesh"] = None if arranged is None else make_mesh(arranged)
  if numbers is None:
    run_study(settings, directory, **how)
  else:
    run_seeds(settings, numbers, directory, **how)


def _check_is_no_figure(file: Path) -> None:
  """Raises ConfigError for a figure of the paper that looks at models and trains none."""
  command = f"experiments.studies.{file.stem}"
  if command in COMMANDS["Figures of the paper"] and file.resolve().parent == Path(__file__).parent / "studies":
    raise ConfigError(f"--config: {file.name} trains nothing and is a command of its own: `python -m {command} --help`")


def _parsed_seeds(texts: Sequence[str]) -> list[int]:
  if not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
    raise ConfigError(f"--seeds is {','.join(texts)}; it must be different whole numbers, as 0,1,2")
  return [int(text) for text in texts]


if __name__ == "__main__":
  CONFIG = cli.define_config("Settings of the study: FILE[:ARG].")
  WORKDIR = cli.define_path("workdir", None, "Where everything goes; --dry_run needs none.", local=True)
  MESH = cli.define_mesh("Devices that measure")
  SEEDS = cli.define_list("seeds", None, "Seeds, each in WORKDIR/seed-N.")
  ONLY = cli.define_list("only", None, "Runs to do, with those that they start from; default: all.")
  RUNS = cli.define_path("runs", None, "Folder of runs that several studies share.", local=True)
  DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, and do nothing.")
  DATA = cli.define_path("data", None, "What its runs read and it measures on: see drope_jax/data/sources/at.py.")
  cli.run(
    lambda: main(CONFIG, WORKDIR, MESH, SEEDS, ONLY, RUNS, DRY_RUN, DATA),
    computes=True,
    saves_memory="half of config.batch_size",
  )
