"""Resuming a run: checking that a checkpoint belongs to it, its state, and its position in the data."""

import json
import logging
from typing import Any

import grain
import orbax.checkpoint as ocp
from etils import epath

from drope_jax.checkpoint import digests
from drope_jax.checkpoint.reading import check_unchanged, described, other_steps, read_meta, restore_arrays
from drope_jax.checkpoint.writing import TrainState
from drope_jax.config import TrainConfig
from drope_jax.data.pipeline import join_states
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.serialization import differences, library_versions, to_dict

logger = logging.getLogger(__name__)

# Fields that may change between the starts of one run: where and how it is computed and logged, never what is computed.
# Documents and tokenizer may have moved: the saved position in the data identifies them by content (data/pipeline.py).
_FREE_ON_RESUME = (
  "mesh",
  "compute",
  "data.directory",
  "data.split",
  "data.source",
  "data.tokenizer",
  "data.num_workers",
  "optim.accumulation",
  "init.model",  # derived from init.checkpoint; runs before 0.1 did not record it
  "init.source",  # likewise; if it is the same, init.checkpoint may have moved: see refuse_other_run
  "log_every",
  "log_norms",
  "eval_every",
  "eval_documents",
  "eval_extensions",
  "profile_steps",
  "skip_updates",
  "checkpoint_every",
  "keep_latest",
  "keep_every",
  "trackers",
)

# Fields that may change as well if a run is extended: its length and the learning rate.
EXTENDABLE = (
  "steps",
  "optim.peak_lr",
  "optim.schedule",
  "optim.warmup_steps",
  "optim.decay_steps",
  "optim.floor",
)


def resume(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: TrainState,
  data: grain.DatasetIterator,
  config: TrainConfig,
  extend: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
  """The state and meta of a step; `data` is moved to the position at that step.

  Args:
    abstract: shapes, dtypes and shardings of the state, whose mesh may differ from the one that saved.
    config: of the run that is resumed.
    extend: whether the fields of EXTENDABLE may have changed.

  Raises:
    CheckpointError: if the checkpoint belongs to another run, naming the field, or is incomplete.
  """
  path, meta = manager.directory / str(step), check_ours(manager, step, config, extend)
  assert config.model is not None  # of a resolved run
  restored = restore_arrays(manager, step, meta, config.model, params=abstract.params, opt_state=abstract.opt_state)
  data.set_state(_data_state(path, meta))
  data.start_prefetch()
  return TrainState(restored["params"], restored["opt_state"]), meta


def check_ours(manager: ocp.CheckpointManager, step: int, config: TrainConfig, extend: bool) -> dict[str, Any]:
  """The meta of a step; raises CheckpointError if it belongs to another run, or its config is not valid."""
  path, meta = manager.directory / str(step), read_meta(manager, step)
  try:
    there = described(meta)[0]
  except ConfigError as error:
    raise CheckpointError(f"{path}: its meta has no config of this version ({error})") from error
  refuse_other_run(to_dict(there), config, path, extend)
  for difference in differences(meta["versions"], library_versions()):
    logger.info("%s was written with other versions: %s", path, difference)
  return meta


def _data_state(step: epath.Path, meta: dict[str, Any]) -> dict[str, Any]:
  """The position in the stream, from the files of all processes that wrote it; grain's handler only reads one's own."""
  directory = step / "data"
  files = sorted(directory.glob("process_*-of-*.json")) if directory.exists() else []
  try:
    states = {file.name: json.loads(file.read_text()) for file in files}
    joined = join_states(states.values())
  except (IndexError, KeyError, ValueError) as error:
    said = f"the place in the data cannot be read ({error!r}){other_steps(step)}"
    raise CheckpointError(f"{directory}: {said}") from error
  known = meta.get("digests", {}).get("data")
  if known is not None and digests.enabled():
    check_unchanged(step, "data", known, {name: digests.of_json(state) for name, state in states.items()})
  return joined


def refuse_other_run(there: Any, config: TrainConfig, where: Any, extend: bool = False) -> None:
  """Raises CheckpointError naming the first field in which `there` (from to_dict) differs, if it is another run.

  Args:
    extend: whether the fields of EXTENDABLE may differ.
  """

  def among(difference: str, fields: tuple[str, ...]) -> bool:
    path = difference.split(":")[0]
    return any(path == name or path.startswith(f"{name}.") for name in fields)

  here = to_dict(config)
  ours, theirs = ((one.get("init") or {}).get("source") for one in (here, there))
  free = (*_FREE_ON_RESUME, *(["init.checkpoint"] if ours is not None and ours == theirs else []))
  found = [difference for difference in differences(there, here) if not among(difference, free)]
  other = [difference for difference in found if not among(difference, EXTENDABLE)]
  if other or (found and not extend):
    way_out = "; to go on with it all the same, extend the run to more steps (experiments.train --extend)"
    raise CheckpointError(f"{where} belongs to another run: {(other or found)[0]}{'' if other else way_out}")
