"""What a process decides by who it is. Processes that really meet: test_multi_host.py."""

import os
import signal
import time
from typing import NamedTuple

import jax
import pytest

from drope_jax import distributed, interrupts
from drope_jax.errors import ConfigError


class Device(NamedTuple):
  process_index: int
  number: int


class Rows:
  """As much of a sharding as the reading depends on: the pieces of rows that each process' devices hold."""

  def __init__(self, *processes):
    self.processes = processes

  def devices_indices_map(self, shape):
    assert len(shape) == 1
    return {
      Device(index, number): (slice(*piece),)
      for index, pieces in enumerate(self.processes)
      for number, piece in enumerate(pieces)
    }


@pytest.mark.parametrize(
  ("rows", "shares"),
  [
    (Rows([(0, 2), (2, 4)], [(4, 6), (6, 8)]), [(0, 2), (1, 2)]),
    (Rows([(4, 6), (6, 8)], [(0, 2), (2, 4)]), [(1, 2), (0, 2)]),  # the mesh need not follow the processes
    (Rows([(0, 2), (4, 6)], [(2, 4), (6, 8)]), [(0, 2), (1, 2)]),  # nor need their rows lie side by side
    (Rows([(None, None)], [(None, None)]), [(0, 1), (0, 1)]),  # the same rows: both read all
    (Rows([(0, 4)], [(0, 4)], [(4, 8)], [(4, 8)]), [(0, 2), (0, 2), (1, 2), (1, 2)]),
  ],
)
def test_processes_read_the_rows_that_they_hold(monkeypatch, rows, shares):
  for index, share in enumerate(shares):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    assert distributed.reader(rows, 8) == share


@pytest.mark.parametrize("rows", [Rows([(0, 4), (4, 8)], [(4, 8), (8, 12)]), Rows([(0, 4), (4, 8)], [(8, 12)])])
def test_rows_that_cannot_be_dealt_out_evenly_are_refused(rows):
  with pytest.raises(ConfigError, match="cannot be dealt out"):
    distributed.reader(rows, 12)


@pytest.mark.parametrize(
  ("environment", "several"),
  [
    ({}, False),
    ({"SLURM_STEP_NUM_TASKS": "16"}, True),
    ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_NTASKS": "16"}, False),  # an allocation of 16, in which this was not started by srun
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
  ],
)
def test_launchers_are_recognised(monkeypatch, environment, several):
  for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert distributed.asked_for() == several


@pytest.mark.parametrize(
  ("workdir", "processes", "shared", "refused"),
  [
    ("runs/a", 1, False, False),
    ("runs/a", 2, False, True),
    ("runs/a", 2, True, False),
    ("gs://bucket/a", 2, False, False),
  ],
)
def test_a_local_workdir_of_several_processes_is_refused(monkeypatch, workdir, processes, shared, refused):
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  if refused:
    with pytest.raises(ConfigError, match="runs/a is a local path, and there are 2 processes"):
      distributed.refuse_local(workdir, shared)
  else:
    distributed.refuse_local(workdir, shared)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_asks_to_stop_and_is_given_back(number):
  before = signal.getsignal(number)
  with distributed.sigterm() as stop:
    assert not stop(1)
    os.kill(os.getpid(), number)
    assert stop(2)
  assert signal.getsignal(number) is before


def test_ctrl_c_in_one_run_is_not_the_first_of_the_next(monkeypatch):
  monkeypatch.setattr(interrupts, "_APART", 0.0)
  monkeypatch.setattr(interrupts, "_leave", lambda *_: ended.append(True))
  ended = []
  for _ in range(2):
    with distributed.sigterm() as stop:
      os.kill(os.getpid(), signal.SIGINT)
      assert stop(1)
  assert not ended
  with distributed.sigterm() as stop:
    for noticed in (interrupts._first, ended):
      os.kill(os.getpid(), signal.SIGINT)
      until = time.monotonic() + 30
      while not noticed and time.monotonic() < until:
        time.sleep(0.01)
  assert ended
