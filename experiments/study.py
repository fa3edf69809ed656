"""Runs a study: its training runs, and the evaluations that turn them into one table of the paper.

`python -m experiments.study --config=experiments/studies/NAME.py:SIZE --workdir=DIR [--seeds=0,1,2 --runs=DIR
--only=RUN,RUN --dry_run --mesh=context --config.seed=1 ...]`

FILE's `get_config()` returns a dataclass of the study's settings with a method `study(workdir) -> plan.Study`. Finished
work is not repeated: runs resume from their last checkpoint, and figures that are in results.jsonl are not measured
again. A workdir may be moved and resumed. `--data=PATH` names the documents to train and measure on
(data/sources/at.py).

A study that has figures of its own draws them into DIR/figures when its runs are done, but not under `--only`, and
again if a file is gone or more was trained or measured. Some studies only draw.

`--dry_run` prints the runs with their tokens, FLOPs and estimated time on this machine. `--seeds=0,1,2` runs the study
in DIR/seed-0, DIR/seed-1, ..., and writes DIR/seeds.md over all finished seeds in DIR, with differences paired within
the seeds. `--runs=DIR` keeps the runs in a folder that several studies share (store.py). `--only=RUN` limits the study
to that run, the runs that it starts from, and their measurements. `--formats=png,svg,pdf` writes the report's pictures
in these formats, and always as PNG.
"""

import contextlib
import dataclasses
import datetime
import itertools
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
from drope_jax.errors import CheckpointError, ConfigError, ReportError
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
from experiments.dry_run import dry_run
from experiments.models import run_models
from experiments.plan import Figures, Pretrained, Study, figures_directory, needed_runs, reading, run_directory
from experiments.report import write_report
from experiments.reporting.stored import read_json
from experiments.reporting.writing import all_formats, chosen_formats
from experiments.seeds import finished_seeds, merge_seeds

logger = logging.getLogger("experiments.study")

# Holds the settings until the data is ready. Until then nothing has been trained, and a start with other settings may
# take the workdir over; afterwards this file becomes config.json.
BEGUN = "config.begun.json"
DRAWN = "drawn.json"  # beside a study's figures: the `_records` that they were drawn from


def reserve(workdir: Path, settings: Any) -> None:
  """Reserves the workdir for this study; until `confirm`, a start with other settings may still take it over.

  Raises:
    CheckpointError: it belongs to another study.
    ConfigError: it holds something else.
  """
  path, begun = workdir / "config.json", workdir / BEGUN
  if path.exists() and not is_cut_off(path, type(settings)):
    held, own = _recorded_type(path), type(settings).__name__
    if held not in (None, own):
      raise CheckpointError(f"{workdir} belongs to another study: its settings are a {held}, and these a {own}")
    found = differences(to_dict(load_config(type(settings), path)), to_dict(settings))
    if found:
      raise CheckpointError(f"{workdir} belongs to another study: {found[0]}")
    return
  if begun.exists():
    if not _holds(begun, settings):
      shutil.rmtree(workdir / "data", ignore_errors=True)  # prepared for the other settings
      (workdir / "study.json").unlink(missing_ok=True)
      begun.unlink()
  elif not path.exists() and holds_something(workdir):
    raise ConfigError(f"--workdir: {workdir} is not empty and holds no study; choose another")
  workdir.mkdir(parents=True, exist_ok=True)
  save_config(settings, begun)


def _recorded_type(path: Path) -> Any:
  """The class that a file of settings names; None for a file that `load_config` will refuse."""
  try:
    return read_json(path).get("type")
  except ReportError:
    return None


def _holds(path: Path, settings: Any) -> bool:
  """Whether a file holds exactly these settings; False for a file that cannot be read as such settings."""
  try:
    return load_config(type(settings), path) == settings
  except ConfigError:
    return False


def confirm(workdir: Path) -> None:
  """Makes the reservation final: from here on the workdir belongs to this study."""
  if (workdir / BEGUN).exists():
    (workdir / BEGUN).replace(workdir / "config.json")


def run_study(
  settings: Any,
  workdir: Path,
  mesh: Mesh | None = None,
  *,
  only: Sequence[str] = (),
  runs: Path | None = None,
  formats: Sequence[str] = ("png",),
) -> None:
  """Does what is left to do of a study, and writes its report.

  Data, tasks, methods and lengths that cannot work are refused before the first run.

  Args:
    mesh: of the devices that measure; training uses the meshes of the runs' configs.
    only: names of the runs to do, together with the runs that they start from; empty: all runs.
    runs: a folder of runs that several studies share; see store.py.
    formats: of the pictures of its report, see reporting.writing.FORMATS; the PNG is always written.

  Raises:
    BusyError: another process writes to the workdir.
    cli.Terminated: SIGTERM stopped one of its runs, which is saved.
  """
  with sole_writer(workdir, "results"):
    study = _train_and_measure(settings, workdir, mesh, only, runs)
    try:
      if study.figures is not None and only:
        logger.info("the figures of the study itself are not drawn under --only")
      elif study.figures is not None and not _is_drawn(study.figures, workdir, formats):
        figures_directory(workdir).mkdir(exist_ok=True)
        study.figures.draw(figures_directory(workdir), formats)
        write_json(_records(workdir), figures_directory(workdir) / DRAWN)
      confirm(workdir)  # of a study without runs only now, so that settings which cannot be drawn may be corrected
    finally:  # what was measured is reported even if the figures fail
      if not (workdir / BEGUN).exists():
        logger.info("report: %s", write_report(workdir, formats))


