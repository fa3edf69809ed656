"""What all commands share: one line for what fails, exit statuses, SIGTERM and Ctrl-C."""

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
  ("raised", "status", "said"),
  [
    ("drope_jax.errors.ResultsError('line 3')", 1, "error: line 3\n"),
    ("ModuleNotFoundError('no gguf')", 1, "error: no gguf\n"),
    ("drope_jax.errors.ConfigError('steps is 0')", 2, "error: steps is 0\n"),
  ],
)
def test_failures_are_one_line(command, raised, status, said):
  program = f"import drope_jax.errors\nfrom drope_jax import cli\ndef main(): raise {raised}\ncli.run(main)"
  ended = command("-c", program)
  assert (ended.status, ended.stderr) == (status, said)


@pytest.mark.parametrize(
  ("body", "told", "sent", "said"),
  [
    ("Held()", [], "SIGTERM", "SIGTERM"),  # what is raised in a __del__ goes no further
    ("asyncio.run(read())", ["read"], "SIGTERM", "SIGTERM"),  # what asyncio runs is not interrupted
    ("clean_up()", ["cleaned up"], "SIGTERM", "SIGTERM"),
    ("clean_up()", ["cleaned up"], "SIGINT", "Ctrl-C"),
  ],
  ids=["in a callback", "in asyncio", "cleaning up", "Ctrl-C"],
)
def test_a_signal_stops_a_command_wherever_it_comes(command, body, told, sent, said):
  program = f"""
import asyncio, os, signal, time
from drope_jax import cli

def terminate():
  os.kill(os.getpid(), signal.{sent})
  time.sleep(0.01)

class Held:
  def __del__(self):
    terminate()

async def read():
  terminate()
  print("read")

def clean_up():
  try:
    terminate()
  finally:
    time.sleep(0.5)
    print("cleaned up")

def main():
  {body}
  time.sleep(60)

cli.run(main)
"""
  ended = command("-c", program)
  assert ended.status == 0, ended.stderr
  assert ended.stdout.splitlines() == told
  assert ended.stderr.splitlines()[-1].endswith(
    f"stopped by {said}; run the same command to start over: nothing half done is left"
  )


def test_a_warning_is_told_from_an_ordinary_line(command):
  said = "log = logging.getLogger('drope_jax.x'); log.info('read %d', 1); log.warning('read %d', 2)"
  ended = command("-c", f"import logging\nfrom drope_jax import cli\ndef main(): {said}\ncli.run(main)")
  lines = [line.partition(" ")[2] for line in ended.stderr.splitlines()]  # without the time
  assert ended.status == 0 and lines == ["read 1", "warning: read 2"]


PROGRAM = "tests.support.flags_program"


def test_flags_mean_what_they_say(command):
  names = ("--path=~/x", "--number=0.5", "--some-items=b,c", "--seed=4294967295", "--a-switch", "--mesh=dp,context=2")
  ended = command(PROGRAM, *names)
  assert ended.status == 0, ended.stderr
  found = json.loads(ended.stdout)
  mesh = {"data": -1, "fsdp": 1, "tensor": 1, "context": 2, "dcn_data": 1, "dcn_fsdp": 1}
  assert found == [str(Path.home() / "x"), 0.5, ["b", "c"], 2**32 - 1, True, mesh, []]
  assert json.loads(command(PROGRAM, "--a-switch", "--no-a-switch").stdout)[4] is False


@pytest.mark.parametrize(
  "argument",
  [
    "--path=",
    "--number=nan",
    "--number=inf",
    "--number=-1",
    "--number=much",
    "--some_items=",
    "--some_items=a,,b",
    "--seed=-1",
    "--seed=1099511627776",
    "--seed=1.5",
    "--mesh=",
    "--mesh=fsdp3",
    "--mesh=context,fsdp",
    "--mesh=fsdp=4,fsdp=2",
    "--mesh=fsdp=-1",  # beside data=-1
    "--unknown=3",
    "--config.steps=3",  # of a command that has no config
    "argument",
    "--import=",
  ],
)
def test_a_bad_value_is_one_line_that_names_it(command, argument):
  ended = command(PROGRAM, argument)
  assert (ended.status, ended.stdout) == (2, "")
  assert argument.split("=")[0].removeprefix("--") in ended.error() or "MeshConfig" in ended.error()
