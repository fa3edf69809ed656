"""The figures that a study draws itself (plan.Figures), as they stand in its reports."""

import os
from pathlib import Path

from drope_jax.markdown import plain
from experiments.reporting.stored import read_description


def pictures(workdir: Path, page: Path) -> list[str]:
  """Markdown of the figures that the study in `workdir` has drawn, for a page in the folder `page`.

  Their captions are parts of the pictures.
  """
  path = workdir / "study.json"
  names = read_description(path).figures if path.exists() else ()
  files = {name: workdir / f"{name}.png" for name in names}
  return [
    f"![{plain(name.replace('_', ' '))}]({os.path.relpath(file, page)})"
    for name, file in files.items()
    if file.exists()
  ]
