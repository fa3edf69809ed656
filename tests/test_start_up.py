"""What a command imports before it does anything: only what it needs, since that is most of a short run's time."""

import functools
import subprocess
import sys

import pytest


@functools.cache
def imported_by(module):
  """The names of the modules that importing one brings along, in a process of its own."""
  program = f"import sys, {module}\nprint(*sys.modules, sep='\\n')"
  done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
  return set(done.stdout.split())


@pytest.mark.parametrize(
  ("module", "unneeded"),
  [
    ("drope_jax", ("jax", "numpy")),
    ("experiments.train", ("tensorflow_datasets", "tensorflow", "matplotlib", "torch", "transformers")),
    ("experiments.evaluate", ("tensorflow_datasets", "tensorflow", "matplotlib", "torch", "transformers")),
    ("experiments.studies.branching", ("tensorflow_datasets", "tensorflow", "torch", "transformers")),
  ],
)
def test_a_command_imports_no_library_that_it_may_not_need(module, unneeded):
  found = imported_by(module)
  assert module in found and not found & set(unneeded)


def test_training_imports_no_evaluation():
  assert not [name for name in imported_by("experiments.train") if name.startswith("drope_jax.evaluate.tasks")]
