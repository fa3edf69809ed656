"""Runs tests of several devices in a process of their own, since the number of devices is fixed at start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def on_eight_devices(script: str, *arguments: Any, jobs: Any, **environment: str) -> dict:
  """Runs a script of this folder, which reads `jobs` as JSON, on eight devices; returns the JSON of its last line."""
  here = Path(__file__).parent
  done = subprocess.run(
    [sys.executable, str(here / script), *map(str, arguments)],
    input=json.dumps(jobs),
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip(),
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