def _is_drawn(figures: Figures, workdir: Path, formats: Sequence[str]) -> bool:
  """Whether all figures are there, and nothing was trained or measured since they were drawn."""
  folder, names = figures_directory(workdir), itertools.product(figures.captions, all_formats(formats))
  drawn_from = read_json(folder / DRAWN) if (folder / DRAWN).exists() else {}
  return all((folder / f"{name}.{suffix}").exists() for name, suffix in names) and drawn_from == _records(workdir)


def _train_and_measure(
  settings: Any, workdir: Path, mesh: Mesh | None, only: Sequence[str], runs: Path | None
) -> Study:
  settings = from_dict(type(settings), to_dict(settings))  # checks overrides, which flags set in place
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
  if study.runs:
    if study.figures is not None and (workdir / BEGUN).exists():  # once: confirmed settings have been checked
      study.figures.check(data.tokenizer)
    confirm(workdir)
  if runs is None:
    store.check_links(workdir, chosen)
  shared = {} if runs is None else store.link(study, workdir, runs)
  with _described(study, models, workdir) as settle:
    _train_all({name: study.runs[name] for name in chosen}, workdir, shared)
    passes = [part for part in (tasks[:1], tasks[1:]) if part]  # see Study.tasks
    for part, (name, methods) in itertools.product(passes, methods_of.items()):
      loaded, out = _load(settle(name), run_directory(workdir, name), mesh), workdir / "results.jsonl"
      with using(mesh):
        evaluate(name, loaded, methods, study.lengths, part, data, out, command=cli.command_line())
  return study


def _methods(study: Study) -> dict[str, list[str]]:
  """The methods that the rows ask for, by run."""
  rows = {name: [row.method for row in study.rows if row.run == name] for name in study.runs}
  return {name: methods for name, methods in rows.items() if methods}


def _train_all(runs: Mapping[str, TrainConfig | Pretrained], workdir: Path, shared: Mapping[str, Path]) -> None:
  """Trains every run to its end; `shared`: the directories of runs that other studies use too."""
  for name, run in runs.items():
    if isinstance(run, Pretrained):
      continue
    logger.info("run %s (%d steps)", name, run.steps)
    with store.held(shared[name]) if name in shared else contextlib.nullcontext():
      if name in shared and store.steps_done(shared[name]) >= run.steps:
        continue  # its config.json, written by the study that trained it, is left alone
      outcome = train(run, run_directory(workdir, name).resolve())
    if not outcome.finished:
      raise cli.Terminated(f"in run {name} at step {outcome.step}")


def _load(run: TrainConfig | Pretrained, directory: Path, mesh: Mesh | None) -> checkpoint.Checkpoint:
  """The last checkpoint of a run, or the pretrained checkpoint under its transition."""
  if isinstance(run, TrainConfig):
    return checkpoint.load(directory, mesh=mesh)
  loaded = checkpoint.load(run.checkpoint, mesh=mesh)
  return loaded._replace(model=run.transition.apply(loaded.model, loaded.context))


