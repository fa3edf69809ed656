"""Writing checkpoints. If a save fails, the run ends soon, with one line, and the earlier checkpoints are kept.

Orbax writes in the background, and reports a failure only at the next save or at the end, after printing tracebacks of
its threads. Here the failure is raised at the next step, as one CheckpointError, and nothing else is printed.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
import orbax.checkpoint as ocp
from etils import epath

from drope_jax.checkpoint import digests
from drope_jax.checkpoint.files import complete_steps, folder, refuse_file
from drope_jax.checkpoint.orbax_threads import quiet
from drope_jax.config import TrainConfig
from drope_jax.errors import CheckpointError
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import Params
from drope_jax.serialization import library_versions, to_dict

logger = logging.getLogger(__name__)

_FAILURES = (OSError, ValueError, RuntimeError)  # of the system, tensorstore, orbax and JAX
_TIMEOUT = 1200  # seconds within which a save must complete on all hosts
_CHUNK_BYTES = 8 << 20  # chunk size of imported arrays; small compared with the arrays of large models
# As tensorstore ends its messages: "...: No space left on device [os_error_code='28']".
_SYSTEM_ERROR = re.compile(r"([^:\[\]]+) \[os_error_code='\d+'\]")


class TrainState(NamedTuple):
  """The state that a training step updates: plain arrays, sharded by the rules of sharding.py."""

  params: Params
  opt_state: Any


@contextlib.contextmanager
def writing(workdir: epath.PathLike, config: TrainConfig) -> Iterator[ocp.CheckpointManager]:
  """The manager that saves the steps of a run as `config` says; leaving the block waits for saves in progress.

  Raises:
    CheckpointError: if `checkpoints/` cannot be created, or a save has failed.
  """
  directory = folder(workdir)
  refuse_file(directory)
  options = ocp.CheckpointManagerOptions(
    max_to_keep=config.keep_latest,
    keep_period=config.keep_every,
    enable_async_checkpointing=True,
    # If folders were created in the background, orbax would wait until the timeout for one that cannot be created.
    async_options=ocp.AsyncOptions(timeout_secs=_TIMEOUT, create_directories_asynchronously=False),
  )
  with quiet():
    with naming_failures(directory):
      manager = ocp.CheckpointManager(directory, options=options)
    try:
      yield manager
    except BaseException as error:
      _close_after(error, manager)
      raise
    with naming_failures(directory):
      manager.close()


def check_saved(manager: ocp.CheckpointManager) -> None:
  """Raises CheckpointError if the last save has failed; does not wait for one that is in progress."""
  if not manager.is_saving_in_progress():
    finish(manager)


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits for the last save; raises CheckpointError if it has failed."""
  with naming_failures(manager.directory):
    manager.wait_until_finished()


@contextlib.contextmanager
def naming_failures(directory: epath.Path) -> Iterator[None]:
  """Turns failures of saving a step into one CheckpointError, which says which steps are kept."""
  try:
    yield
  except _FAILURES as error:
    raise CheckpointError(f"{directory}: a step cannot be saved ({_cause(error)}); {_kept(directory)}") from error


def _close_after(error: BaseException, manager: ocp.CheckpointManager) -> None:
  """Closes the manager while `error` propagates, which matters more than other failures."""
  try:
    manager.close()
  except _FAILURES as second:
    if not isinstance(error, CheckpointError):
      logger.warning("%s: nor could the last step be saved (%s)", manager.directory, _cause(second))


def _cause(error: Any) -> str:
  """The message of the operating system, or the first line of a library's message."""
  said = str(error) or type(error).__name__
  found = _SYSTEM_ERROR.findall(said)
  return found[-1].strip() if found else said.splitlines()[0][:200]


def _kept(directory: epath.Path) -> str:
  try:
    steps = complete_steps(directory)
  except OSError:  # the save may have failed because the directory is unreadable
    steps = []
  if not steps:
    return "no earlier step is there"
  return f"kept: step {', '.join(map(str, steps))}, from the last of which the same command goes on"


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: TrainState,
  data: grain.DatasetIterator,
  config: TrainConfig,
  tokens: int,
  seconds: float,
  teacher_step: int | None = None,
  skipped: int = 0,
) -> None:
  """Starts writing step `step`; this continues in the background, from a copy of the state.

  Args:
    manager: of `writing`.
    tokens, seconds: of the whole run so far.
    teacher_step: step of the checkpoint with the objective's frozen weights, if it has any.
    skipped: number of updates that were skipped so far (TrainConfig.skip_updates).

  Raises:
    CheckpointError: if this save, or the one before, has failed.
  """
  meta = {"step": step, "tokens": tokens, "seconds": seconds, "config": to_dict(config), "versions": library_versions()}
  if teacher_step is not None:
    meta["teacher_step"] = teacher_step
  if skipped:
    meta["skipped"] = skipped
  meta = _with_digests(meta, data, params=state.params, opt_state=state.opt_state)
  with naming_failures(manager.directory):
    manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        opt_state=ocp.args.StandardSave(state.opt_state),
        data=grain.checkpoint.CheckpointSave(data),
        meta=ocp.args.JsonSave(meta),
      ),
      force=True,
    )


def save_weights(
  workdir: epath.PathLike, model: ModelConfig, params: Params, context: int, origin: dict[str, Any]
) -> None:
  """Writes imported weights, as step 0 of `workdir`.

  Args:
    context: training context of the model, in tokens.
    origin: JSON data that describes the source.
  """
  meta = {"step": 0, "tokens": 0, "seconds": 0.0, "model": to_dict(model), "context": context, "origin": origin}
  meta = _with_digests(meta | {"versions": library_versions()}, None, params=params)
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  # By default all arrays are compressed at once, each as a whole, which takes the memory of all of them again.
  in_chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  handlers = {
    "params": ocp.StandardCheckpointHandler(save_concurrent_gb=1.01 * largest / 1e9),
    "meta": ocp.JsonCheckpointHandler(),
  }
  with quiet(), ocp.CheckpointManager(folder(workdir), options=options, item_handlers=handlers) as manager:
    items = {
      "params": ocp.args.StandardSave(params, save_args=in_chunks),
      "meta": ocp.args.JsonSave(meta),
    }
    manager.save(0, args=ocp.args.Composite(**items))


def _with_digests(meta: dict[str, Any], data: grain.DatasetIterator | None, **arrays: Any) -> dict[str, Any]:
  """The meta with digests of a step's arrays, data position and meta itself, unless digests are turned off."""
  if not digests.enabled():
    return meta
  known = {name: digests.of_arrays(tree) for name, tree in arrays.items()}
  if data is not None:
    known["data"] = digests.of_hosts(data.get_state())
  meta = {**meta, "digests": known}
  return {**meta, "digest": digests.of_json(meta)}
