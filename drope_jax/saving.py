"""A save that fails ends the run: in bounded time, with one line, and with the steps before it kept.

Orbax writes in the background, and says what failed at the next save or at the end, after it has printed the tracebacks
of its threads. Here the first failure is raised at the next step, as one CheckpointError, and nothing else is printed.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from drope_jax.checkpoint_files import complete_steps
from drope_jax.config import TrainConfig
from drope_jax.errors import CheckpointError
from drope_jax.orbax_threads import quiet

logger = logging.getLogger(__name__)

_FAILURES = (OSError, ValueError, RuntimeError)  # of the system, of tensorstore, of orbax and JAX
_TIMEOUT = 1200  # seconds in which a save must be complete on all hosts
# As tensorstore ends its messages: "...: No space left on device [os_error_code='28']".
_SYSTEM_ERROR = re.compile(r"([^:\[\]]+) \[os_error_code='\d+'\]")


@contextlib.contextmanager
def writing(workdir: epath.PathLike, config: TrainConfig) -> Iterator[ocp.CheckpointManager]:
  """The manager that saves the steps of a run as `config` says. On leaving, all that were begun are complete.

  Raises:
    CheckpointError: if `checkpoints/` cannot be made, or a save has failed.
  """
  directory = epath.Path(workdir).resolve() / "checkpoints"
  if directory.exists() and not directory.is_dir():
    raise CheckpointError(f"{directory}: a file, where the folder of checkpoints should be; move it away")
  options = ocp.CheckpointManagerOptions(
    max_to_keep=config.keep_latest,
    keep_period=config.keep_every,
    enable_async_checkpointing=True,
    # Created in the background, a folder that cannot be created is waited for until the timeout.
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
  """Raises CheckpointError if the last save has failed; does not wait for one that is under way."""
  if not manager.is_saving_in_progress():
    finish(manager)


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits for the last save; raises CheckpointError if it has failed."""
  with naming_failures(manager.directory):
    manager.wait_until_finished()


@contextlib.contextmanager
def naming_failures(directory: epath.Path) -> Iterator[None]:
  """What fails while a step is saved is one CheckpointError, which says what is kept."""
  try:
    yield
  except _FAILURES as error:
    raise CheckpointError(f"{directory}: a step cannot be saved ({_cause(error)}); {_kept(directory)}") from error


def _close_after(error: BaseException, manager: ocp.CheckpointManager) -> None:
  """Closes the manager while `error` is on its way, which matters more than what else fails."""
  try:
    manager.close()
  except _FAILURES as second:
    if not isinstance(error, CheckpointError):
      logger.warning("%s: nor could the last step be saved (%s)", manager.directory, _cause(second))


def _cause(error: Any) -> str:
  """What the system said, or the first line of a library."""
  said = str(error) or type(error).__name__
  found = _SYSTEM_ERROR.findall(said)
  return found[-1].strip() if found else said.splitlines()[0][:200]


def _kept(directory: epath.Path) -> str:
  try:
    steps = complete_steps(directory)
  except OSError:  # what made the save fail may be that nothing can be read there
    steps = []
  if not steps:
    return "no earlier step is there"
  return f"kept: step {', '.join(map(str, steps))}, from the last of which the same command goes on"