@contextlib.contextmanager
def _described(
  study: Study, models: Mapping[str, ModelConfig], workdir: Path
) -> Iterator[Callable[[str], TrainConfig | Pretrained]]:
  """Writes study.json, which the report needs beside the records, before and after the work within.

  Command, machine and versions are those of the first start. Seconds add up over all starts that had something to do.
  Yields a function that settles a run before it is measured (`Pretrained.settled`), and records the result, which
  stays until the run is settled again.
  """
  path = workdir / "study.json"
  description = read_json(path) if path.exists() else _provenance()
  settled = description.get("pretrained", {})
  description |= {
    "title": study.title,
    "seed": study.seed,
    "train_context": study.train_context,
    "spread": study.spread,
    "arms": [dataclasses.asdict(arm) for arm in study.arms],
    "rows": [dataclasses.asdict(row) for row in study.rows],
    "figures": {} if study.figures is None else dict(study.figures.captions),
    "pretrained": {
      name: {
        **_stored(Pretrained(run.checkpoint, run.transition), _held(run, models, workdir)),
        **settled.get(name, {}),
        "checkpoint": run.checkpoint,  # the workdir may have been moved
      }
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
  """The entry of study.json on a pretrained checkpoint and the model that it holds."""
  return {**to_dict(run), "model": to_dict(held)}


def _held(run: Pretrained, models: Mapping[str, ModelConfig], workdir: Path) -> ModelConfig:
  """The model that a pretrained checkpoint holds."""
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
  """The commit of the clone that this runs from, followed by "+" if files were changed; empty outside a clone."""
  try:
    described = subprocess.run(
      ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"],
      capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return ""
  return described.stdout.strip()


def _records(workdir: Path) -> dict[str, int]:
  """Bytes of every file of records; a start that has nothing to do leaves them unchanged."""
  paths = [workdir / "results.jsonl", *workdir.glob("runs/*/metrics.jsonl")]
  return {str(path.relative_to(workdir)): path.stat().st_size for path in paths if path.exists()}


def run_seeds(
  settings: Any, seeds: Sequence[int], workdir: Path, *, formats: Sequence[str] = ("png",), **how: Any
) -> None:
  """Runs the study for each seed in WORKDIR/seed-N; writes seeds.md over all finished seeds that are there."""
  _check_trains(_with_seed(settings, seeds[0]), _of_seed(workdir, seeds[0]))
  for seed in seeds:
    logger.info("seed %d", seed)
    run_study(_with_seed(settings, seed), _of_seed(workdir, seed), formats=formats, **how)
  if len(finished_seeds(workdir)) > 1:
    logger.info("over seeds: %s", merge_seeds(workdir, formats))


def _of_seed(workdir: Path, seed: int) -> Path:
  """The workdir of a seed; launch/one_gpu.sh uses the same names."""
  return workdir / f"seed-{seed}"


def _with_seed(settings: Any, seed: int) -> Any:
  if "seed" not in {field.name for field in dataclasses.fields(settings)}:
    alike = [f"--config.{field.name}" for field in dataclasses.fields(settings) if "seed" in field.name]
    others = f"; it has {', '.join(alike)}" if alike else ""
    raise ConfigError(f"--seeds: {type(settings).__name__} has no field `seed`{others}")
  return dataclasses.replace(settings, seed=seed)


def _check_trains(settings: Any, workdir: Path) -> None:
  if not settings.study(workdir).runs:
    raise ConfigError("--seeds: the study trains nothing with these settings, so seeds change nothing")


def main(
  config: flags.FlagHolder,
  workdir: flags.FlagHolder,
  mesh: flags.FlagHolder,
  seeds: flags.FlagHolder,
  only: flags.FlagHolder,
  runs: flags.FlagHolder,
  dry: flags.FlagHolder,
  data: flags.FlagHolder,
  formats: flags.FlagHolder,
) -> None:
  if distributed.asked_for():
    raise ConfigError("a study runs in one process; start its runs with experiments.train to use several")
  settings = cli.settings(config, "the settings of a study", lambda found: callable(getattr(found, "study", None)))
  if data.value is not None:
    settings = reading(settings, data.value)
  if workdir.value is None and not dry.value:
    raise ConfigError("--workdir is required, except by --dry_run (--help lists the flags)")
  if data.value is not None and workdir.value is not None:
    check_outside(data.value, workdir.value, "--workdir")
  arranged, directory = cli.mesh_config(mesh), Path(workdir.value or "WORKDIR").resolve()
  chosen, store_directory = only.value or [], Path(runs.value).resolve() if runs.value else None
  numbers, pictures = _parsed_seeds(seeds.value) if seeds.value else None, chosen_formats(formats.value)
  if dry.value:
    settings = settings if numbers is None else _with_seed(settings, numbers[0])
    where = directory if numbers is None else _of_seed(directory, numbers[0])
    if numbers is not None:
      _check_trains(settings, where)
    print(dry_run(settings, where, len(numbers or [0]), chosen, store_directory))
    return
  how: dict[str, Any] = {"only": chosen, "runs": store_directory, "formats": pictures}
  how["mesh"] = None if arranged is None else make_mesh(arranged)
  if numbers is None:
    run_study(settings, directory, **how)
  else:
    run_seeds(settings, numbers, directory, **how)


def _parsed_seeds(texts: Sequence[str]) -> list[int]:
  if not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
    raise ConfigError(f"--seeds is {','.join(texts)}; it must be different whole numbers, as 0,1,2")
  return [int(text) for text in texts]


if __name__ == "__main__":
  CONFIG = cli.define_config("Settings of the study: FILE[:ARG].")
  WORKDIR = cli.define_path("workdir", None, "Directory of the study; not needed by --dry_run.", local=True)
  MESH = cli.define_mesh("Devices that measure")
  SEEDS = cli.define_list("seeds", None, "Seeds, each in WORKDIR/seed-N.")
  ONLY = cli.define_list("only", None, "Runs to do, with the runs they start from; default: all.")
  RUNS = cli.define_path("runs", None, "Folder of runs shared by several studies.", local=True)
  DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, without doing it.")
  DATA = cli.define_path("data", None, "Documents to train and measure on; see drope_jax/data/sources/at.py.")
  FORMATS = cli.define_list("formats", ["png"], "Of the report's pictures: png, svg, pdf.")
  cli.run(
    lambda: main(CONFIG, WORKDIR, MESH, SEEDS, ONLY, RUNS, DRY_RUN, DATA, FORMATS),
    computes=True,
    saves_memory="half of config.batch_size",
  )
