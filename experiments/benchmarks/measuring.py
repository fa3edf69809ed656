"""What the benchmarks share: processes that take turns, spreads, growth exponents, and how results are shown and kept.

Each side of a comparison runs in a process of its own, since two runtimes in one process would share threads and
memory, and only one computes at a time. They take turns, A B A B, so that disturbances of the machine affect both;
ratios are taken within each round.
"""

import contextlib
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drope_jax import cli, cpu
from drope_jax.errors import ConfigError
from drope_jax.files import append_json_lines, check_file, write_json
from experiments.reporting.table import Table

SETTINGS = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "LD_PRELOAD", cpu.VARIABLE)  # environment variables that affect speed


class WorkerError(Exception):
  """A worker ended; the message is the last line that it wrote, or its exit status."""


class Worker:
  """A child process (worker.py) that calls `function` with `arguments` to prepare, and then measures on request."""

  def __init__(self, function: str, **arguments: Any):
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the worker
    command = [sys.executable, "-m", "experiments.benchmarks.worker"]
    # JAX must not take all of a GPU's memory, which torch needs too.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    if function.startswith("experiments.benchmarks.ours:"):
      environment |= cpu.settings()  # as for our commands
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
    )
    self.about = self._ask({"function": function, "arguments": arguments})

  def measure(self, **request: Any) -> dict[str, Any]:
    """A measurement of the worker. Raises WorkerError if it ended instead."""
    return self._ask(request)

  def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
    assert self._process.stdin is not None and self._process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, which is noticed below
      self._process.stdin.write(json.dumps(request) + "\n")
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    status = self._process.wait()
    self._errors.seek(0)
    said = [text.strip() for text in self._errors if text.strip()]
    self.close()
    raise WorkerError(said[-1][:200] if said and status > 0 else f"ended with status {status}")

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin is not None and self._process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._errors.close()

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *_: object) -> None:
    if self._process.poll() is None:
      self.close()


class Side(NamedTuple):
  """One side of a comparison: its description, its measurements by round, or why there are none."""

  about: dict[str, Any]
  rounds: list[dict[str, Any]]
  failure: str | None = None

  def values(self, field: str) -> list[float]:
    return [one[field] for one in self.rounds]


def in_turns(jobs: Mapping[str, tuple[str, dict[str, Any]]], rounds: int, request: dict[str, Any]) -> dict[str, Side]:
  """Measures all jobs (function, arguments) in turn, `rounds` times; one that fails does not stop the others."""
  sides: dict[str, Side] = {}
  with contextlib.ExitStack() as stack:
    workers = {}
    for name, (function, arguments) in jobs.items():
      try:
        workers[name] = stack.enter_context(Worker(function, **arguments))
        sides[name] = Side(workers[name].about, [])
      except WorkerError as error:
        sides[name] = Side({}, [], str(error))
    for _ in range(rounds):
      for name, worker in list(workers.items()):
        try:
          sides[name].rounds.append(worker.measure(**request))
        except WorkerError as error:
          sides[name] = Side(worker.about, [], str(error))
          del workers[name]
  return sides


# --- figures -----------------------------------------------------------------------------------


class Spread(NamedTuple):
  """Median, least and greatest of repeated measurements."""

  median: float
  least: float
  greatest: float

  def show(self, digits: int = 0) -> str:
    return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} to {self.greatest:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
  return Spread(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
  """The spread of ours / theirs within each round: a disturbance affects both sides of a round."""
  return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def growth_exponent(lengths: Sequence[int], values: Sequence[float]) -> float | None:
  """The slope of log(value) over log(length), by least squares; None for fewer than two lengths."""
  if len(lengths) < 2:
    return None
  return statistics.linear_regression([math.log(x) for x in lengths], [math.log(y) for y in values]).slope


# --- the machine -------------------------------------------------------------------------------


def host_memory_peak() -> int:
  """The most bytes that this process has had in memory.

  Not from getrusage: ru_maxrss of a child starts at that of its parent.
  """
  status = Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) * 1024


def page_faults() -> int:
  """Memory pages that this process has requested from the system so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def hardware() -> str:
  """The processor, the number of cores that this process may use, and the memory."""
  information = Path("/proc/cpuinfo")
  lines = information.read_text().splitlines() if information.exists() else []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  return f"{names[0] if names else platform.processor()}, {cores} cores, {memory:.0f} GiB"


# --- results ------------------------------------------------------------------------------------


def check_free(path: str | None, jsonl_path: str | None = None) -> None:
  """Raises ConfigError, before anything is measured, if the file of --json is there or one cannot be written."""
  if path is not None and Path(path).exists():
    raise ConfigError(f"--json: {path} exists; name another file")
  for flag, name in (("--json", path), ("--jsonl", jsonl_path)):
    if name is not None:
      check_file(Path(name), flag)


class Records:
  """What a long run measures, kept as it comes: whole in the file of --json, and line by line in that of --jsonl."""

  def __init__(self, json_path: str | None, jsonl_path: str | None, about: Mapping[str, Any]):
    """`about`: command, hardware and versions, once in the one file and in every line of the other."""
    self._json, self._jsonl, self._about = json_path, jsonl_path, dict(about)
    self._figures: list[dict[str, Any]] = []

  def add(self, record: dict[str, Any]) -> None:
    """Raises FileError if a file cannot be written."""
    self._figures.append(record)
    if self._json is not None:
      write_json({**self._about, "figures": self._figures}, self._json)
    if self._jsonl is not None:
      append_json_lines([{**record, **self._about}], Path(self._jsonl))


def finish(
  path: str | None, header: Sequence[str], rows: Sequence[Sequence[str]], sides: Iterable[Side], figures: Any
) -> None:
  """Prints command, hardware, versions of all sides and the table, and writes the file of --json."""
  versions: dict[str, str] = {"python": platform.python_version()}
  devices: list[str] = []
  for side in sides:
    versions |= side.about.get("versions", {})
    device = side.about.get("device")
    if device is not None and device not in devices:
      devices.append(device)
  machine = "; ".join([hardware(), *devices])
  command = " ".join([*(f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ), cli.command_line()])
  print(f"\n{command}\n{machine}\n" + ", ".join(f"{name} {v}" for name, v in versions.items()) + "\n")
  print(Table("figures", header, rows).markdown, flush=True)
  if path is not None:
    write_json({"command": command, "hardware": machine, "versions": versions, "figures": figures}, path)
