"""A run's step compiled for accelerators that are not here, by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def compiled_row(tmp_path: Path, *arguments: str) -> dict:
  """The figures of a row of the table of docs/results/speed.md, which must fit with an MFU bound of half the peak."""
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  line = [sys.executable, "-m", "drope_jax.aot", *arguments, f"--json={tmp_path / 'figures.json'}"]
  done = subprocess.run(line, capture_output=True, text=True, timeout=1200, cwd=ROOT, env=environment)
  assert done.returncode == 0, done.stderr
  figures = json.loads((tmp_path / "figures.json").read_text())
  assert figures["peak"] < figures["hbm"] and figures["mfu_bound"]["causal"] >= 0.5
  assert figures["loops_counted_once"] == 0
  return figures
