"""The notebook runs from a fresh clone, and what it shows in the repository is whole.

Its outputs are of the quickstart: `jupyter execute --inplace docs/notebooks/attention.ipynb` makes them again.
"""

import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "attention.ipynb"
PICTURES = 4


def outputs(notebook):
  return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook):
  return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


def test_it_was_saved_with_its_outputs_and_is_small():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  assert len(pictures(notebook)) == PICTURES
  assert NOTEBOOK.stat().st_size < 500_000
  assert not [output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"]
  assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")
  counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
  assert counts == list(range(1, len(counts) + 1))


@pytest.mark.slow
def test_it_runs_where_nothing_was_trained_yet(tmp_path, monkeypatch):
  """It trains models of its own then; the kernel imports the library of this checkout."""
  from nbclient import NotebookClient

  folder = tmp_path / "docs" / "notebooks"
  folder.mkdir(parents=True)
  (tmp_path / "experiments").symlink_to(ROOT / "experiments")
  shutil.copy(NOTEBOOK, folder)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
  NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
  assert len(pictures(notebook)) == PICTURES
  assert (tmp_path / "runs" / "notebook" / "runs" / "drope" / "checkpoints").is_dir()
  printed = "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")
  assert "drope, 40,960 tokens at a context of 128: positions=None" in printed
