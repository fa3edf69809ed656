"""A table as data, and as Markdown, CSV and LaTeX (booktabs)."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from experiments.reporting.latex import latex

MISSING = "–"
_BAR = re.compile(r"(?<!\\)\|")  # an unescaped bar, which would end a cell
_ESCAPED = re.compile(r"\\([\\`*\[\]<>|~$_&#+>.\-])")  # as markdown.plain writes it
_CODE = re.compile(r"(`+) ?(.+?) ?\1")


Value = float | str | None  # None: unknown


class Cell(NamedTuple):
  """A cell that is shown in one way and stored in another; the CSV leaves out columns without any value."""

  text: str  # in Markdown and LaTeX
  value: Value = None  # in the CSV
  beside: Mapping[str, Value] = {}  # further columns of the CSV, such as "low", "high", "n" and "sd"


class Column(NamedTuple):
  """A heading as it is shown, and the name of the column in the CSV, with the unit of its values."""

  text: str
  name: str


Heading = str | Column


class Table(NamedTuple):
  """A table whose first column is text. Texts are Markdown, escaped as by drope_jax/markdown.py."""

  name: str  # of its files, without a suffix
  header: Sequence[Heading]
  rows: Sequence[Sequence[str | Cell]]
  numbers: bool = True  # whether the other columns are numbers, to be aligned to the right

  @property
  def markdown(self) -> str:
    def line(cells: Sequence[Heading | Cell]) -> str:
      return "| " + " | ".join(_BAR.sub(r"\|", _markdown(cell)) for cell in cells) + " |"

    aligned = [":--", *["--:" if self.numbers else ":--"] * (len(self.header) - 1)]
    return "\n".join([line(self.header), "|" + "|".join(aligned) + "|", *map(line, self.rows)])

  @property
  def csv(self) -> str:
    """One value per cell: numbers in full, empty where unknown."""
    columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
    stored = [column for heading, cells in zip(self.header, columns, strict=True) for column in _stored(heading, cells)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*stored, strict=True))
    return text.getvalue()

  @property
  def latex(self) -> str:
    """A tabular with booktabs rules, for a table environment; pdflatex compiles it."""
    lines = [" & ".join(_latex(_markdown(cell)) for cell in row) + r" \\" for row in (self.header, *self.rows)]
    columns = "l" + ("r" if self.numbers else "l") * (len(self.header) - 1)
    inside = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    needs = r"% Needs \usepackage{booktabs} in the preamble."
    return "\n".join([needs, rf"\begin{{tabular}}{{{columns}}}", *inside, r"\end{tabular}"]) + "\n"


def _stored(heading: Heading, cells: Sequence[str | Cell]) -> Iterator[list[str]]:
  """The columns of the CSV for a column of the table: its text, or its values and those beside them."""
  name = heading.name if isinstance(heading, Column) else _raw(heading)
  if not any(isinstance(cell, Cell) for cell in cells):
    yield [name, *(_raw(_markdown(cell)) for cell in cells)]
    return
  found = [cell if isinstance(cell, Cell) else Cell(cell) for cell in cells]
  for beside in dict.fromkeys(("", *(key for cell in found for key in cell.beside))):
    values = [cell.beside.get(beside) if beside else cell.value for cell in found]
    if any(value is not None for value in values):
      yield [f"{name} {beside}".rstrip(), *map(_value, values)]


def _markdown(cell: Heading | Cell) -> str:
  return cell if isinstance(cell, str) else cell.text


def _raw(markdown: str) -> str:
  """The text that Markdown shows, bold or not."""
  text = _CODE.sub(r"\2", markdown).replace("**", "")
  return _ESCAPED.sub(r"\1", text)


def _value(value: Value) -> str:
  return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _latex(markdown: str) -> str:
  bold = re.fullmatch(r"\*\*(.+)\*\*", markdown)
  text = latex(_raw(markdown))
  return rf"\textbf{{{text}}}" if bold else text
