"""What all commands share: one line for what fails, exit statuses, and SIGTERM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("raised", "status", "said"),
  [
    ("drope_jax.errors.ResultsError('line 3')", 1, "error: line 3\n"),
    ("ModuleNotFoundError('no gguf')", 1, "error: no gguf\n"),
    ("drope_jax.errors.ConfigError('steps is 0')", 2, "error: steps is 0\n"),
  ],
)
def test_failures_are_one_line(raised, status, said):
  program = f"import drope_jax.errors\nfrom drope_jax import cli\ndef main(): raise {raised}\ncli.run(main)"
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.parametrize(
  ("body", "told"),
  [
    ("Held()", []),  # what is raised in a __del__ goes no further
    ("asyncio.run(read())", ["read"]),  # so is what asyncio runs; it is not interrupted
    ("clean_up()", ["cleaned up"]),
  ],
  ids=["in a callback", "in asyncio", "cleaning up"],
)
def test_sigterm_is_heard_wherever_it_comes(body, told):
  program = f"""
import asyncio, os, signal, time
from drope_jax import cli

def terminate():
  os.kill(os.getpid(), signal.SIGTERM)
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
  command = [sys.executable, "-c", program]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == told
  assert done.stderr.splitlines()[-1].endswith("stopped by SIGTERM; run the same command to go on from there")
