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
Part = str | Table

_METADATA: dict[str, dict[str, str | None]] = {
  "png": {"Software": None},
  "svg": {"Date": None, "Creator": None},
  "pdf": {"CreationDate": None},
}
_LINK = re.compile(r"\]\(((?:tables/)?[\w.-]+\.(?:png|svg|pdf|csv|tex))\)")


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


def write_markdown(path: Path, parts: Iterable[Part]) -> None:
  """Writes a report and the files of its tables, and deletes those of an earlier report that this one lacks."""
  shown = list(parts)
  tables = [part for part in shown if isinstance(part, Table)]
  texts = list(map(markdown, shown))
  names = dict.fromkeys(file_name(table.name) for table in tables)
  links = [f"{name} ([CSV]({TABLES}/{name}.csv), [LaTeX]({TABLES}/{name}.tex))" for name in names]
  texts += [f"The tables as files: {', '.join(links)}."] if links else []
  text = "\n\n".join(texts) + "\n"
  earlier = set(_LINK.findall(path.read_text(encoding="utf-8"))) if path.exists() else set()
  if tables:
    (path.parent / TABLES).mkdir(exist_ok=True)
  for table in tables:
    for suffix, content in (("csv", table.csv), ("tex", table.latex)):
      replace_whole(path.parent / TABLES / f"{file_name(table.name)}.{suffix}", content)
  for name in earlier - set(_LINK.findall(text)):
    for one in _with_formats(name):
      (path.parent / one).unlink(missing_ok=True)
  replace_whole(path, text)


def markdown(part: Part) -> str:
  return part.markdown if isinstance(part, Table) else part


def _with_formats(name: str) -> list[str]:
  """A file; for a picture, its files in all formats."""
  stem, _, suffix = name.rpartition(".")
  return [f"{stem}.{one}" for one in FORMATS] if suffix in FORMATS else [name]


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
    for suffix in dict.fromkeys(("png", *formats)):
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
