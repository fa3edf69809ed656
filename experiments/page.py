"""Updates the generated parts of studies' docstrings: `python -m experiments.page FILE...`.

These are the table of sizes (parameters, context, runs, tokens and FLOPs), computed from the configs, and after
"Numbers to expect" the page of docs/results with the study's results, if it has been run.
tests/experiments/test_study_pages.py fails for a docstring that is out of date.
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
from experiments.plan import Study

TABLE = re.compile(r"^\| size .*\n(\|.*\n)+", re.MULTILINE)
NUMBERS = re.compile(r"^(.*)Numbers to expect:\s+(?:not\s+yet\s+run|docs/results/\w+\.md)", re.MULTILINE)
PAGES = Path(__file__).parents[1] / "docs" / "results"
LONGEST_LINE = 120
WORKDIR = Path("study")  # a placeholder: nothing is read from it


def size_table(module: ModuleType) -> str:
  """The table of sizes of a study's module."""
  return costs.size_table((size, study, run_models(study, WORKDIR)) for size, study in _sizes(module).items())


def _sizes(module: ModuleType) -> dict[str, Study]:
  """The study of each size; none for a module without sizes."""
  return {size: make().study(WORKDIR) for size, make in getattr(module, "SIZES", {}).items()}


def numbers(module: ModuleType) -> str:
  """What follows "Numbers to expect:" in a study's docstring; all that draw figures of their own share a page."""
  drawn = any(study.figures is not None for study in _sizes(module).values())
  page = PAGES / f"{'figures' if drawn else module.__name__.rpartition('.')[2]}.md"
  return f"docs/results/{page.name}" if page.exists() else "not yet run"


def with_numbers(text: str, where: str) -> str:
  """The text of a study's module whose docstring says that its numbers are there."""

  def said(found: re.Match[str]) -> str:
    line = f"{found[1]}Numbers to expect: {where}"
    return line if len(line) < LONGEST_LINE else f"{found[1]}Numbers to expect:\n{where}"

  return NUMBERS.sub(said, text, count=1)


def write_numbers(path: Path) -> None:
  """Updates where a study's docstring says its numbers are."""
  replace_whole(path, with_numbers(path.read_text(), numbers(load(str(path), "FILE"))))


def write_table(path: Path) -> None:
  """Updates the table of sizes in a study's docstring, if it trains. Raises FileError if the file has none."""
  module = load(str(path), "FILE")
  if not hasattr(module, "SIZES"):
    raise FileError(f"{path}: has no SIZES to make a table of")
  if not any(study.runs for study in _sizes(module).values()):
    write_numbers(path)
    return
  table, text = size_table(module), path.read_text()
  written, count = TABLE.subn(lambda _: table + "\n", text, count=1)
  if not count:
    raise FileError(f"{path}: the docstring has no table that starts with '| size'")
  replace_whole(path, written)
  write_numbers(path)


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
