"""A report as files: Markdown with tables and pictures, and each table as CSV and LaTeX in tables/ beside it."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure as Canvas
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from drope_jax import cli
from drope_jax.errors import ConfigError, check
from drope_jax.files import replace_whole, writing
from drope_jax.markdown import plain
from experiments.reporting.table import Table

FORMATS = ("png", "svg", "pdf")  # of pictures; a report shows the PNG
TABLES = "tables"
ABOUT = "Description"  # key of the text that is stored in a PNG
COLORS = 256

_METADATA: dict[str, dict[str, str | None]] = {
  "png": {"Software": None},
  "svg": {"Date": None, "Creator": None},
  "pdf": {"CreationDate": None},
}


class Picture(NamedTuple):
  """A PNG that a page shows."""

  name: str  # of the file, from the page
  caption: str

  @property
  def markdown(self) -> str:
    return f"![{plain(self.caption)}]({self.name})\n\n*{plain(self.caption)}*"

  @property
  def stem(self) -> str:
    return self.name.removesuffix(".png")


Part = str | Table | Picture


def write_markdown(path: Path, parts: Iterable[Part], formats: Sequence[str] = ("png",)) -> None:
  """Writes a report and the files of its tables, and deletes those of an earlier report that this one lacks.

  NAME.files beside the report NAME.md lists the files that it has written, one per line. Others are never deleted.

  Args:
    formats: in which its pictures were saved.
  """
  shown = list(parts)
  tables = [part for part in shown if isinstance(part, Table)]
  texts = list(map(markdown, shown))
  names = dict.fromkeys(file_name(table.name) for table in tables)
  links = [f"{name} ([CSV]({TABLES}/{name}.csv), [LaTeX]({TABLES}/{name}.tex))" for name in names]
  texts += [f"The tables as files: {', '.join(links)}."] if links else []
  if tables:
    (path.parent / TABLES).mkdir(exist_ok=True)
  for table in tables:
    for suffix, content in (("csv", table.csv), ("tex", table.latex)):
      replace_whole(path.parent / TABLES / f"{file_name(table.name)}.{suffix}", content)
  files = {f"{TABLES}/{name}.{suffix}" for name in names for suffix in ("csv", "tex")}
  pictures = [part for part in shown if isinstance(part, Picture)]
  files |= {f"{picture.stem}.{suffix}" for picture in pictures for suffix in all_formats(formats)}
  _keep_alone(files, path)
  replace_whole(path, "\n\n".join(texts) + "\n")


def _keep_alone(files: set[str], path: Path) -> None:
  """Of the files that a report ever wrote, keeps these and those of the same pictures in other formats."""
  listed, stems = path.with_suffix(".files"), {_stem(name) for name in files}
  earlier = set(listed.read_text(encoding="utf-8").splitlines()) if listed.exists() else set()
  for name in earlier:
    if _stem(name) in stems:
      files.add(name)
    else:
      (path.parent / name).unlink(missing_ok=True)
  replace_whole(listed, "".join(f"{name}\n" for name in sorted(files)))


def _stem(name: str) -> str:
  return name.rpartition(".")[0]


def markdown(part: Part) -> str:
  return part if isinstance(part, str) else part.markdown


def all_formats(formats: Iterable[str]) -> Iterable[str]:
  """The formats that a picture is saved in when these are asked for."""
  return dict.fromkeys(("png", *formats))


def chosen_formats(names: Sequence[str]) -> tuple[str, ...]:
  """These formats of pictures, each once. Raises ConfigError for any other."""
  for name in names:
    check(name in FORMATS, f"--formats: {name!r} is not a picture format; allowed: {', '.join(FORMATS)}")
  return tuple(dict.fromkeys(names))


def add_formats(parser: cli.Parser) -> None:
  """Adds the flag --formats to a command that draws."""

  def formats(text: str) -> tuple[str, ...]:
    try:
      return chosen_formats(text.split(","))
    except ConfigError as error:
      raise argparse.ArgumentTypeError(str(error)) from error

  parser.add_argument(
    "--formats", type=formats, default=("png",), metavar="LIST", help=f"of the pictures: {','.join(FORMATS)}"
  )


def file_name(text: str) -> str:
  """The text as a file name that any file system accepts."""
  return re.sub(r"[^\w.-]", "-", text)


def save(canvas: Canvas, directory: Path, stem: str, formats: Iterable[str] = ("png",), dpi: int = 150) -> None:
  """Writes a picture as PNG and in each format, the same bytes for the same picture."""
  with plt.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
    for suffix in all_formats(formats):
      path = directory / f"{stem}.{suffix}"
      with writing(path, path):
        canvas.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=_METADATA[suffix])
  plt.close(canvas)


def shrink(path: Path, about: str = "") -> None:
  """Gives a PNG a palette, as bands that overlap have more colours than anyone can see, and the text `about`."""
  with Image.open(path) as image:
    small, dpi = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE), image.info["dpi"]
  text = PngInfo()
  if about:
    text.add_text(ABOUT, about)
  with writing(path, path):
    small.save(path, optimize=True, dpi=dpi, pnginfo=text)
