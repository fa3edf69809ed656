"""A run of two processes, each with four simulated devices, by the command that one would type on two hosts."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.eight_devices import devices_flags
from support.ports import free_port
from support.tiny_run import losses, tiny_corpus

from drope_jax.workdir import sole_writer

pytestmark = pytest.mark.slow  # every test starts processes that train
ROOT = Path(__file__).parents[1]
STEPS = 12
CONFIG = """
import os, time
from support.tiny_run import tiny_model, tiny_run
from drope_jax import metrics
from drope_jax.config import ComputeConfig

write = metrics.JsonLines.write

def slow_write(self, record):  # gives a test the time to interrupt
  write(self, record)
  time.sleep(float(os.environ.get("PAUSE", "0")))

metrics.JsonLines.write = slow_write

def get_config():
  return tiny_run(
    {corpus!r}, model=tiny_model(num_kv_heads=4), compute=ComputeConfig(dtype="float32"), steps={steps},
    checkpoint_every={steps},
  )
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Starts the command in a process with so many devices; all processes share what they compile."""
  directory = tmp_path_factory.mktemp("hosts")
  config = directory / "config.py"
  config.write_text(CONFIG.format(corpus=tiny_corpus(directory / "corpus"), steps=STEPS))
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
  }

  def do(devices, workdir, *arguments, pause=0.0):
    return subprocess.Popen(
      [sys.executable, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}", *arguments],
      env={**environment, "XLA_FLAGS": devices_flags(devices), "PAUSE": str(pause)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=directory,
    )

  return do


@pytest.fixture(scope="module")
def start_two(start):
  """Starts process 0 and process 1 of a run, the latter with further arguments `second`."""

  def do(workdir, *arguments, second=(), pause=0.0):
    named = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", *arguments)
    own = ((), second)
    return [start(4, workdir, *named, *own[index], f"--process_id={index}", pause=pause) for index in range(2)]

  return do


def wait_for_step(step, hosts, workdir):
  deadline = time.monotonic() + 200
  while len(losses(workdir) if (workdir / "metrics.jsonl").exists() else []) < step:
    assert time.monotonic() < deadline and all(host.poll() is None for host in hosts), ends(hosts)
    time.sleep(0.1)


def ends(processes, status=0):
  """What they wrote to stderr."""
  told = []
  try:
    for process in processes:
      told.append(process.communicate(timeout=240)[1])
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [status] * len(processes), "\n---\n".join(told)[-6000:]
  return told


def same_curve(ours, theirs, steps=STEPS):
  ours, theirs = np.array(ours), np.array(theirs)
  np.testing.assert_array_equal(ours[:, 0], np.arange(1, steps + 1))
  np.testing.assert_allclose(ours[:, 1], theirs[:steps, 1], atol=1e-5)


SLICES = ("--shared_workdir", "--mesh=fsdp", "--config.mesh.dcn_data=2")  # where there are none, processes are slices


@pytest.fixture(scope="module")
def finished(start_two, tmp_path_factory):
  """The workdir of a run of two hosts that nothing disturbed, and what they said."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  return workdir, ends(start_two(workdir, *SLICES))


def test_each_host_says_who_it_is_and_the_first_alone_logs_the_run(finished):
  workdir, told = finished
  lines = [[re.sub(r"^[\d:]+ ", "", line) for line in text.splitlines() if re.match(r"[\d:]+ ", line)] for text in told]
  assert [first for first, *_ in lines] == [f"process {index} of 2: 4 of 8 devices (cpu)" for index in range(2)]
  assert any(line.startswith(f"step {STEPS}/{STEPS}") for line in lines[0])
  assert not any(line.startswith("step") for line in lines[1])
  curve = losses(workdir)
  assert [step for step, _ in curve] == list(range(1, STEPS + 1))
  assert curve[-1][1] < curve[0][1] - 0.5


def test_stopped_on_two_hosts_it_goes_on_on_one(start, start_two, finished, tmp_path):
  workdir = tmp_path / "run"
  hosts = start_two(workdir, *SLICES, "--stopped_status=75", pause=0.7)
  wait_for_step(3, hosts, workdir)
  hosts[1].send_signal(signal.SIGTERM)  # the one that does not log
  told = ends(hosts, status=75)
  stopped = {re.search(r"stopped at step (\d+), which is saved", text).group(1) for text in told}
  assert len(stopped) == 1 and 3 <= int(*stopped) < STEPS
  assert losses(workdir)[-1][0] == int(*stopped)
  ends([start(8, workdir, "--mesh=fsdp_tp")])
  same_curve(losses(workdir), losses(finished[0]))


