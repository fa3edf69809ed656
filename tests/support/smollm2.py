"""Where the tests find SmolLM2-135M: what `python -m experiments.fetch_smollm2 --workdir=DIR` left in DIR."""

import os
from pathlib import Path

import pytest

DIRECTORY = Path(os.environ.get("DROPE_JAX_SMOLLM2", Path(__file__).parents[2] / "runs" / "smollm2_135m"))
GGUF = DIRECTORY / "SmolLM2-135M-Instruct.Q4_1.gguf"
CHECKPOINT = DIRECTORY / "checkpoint"

needs_smollm2 = pytest.mark.skipif(
  not (GGUF.exists() and CHECKPOINT.exists()),
  reason=f"no SmolLM2 in {DIRECTORY}: run `python -m experiments.fetch_smollm2`, or set DROPE_JAX_SMOLLM2 to its DIR",
)
