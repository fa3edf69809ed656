"""docs/paper_to_code.md names files and functions that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper_to_code.md").read_text()
STUDIES = ROOT / "experiments" / "studies"


def named():
  """(row, file, the names that stand behind it) for every file of the tables' last columns."""
  for line in PAGE.splitlines():
    cell = line.rstrip("| ").rpartition(" | ")[2]
    if line.startswith("| ") and ".py`" in cell:
      for place in cell.split(";"):
        file, *names = re.findall(r"`([^`]+)`", place)
        yield pytest.param(file, names, id=file)


def defined(path):
  """Functions, classes and constants of a module."""
  found = set()
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
      found |= {target.id} if isinstance(target, ast.Name) else set()
  return found


@pytest.mark.parametrize(("file", "names"), list(named()))
def test_a_place_in_the_code_is_there(file, names):
  path = ROOT / file
  assert path.is_file(), f"{file} is named and not there"
  assert set(names) <= defined(path), f"{file} has no {set(names) - defined(path)}"


def test_every_file_is_looked_at_and_every_table_or_figure_is_named():
  assert len(list(named())) == PAGE.count(".py`")
  papers = {path.name for path in STUDIES.glob("*.py") if re.match(r"(fig|tables?)\d", path.name)}
  assert papers == set(re.findall(r"studies/((?:fig|tables?)\d\w+\.py)", PAGE))
