"""Commands on a CPU restart themselves with an allocator that keeps memory and, if asked for, the cores as devices.

XLA allocates and frees the buffers of every step. glibc returns blocks of that size to the system, so that each step
has to fault in all of its pages again; mimalloc (the wheel `cmeel-mimalloc`) keeps them. Small products run on one core
only, so two devices use two cores. Both can only be set when a process starts, hence the restart.

Cores become devices only with DROPE_JAX_CPU=devices, because XLA once aborted such a run on a loaded machine: one of
two devices did not reach an all-reduce within XLA's 40 seconds. This was not reproduced, so it is unknown whether that
device was slow or stuck. The limit is now ten minutes, after which a run with a stuck device ends.

A program that imports this library is left alone. It gets the same if it begins with `restart()`, or if what
`settings()` returns is in its environment (docs/howto/gpu.md, "No GPU?").
"""

import glob
import importlib.metadata
import os
import sys
from collections.abc import Mapping

from drope_jax import interrupts

VARIABLE = "DROPE_JAX_CPU"  # "off": no restart; "devices": every core becomes a device, too
_DONE = "set"  # its value after the restart, and in all child processes
_DEVICES = "--xla_force_host_platform_device_count"
# Seconds that a device waits for the others before XLA aborts.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg", "/dev/accel*", "/dev/vfio/[0-9]*")  # GPUs, then TPUs


def settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
  """The environment variables that make JAX faster on this CPU.

  Settings of allocator or devices that are in the environment are kept. The result is empty with DROPE_JAX_CPU=off, on
  systems other than Linux, if another platform comes first in JAX_PLATFORMS or, if that is not set, if there may be an
  accelerator.

  Args:
    environment: the current variables; None: those of this process.
  """
  environment = os.environ if environment is None else environment
  if environment.get(VARIABLE) in ("off", _DONE) or sys.platform != "linux" or not _computes_on_cpu(environment):
    return {}
  found: dict[str, str] = {}
  allocator = _mimalloc()
  if allocator is not None and "LD_PRELOAD" not in environment:
    found |= {"LD_PRELOAD": allocator, "MIMALLOC_PURGE_DELAY": environment.get("MIMALLOC_PURGE_DELAY", "-1")}
  flags, cores = environment.get("XLA_FLAGS", ""), len(os.sched_getaffinity(0))
  if (
    environment.get(VARIABLE) == "devices"
    and cores > 1
    and _DEVICES not in flags
    and "JAX_NUM_CPU_DEVICES" not in environment
  ):
    patience = "" if _PATIENCE in flags else f"{_PATIENCE}=600"
    found["XLA_FLAGS"] = f"{flags} {_DEVICES}={cores} {patience}".strip()
  return found and {**found, VARIABLE: _DONE}


def restart(command: bool = False) -> None:
  """Starts this program once more with `settings()`, where there are any, and says so in one line.

  To be called before JAX computes anything: what the process has done is lost. Not in a notebook, whose kernel it would
  start again.

  Args:
    command: whether this is a command of ours. Signals then wait until its second start can say what they have stopped.
  """
  found = settings()
  if not found:
    return
  what = ["mimalloc keeps memory"] if "LD_PRELOAD" in found else []
  what += [f"{len(os.sched_getaffinity(0))} cores are devices"] if "XLA_FLAGS" in found else []
  print(f"on a CPU: {', '.join(what)} ({VARIABLE}=off turns it off)", file=sys.stderr, flush=True)
  if command:
    interrupts.block()
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **found})


def _computes_on_cpu(environment: Mapping[str, str]) -> bool:
  """Whether JAX would use the CPU; asking JAX itself would start its runtime."""
  platforms = environment.get("JAX_PLATFORMS", "")
  return platforms.split(",")[0] == "cpu" if platforms else not any(glob.glob(path) for path in _ACCELERATORS)


def _mimalloc() -> str | None:
  """The path of the shared library, or None if the wheel is not installed."""
  try:
    files = importlib.metadata.files("cmeel-mimalloc") or []
  except importlib.metadata.PackageNotFoundError:
    return None
  return next((str(file.locate()) for file in files if file.name == "libmimalloc.so"), None)
