"""Tests of several devices run in processes of their own, since the number of devices is fixed at start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def devices_flags(count: int) -> str:
  """XLA_FLAGS for so many simulated devices. They wait for each other as long as those of commands (drope_jax/cpu.py):
  XLA ends a process in which one is 40 seconds late, as it may be on a machine with fewer cores than devices.
  """
  own = f"--xla_force_host_platform_device_count={count} --xla_cpu_collective_call_terminate_timeout_seconds=600"
  return f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()


def on_eight_devices(script: str, *arguments: Any, jobs: Any, **environment: str) -> dict:
  """Runs a script of this folder, which reads `jobs` as JSON, on eight devices; returns the JSON of its last line."""
  here = Path(__file__).parent
  done = subprocess.run(
    [sys.executable, str(here / script), *map(str, arguments)],
    input=json.dumps(jobs),
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": devices_flags(8),
      "PYTHONPATH": os.pathsep.join([*map(str, here.parents[:2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
      **environment,
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  answer = json.loads(done.stdout.splitlines()[-1])
  assert answer["devices"] == 8
  return answer
