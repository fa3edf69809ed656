"""The figures that a study draws itself (plan.Figures), as they stand in its reports."""

import os
from collections.abc import Iterable
from pathlib import Path

from drope_jax.markdown import plain
from experiments.plan import figures_directory
from experiments.reporting.stored import read_description


def pictures(workdir: Path, page: Path) -> list[str]:
  """Markdown of the figures that the study in `workdir` has drawn, for a page in the folder `page`."""
  path, folder = workdir / "study.json", figures_directory(workdir)
  captions = read_description(path).figures if path.exists() else {}
  return [
    _shown(folder / f"{name}.png", str(caption), _numbers(name, captions, folder), page)
    for name, caption in captions.items()
    if (folder / f"{name}.png").exists()
  ]


def _numbers(name: str, names: Iterable[str], folder: Path) -> list[Path]:
  """NAME.csv and NAME_*.csv, without those that belong to a figure with a longer name."""
  longer = [other for other in names if other.startswith(f"{name}_")]
  return [
    file
    for file in sorted(folder.glob("*.csv"))
    if f"{file.stem}_".startswith(f"{name}_") and not any(f"{file.stem}_".startswith(f"{other}_") for other in longer)
  ]


def _shown(picture: Path, caption: str, numbers: list[Path], page: Path) -> str:
  links = ", ".join(f"[{file.name}]({os.path.relpath(file, page)})" for file in numbers)
  said = f"{plain(caption)} The numbers: {links}." if links else plain(caption)
  return f"![{plain(caption)}]({os.path.relpath(picture, page)})\n\n*{said}*"
