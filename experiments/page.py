"""The tables on the studies' pages: `python -m experiments.page FILE...` writes them into the files' docstrings.

A study's docstring has a table of its sizes: parameters, context, runs, tokens and FLOPs. It is computed from the
configs, never typed; tests/experiments/test_contracts.py compares.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from drope_jax import cli
from drope_jax.cli.modules import load
from drope_jax.errors import FileError
from drope_jax.files import replace_whole
from experiments import costs
from experiments.models import run_models

TABLE = re.compile(r"^\| size .*\n(\|.*\n)+", re.MULTILINE)
WORKDIR = Path("study")  # of which nothing is read


def size_table(module: ModuleType) -> str:
  """The table of a study's module, which has SIZES."""
  studies = {size: make().study(WORKDIR) for size, make in module.SIZES.items()}
  return costs.size_table((size, study, run_models(study, WORKDIR)) for size, study in studies.items())


def write_table(path: Path) -> None:
  """Replaces the table in the docstring of a study's file. Raises FileError if there is none."""
  table, text = size_table(load(str(path), "FILE")), path.read_text()
  written, count = TABLE.subn(lambda _: table + "\n", text, count=1)
  if not count:
    raise FileError(f"{path}: the docstring has no table that begins with '| size'")
  replace_whole(path, written)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.page", about=__doc__)
  parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files of experiments/studies")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""

  def write(files: Sequence[Path]) -> None:
    for file in files:
      write_table(file)

  return cli.run_parsed(_parser(), lambda given: write(given.files), arguments)


if __name__ == "__main__":
  sys.exit(main())
