"""What the tests of the documentation share: what the commands and configs declare."""

import json
import os
import subprocess
import sys

import pytest
from support.commands import serving
from support.pages import ROOT

from drope_jax.cli.help import Declared


@pytest.fixture(scope="session")
def command(compiled):
  """As in tests/conftest.py, but compiling quickly in slow tests too: each program of a page runs a few times."""
  with serving(compiled, JAX_DISABLE_MOST_OPTIMIZATIONS="1") as run:
    yield run


@pytest.fixture(scope="session")
def reference():
  """The pages that docs/_ext/reference.py would write, and by command its docstring and its flags.

  In a process of its own: it imports every command, and two of them may declare the same flag.
  """
  ended = subprocess.run(
    [sys.executable, "docs/_ext/reference.py", "--json"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 0, ended.stderr
  found = json.loads(ended.stdout)
  for command in found["commands"].values():
    command["declared"] = [Declared(*flag) for flag in command["declared"]]
  return found
