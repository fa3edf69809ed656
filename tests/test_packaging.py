"""What is installed: the library alone."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import drope_jax

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_the_package():
  assert drope_jax.__version__ == metadata.version("drope_jax")


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(tmp_path):
  source = tmp_path / "source"
  files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
  for name in filter(None, files):  # a copy: setuptools leaves its build folder in the source tree
    if (ROOT / name).is_file():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes((ROOT / name).read_bytes())
  build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
  done = subprocess.run([*build, str(tmp_path), str(source)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  (wheel,) = tmp_path.glob("*.whl")
  names = zipfile.ZipFile(wheel).namelist()
  assert {name.split("/")[0] for name in names} == {"drope_jax", f"drope_jax-{drope_jax.__version__}.dist-info"}
  library = {
    name for name in files if name.startswith("drope_jax/") and name.endswith(".py") and (ROOT / name).is_file()
  }
  assert library <= set(names)


def test_importing_the_library_imports_nothing_heavy():
  """A command that starts once more (cpu.py) would import it twice."""
  program = "import sys, drope_jax.cpu; print(sorted({'jax', 'flax', 'orbax', 'grain', 'numpy'} & set(sys.modules)))"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_every_public_name_is_found_and_no_other():
  assert {name: getattr(drope_jax, name).__name__ for name in drope_jax.__all__} == {
    name: name for name in drope_jax.__all__
  }
  with pytest.raises(AttributeError, match="nothing_of_the_kind"):
    _ = drope_jax.nothing_of_the_kind
