"""Opening a run's workdir: the order of its documents, its lock and config.json, and the step to continue from.

All hosts check the workdir before the first one writes, so that either all of them refuse or none does. Nothing is
written before the run has a state, so that a start which fails earlier changes nothing.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from drope_jax import checkpoint
from drope_jax.config import TrainConfig
from drope_jax.data.pipeline import settled
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import BusyError, CheckpointError, ConfigError
from drope_jax.files import Line, holds_something, lines_of
from drope_jax.serialization import is_cut_off, load_config, save_config, to_dict
from drope_jax.training.run import Run
from drope_jax.workdir import set_aside, sole_writer

logger = logging.getLogger(__name__)

CONFIG, METRICS = "config.json", "metrics.jsonl"


def with_order(run: Run, workdir: epath.Path) -> Run:
  """The run with its order of documents filled in: as recorded in the workdir, or chosen for a new run."""
  path, config = workdir / CONFIG, run.config
  recorded = before = None
  if path.exists() and not _is_cut_off(workdir):
    recorded = load_config(TrainConfig, path).data
  if config.init is not None:
    source = checkpoint.open_step(config.init.checkpoint, config.init.step).config
    before = None if source is None else source.data
  data = settled(config.data, config.seed, before, recorded)
  return dataclasses.replace(run, config=dataclasses.replace(config, data=data))


@contextlib.contextmanager
def claimed(workdir: epath.Path, run: Run, extend: bool) -> Iterator[None]:
  """Locks `workdir` for this run, and checks that it belongs to it; nothing is written.

  Raises:
    CheckpointError: it belongs to another run.
    ConfigError: the run cannot be extended like this, or there is none to extend.
    BusyError: another process writes to it.
  """
  _check_ours(workdir, run, extend)
  with contextlib.ExitStack() as held:
    busy = None
    if jax.process_index() == 0:
      try:
        held.enter_context(sole_writer(workdir, "run"))
      except BusyError as error:
        busy = error
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(busy is not None))):
      raise busy or BusyError(f"{workdir}: another process writes here; the log of process 0 names it")
    _check_ours(workdir, run, extend)  # again, since another run may have written before this one got the lock
    multihost_utils.sync_global_devices("every host has looked at the workdir")
    yield


def _check_ours(workdir: epath.Path, run: Run, extend: bool) -> None:
  path = workdir / CONFIG
  if _is_cut_off(workdir):
    return
  if path.exists():
    there = load_config(TrainConfig, path)
    checkpoint.refuse_other_run(to_dict(there), run.config, workdir, extend)
    _check_extension(there.steps, run, workdir)
  elif holds_something(workdir):
    raise CheckpointError(f"{workdir} is not empty and holds no config.json; choose another workdir")
  elif extend:
    raise ConfigError(f"{workdir}: there is no run to extend; correct the path, or begin one without --extend")


def record(config: TrainConfig, workdir: epath.Path, tokenizer: Tokenizer | None = None) -> None:
  """Writes config.json, if it would change, and the tokenizer; `workdir` now belongs to this run.

  Called once the run has a state. A truncated config.json is written again: by then the checkpoints have been checked
  to be of this run.
  """
  if jax.process_index() > 0:
    return
  workdir.mkdir(parents=True, exist_ok=True)
  if _is_cut_off(workdir):
    logger.warning("%s was cut off; it is written again", workdir / CONFIG)
  save_config(config, workdir / CONFIG)
  if tokenizer is not None:
    tokenizer.save(workdir)


def _is_cut_off(workdir: epath.Path) -> bool:
  return (workdir / CONFIG).exists() and is_cut_off(workdir / CONFIG, TrainConfig)


def _check_extension(before: int, run: Run, workdir: epath.Path) -> None:
  """Raises ConfigError if the number of steps changes although the run cannot be extended consistently."""
  steps, config = run.config.steps, run.config
  if steps == before:
    return
  began = f"TrainConfig.steps is {steps} and {workdir} began with {before}"
  if steps < before:
    raise ConfigError(f"{began}: a run can be extended, not cut short")
  objective = config.objective
  other = any(
    of_run(step, before) != of_run(step, steps)
    for of_run in (objective.extra_forwards, objective.phase)
    for step in range(before + 1)  # what ends with the run, as a teacher, would not have ended
  )
  if run.trained is not run.model or other:
    what = objective if other else config.init and config.init.transition
    raise ConfigError(
      f"{began}: with other steps {type(what).__name__} would bring back what it has taken away; start another run "
      "from this one, with InitConfig.transition Keep()"
    )


def last_step(manager: ocp.CheckpointManager, from_step: int | None) -> int | None:
  """The step that a run continues from: its last one, or `from_step`; None if it has no checkpoint.

  Raises:
    CheckpointError: there is no step `from_step`, or the last one is incomplete.
  """
  if from_step is None:
    return checkpoint.last_of(manager)
  steps = checkpoint.steps_of(manager)
  if from_step not in steps:
    there = ", ".join(map(str, steps)) or "none"
    raise CheckpointError(f"{manager.directory}: no checkpoint of step {from_step} to go on from; there are {there}")
  return from_step


def set_later_steps_aside(manager: ocp.CheckpointManager, step: int) -> None:
  """Moves the checkpoints after `step` to superseded/ of the workdir, and copies the records so far there."""
  workdir, later = manager.directory.parent, [one for one in manager.all_steps() if one > step]
  if later and jax.process_index() == 0:
    records = [workdir / METRICS] if (workdir / METRICS).exists() else []
    aside = set_aside(workdir, [manager.directory / str(one) for one in later], copied=records)
    logger.warning("the checkpoints after step %d are set aside in %s, with the records so far", step, aside)
  multihost_utils.sync_global_devices("later steps are set aside")


def warn_if_lost(workdir: epath.Path, config: TrainConfig) -> None:
  """Warns if a run without a checkpoint starts again although its records show progress, and sets them aside."""
  path = workdir / METRICS
  if jax.process_index() > 0 or not path.exists():
    return
  last = max(map(_step_of, lines_of(path)), default=0)
  if last >= config.checkpoint_every:
    aside = set_aside(workdir, [path])
    logger.warning(
      "%s has no checkpoint, though its records go to step %d: it starts again from step 0, and the records are in %s",
      workdir,
      last,
      aside,
    )
  elif last:
    logger.info("%s has no checkpoint yet: it starts again from step 0", workdir)


def _step_of(line: Line) -> int:
  """The step of a record, or 0 if it has none."""
  try:
    return int(line.record()["step"])
  except (ValueError, TypeError, LookupError):
    return 0
