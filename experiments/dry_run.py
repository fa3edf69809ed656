"""What `python -m experiments.study --dry_run` prints: the runs of a study and their costs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drope_jax.config import TrainConfig
from drope_jax.errors import UserError
from drope_jax.serialization import from_dict, to_dict
from experiments import costs, store
from experiments.models import run_models
from experiments.plan import Study, needed_runs, run_directory


def dry_run(settings: Any, workdir: Path, seeds: int, only: Sequence[str], runs: Path | None) -> str:
  """The runs of a study with tokens, FLOPs, estimated time on this machine and progress, and its number of rows.

  Args:
    workdir: of the study (of one seed); runs that are done there are listed as done.
    seeds: number of seeds; each is taken to last as long as this one.
    only, runs: as in study.run_study.
  """
  study: Study = from_dict(type(settings), to_dict(settings)).study(workdir)
  models = run_models(study, workdir)
  chosen = needed_runs(study, workdir, only)
  if study.figures is not None and not study.runs:
    return f"{study.title}\n\nNothing is trained or measured; it draws {', '.join(study.figures.captions)}."
  study = dataclasses.replace(
    study,
    runs={name: study.runs[name] for name in chosen},
    rows=[row for row in study.rows if row.run in chosen],
  )
  places, unknown = {name: run_directory(workdir, name) for name in study.runs}, ""
  try:
    places |= {} if runs is None else {name: runs / key for name, key in store.keys(study, workdir).items()}
  except UserError:
    unknown = " Which runs are shared is known once the data is there."
  states = {name: _state(run, places[name]) for name, run in study.runs.items() if isinstance(run, TrainConfig)}
  took = costs.estimate(study, models)
  total = f"{costs.show_time(took)} on {costs.here()} per seed, including compiling, and measuring on one device"
  total += f"; {costs.show_time(seeds * took)} for {seeds} seeds" if seeds > 1 else ""
  return "\n\n".join(
    [
      study.title,
      costs.run_table(study, models, workdir, states),
      f"{len(study.rows)} rows at {', '.join(map(str, study.lengths))} tokens; tasks: {', '.join(study.tasks)}.",
      *([] if study.figures is None else [f"It draws {', '.join(study.figures.captions)}."]),
      f"From the start, with all runs above, this takes about {total}.{unknown}",
    ]
  )


def _state(run: TrainConfig, directory: Path) -> str:
  done = store.steps_done(directory)
  return "done" if done >= run.steps else f"{done} of {run.steps} steps" if done else "to do"