def errors(text):
  """The lines that are not of the log: what a user sees as an error. The library for collectives on CPUs says one."""
  lines = [line for line in text.splitlines() if not re.match(r"\d\d:\d\d:\d\d |\[Gloo\] Rank", line)]
  return [line for line in lines if line]


@pytest.mark.parametrize(
  ("victim", "number", "said"),
  [
    (1, signal.SIGKILL, "process 1 of 2 has not been heard of for 10 s"),
    (0, signal.SIGKILL, "the coordinator, process 0 at 127.0.0.1:.* is gone"),
    (1, signal.SIGSTOP, "process 1 of 2 has not been heard of for 10 s"),
    (0, signal.SIGSTOP, "process 0 of 2 .the coordinator. has not been heard of for 10 s"),
  ],
)
def test_when_a_host_is_lost_the_other_ends_and_the_run_goes_on(start_two, finished, tmp_path, victim, number, said):
  workdir = tmp_path / "run"
  arguments = (*SLICES, "--host_timeout=10", "--config.checkpoint_every=2")
  hosts = start_two(workdir, *arguments, pause=0.7)
  wait_for_step(4, hosts, workdir)
  hosts[victim].send_signal(number)
  began = time.monotonic()
  _, text = hosts[1 - victim].communicate(timeout=90)
  assert time.monotonic() - began < 60  # JAX's own limit is 70 seconds
  hosts[victim].kill()
  hosts[victim].communicate()
  assert hosts[1 - victim].returncode == 1
  (error,) = errors(text)
  assert re.fullmatch(f"error: {said}.*; the run goes on from its last checkpoint .*", error), text
  if victim == 1 and number == signal.SIGKILL:
    ends(start_two(workdir, *arguments))
    same_curve(losses(workdir), losses(finished[0]))


def test_a_host_with_other_settings_or_data_is_refused_by_all(start_two, tmp_path):
  other = tiny_corpus(tmp_path / "corpus", seed=1)
  for argument, said in (
    ("--config.seed=1", "config.data.seed is 0 on process 0, 1 on"),
    (f"--data={other}", "digest"),
  ):
    for text in ends(start_two(tmp_path / "run", *SLICES, second=(argument,)), status=2):
      (error,) = errors(text)
      assert error.startswith("error: the hosts of this run are not alike: ") and said in error
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_host_ends_the_other_and_is_told(start_two, tmp_path):
  hosts = start_two(tmp_path / "run", *SLICES, second=("--data=/nowhere",))
  first, second = (host.communicate(timeout=120)[1] for host in hosts)
  assert hosts[1].returncode != 0 and "/nowhere" in errors(second)[-1]
  assert hosts[0].returncode == 1 and "/nowhere" in errors(first)[-1]


def test_hosts_that_hold_the_same_rows_read_them_both(start, start_two, tmp_path):
  overrides = ("--config.steps=4", "--config.checkpoint_every=4")
  ends(start_two(tmp_path / "two", "--shared_workdir", "--mesh=context", *overrides))
  ends([start(8, tmp_path / "one", "--mesh=dp", *overrides)])
  same_curve(losses(tmp_path / "two"), losses(tmp_path / "one"), 4)


def test_a_local_workdir_is_refused(start_two, tmp_path):
  for text in ends(start_two(tmp_path / "run"), status=2):
    assert "error: --workdir: " in text and "is a local path, and there are 2 processes" in text
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("alone", [0, 1])
def test_a_host_that_never_comes_ends_in_an_error(start, tmp_path, alone):
  arguments = ["--coordinator=127.0.0.1:9", "--num_processes=2", f"--process_id={alone}", "--start_timeout=3"]
  if alone == 0:
    arguments[0] = f"--coordinator=127.0.0.1:{free_port()}"
  began = time.monotonic()
  (text,) = ends([start(4, tmp_path / "run", *arguments)], status=1)
  assert time.monotonic() - began < 200  # JAX's own limit is 300 seconds
  assert text.splitlines()[-1] == (
    f"error: process {alone} of 2 did not find all others at {arguments[0].removeprefix('--coordinator=')} "
    "within 3 s; were all of them started?"
  )
  assert not (tmp_path / "run").exists()


def test_hosts_of_a_run_that_another_process_trains_all_end(start_two, tmp_path):
  with sole_writer(tmp_path / "run", "run"):
    for text in ends(start_two(tmp_path / "run", "--shared_workdir"), status=1):
      assert f"{tmp_path / 'run'}: another process writes here" in text.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".run.lock"]
