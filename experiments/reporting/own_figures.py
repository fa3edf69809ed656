"""The figures that a study draws itself (plan.Figures), as they stand in its reports."""

import os
from pathlib import Path

from drope_jax.markdown import plain
from experiments.reporting.stored import read_description


def pictures(workdir: Path, page: Path) -> list[str]:
  """Markdown of the figures that the study in `workdir` has drawn, for a page in the folder `page`."""
  path = workdir / "study.json"
  captions = read_description(path).figures if path.exists() else {}
  return [
    _shown(workdir / f"{name}.png", str(caption), page)
    for name, caption in captions.items()
    if (workdir / f"{name}.png").exists()
  ]


def _shown(picture: Path, caption: str, page: Path) -> str:
  """A picture with its caption and links to the files of its numbers, which begin with its name."""
  files = sorted(picture.parent.glob(f"{picture.stem}*.csv"))
  links = ", ".join(f"[{file.name}]({os.path.relpath(file, page)})" for file in files)
  numbers = f" The numbers: {links}." if links else ""
  return f"![{plain(caption)}]({os.path.relpath(picture, page)})\n\n*{plain(caption)}{numbers}*"
