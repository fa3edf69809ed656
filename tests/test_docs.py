"""What the documents name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_guarantee_names_tests_that_exist():
  """`path/test_x.py`, `path/test_x.py::test_y`, and `::test_z` of the file named before it."""
  text, file, found = (ROOT / "docs" / "reliability.md").read_text(), "", 0
  for name, test in re.findall(r"`((?:[\w/]+\.py)?)(?:::(\w+))?`", text):
    file = name or file
    path = ROOT / file if file.startswith(("tests/", "drope_jax/")) else ROOT / "tests" / file
    if not path.exists():  # a file of the folder named before
      path = next((ROOT / "tests").rglob(Path(file).name), path)
    assert path.is_file(), f"{file} is named and not there"
    if test:
      assert f"def {test}(" in path.read_text(), f"{file} has no {test}"
      found += 1
  assert found > 30
