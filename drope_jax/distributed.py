"""One run on several hosts: how its processes connect, share the reading of data, and stop together.

`jax.distributed` connects the processes, all of which run the same program. What a host does by itself (its log, its
files, the rows it reads) depends on `jax.process_index()`.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from drope_jax import hosts, interrupts
from drope_jax.errors import ConfigError
from drope_jax.files import is_local

logger = logging.getLogger(__name__)

# The number of processes, as launchers set it in the environment: SLURM's srun, Open MPI's mpirun.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def asked_for() -> bool:
  """Whether, according to the environment, srun, mpirun or a TPU pod started several processes."""
  hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
  several_slices = int(os.environ.get("MEGASCALE_NUM_SLICES", "1")) > 1
  return any(int(os.environ.get(name, "1")) > 1 for name in _COUNTS) or "," in hosts or several_slices


def initialise(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
  host_timeout: int = hosts.TIMEOUT,
) -> None:
  """Connects this process with the others; JAX determines what is None (SLURM, Open MPI, Cloud TPU, GKE).

  Must be called before anything uses devices. If the others have not connected after `timeout` seconds, the process
  ends with status 1 and one line: JAX's runtime waits in native code, and would abort it with a stack trace.

  Args:
    coordinator: HOST:PORT of process 0, reachable from all of them.
    timeout: seconds.
    host_timeout: seconds after which `hosts.watched` gives up on a host; JAX's own limit is later.

  Raises:
    ConfigError: if JAX cannot determine an argument that is None.
  """

  def give_up() -> None:
    who = f"process {process_id} of {num_processes}" if num_processes else "this process"
    at = f" at {coordinator}" if coordinator else ""
    print(f"error: {who} did not find all others{at} within {timeout} s; were all of them started?", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)

  watch = threading.Timer(timeout, give_up)
  watch.daemon = True
  watch.start()
  try:
    # The runtime's own limits are later than ours.
    with hosts.quiet_loss(coordinator):
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=host_timeout + 60,
      )
  except (ValueError, RuntimeError) as error:
    raise ConfigError(f"the processes cannot be connected: {' '.join(str(error).split())}") from error
  finally:
    watch.cancel()


def describe() -> str:
  """This process and its devices, for the log."""
  kind = jax.devices()[0].device_kind
  return (
    f"process {jax.process_index()} of {jax.process_count()}: "
    f"{jax.local_device_count()} of {jax.device_count()} devices ({kind})"
  )


def refuse_local(workdir: epath.PathLike, shared: bool) -> None:
  """Raises ConfigError for a local workdir with several processes, unless the user says that it is `shared`."""
  if jax.process_count() > 1 and not shared and is_local(workdir):
    raise ConfigError(
      f"--workdir: {workdir} is a local path, and there are {jax.process_count()} processes; "
      "use a bucket (gs://...), or say --shared_workdir if all hosts see the same directory there"
    )


def reader(batch: Sharding, batch_size: int) -> tuple[int, int]:
  """The share of every batch that this process reads: (index, number of shares).

  Processes that hold the same rows read the same share.

  Raises:
    ConfigError: if the rows of processes overlap without being the same, or differ in number.
  """
  held: dict[int, set[tuple[int, int]]] = defaultdict(set)
  rows_of: Mapping[Any, Any] = batch.devices_indices_map((batch_size,))
  for device, (rows,) in rows_of.items():
    first, last, _ = rows.indices(batch_size)
    held[device.process_index].add((first, last))
  groups = sorted({tuple(sorted(rows)) for rows in held.values()})
  if sum(map(len, groups)) != len(set().union(*groups)) or len(set(map(len, groups))) > 1:
    raise ConfigError(f"the rows of a batch cannot be dealt out evenly to {len(held)} processes on this mesh")
  return groups.index(tuple(sorted(held[jax.process_index()]))), len(groups)


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step that returns True once the run should stop because of SIGTERM or Ctrl-C.

  With several processes it is enough that one gets the signal, and all stop at the same step: JAX's preemption service
  agrees on it, provided that every process asks at every step. With one process, only its main thread can listen. A
  second Ctrl-C ends the process at once; earlier checkpoints stay.
  """
  listens = threading.current_thread() is threading.main_thread()
  if jax.process_count() > 1:
    # JAX's service only handles SIGTERM.
    with _handled([signal.SIGINT] if listens else [], lambda *_: os.kill(os.getpid(), signal.SIGTERM)):
      yield multihost_utils.reached_preemption_sync_point
    return
  if not listens:
    yield lambda step: False
    return
  asked = threading.Event()
  with _handled((signal.SIGTERM, signal.SIGINT), lambda *_: asked.set()):
    yield lambda step: asked.is_set()


@contextlib.contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[..., None]) -> Iterator[None]:
  """Installs `handler` for these signals, and afterwards restores the previous handlers."""
  before = {number: signal.signal(number, handler) for number in numbers}
  try:
    with interrupts.ends_at_second_ctrl_c():
      yield
  finally:
    for number, one in before.items():
      signal.signal(number, one)
