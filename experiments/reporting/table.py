"""A table as data, and as Markdown, CSV and LaTeX (booktabs)."""

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

MISSING = "–"
_BAR = re.compile(r"(?<!\\)\|")  # that would end a cell
_ESCAPED = re.compile(r"\\([\\`*\[\]<>|~$_&#+>.\-])")  # as markdown.plain writes it
_CODE = re.compile(r"(`+) ?(.+?) ?\1")
_LATEX = {
  "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
  "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "±": r"$\pm$", "–": "--", "β": r"$\beta$",
  "γ": r"$\gamma$", "·": r"$\cdot$", "“": "``", "”": "''",
}  # fmt: skip


class Cell(NamedTuple):
  """A cell of a number: what Markdown shows, and for the CSV the number itself, its interval and its samples."""

  text: str
  value: float
  low: float | None = None
  high: float | None = None
  n: int | None = None


class Table(NamedTuple):
  """A table whose first column is text; texts are Markdown, as drope_jax/markdown.py escapes it."""

  name: str  # of its files, without a suffix
  header: Sequence[str]
  rows: Sequence[Sequence[str | Cell]]
  numbers: bool = True  # whether the other columns are numbers, which stand to the right

  @property
  def markdown(self) -> str:
    def line(cells: Sequence[str | Cell]) -> str:
      return "| " + " | ".join(_BAR.sub(r"\|", _markdown(cell)) for cell in cells) + " |"

    aligned = [":--", *["--:" if self.numbers else ":--"] * (len(self.header) - 1)]
    return "\n".join([line(self.header), "|" + "|".join(aligned) + "|", *map(line, self.rows)])

  @property
  def csv(self) -> str:
    """Numbers in full; behind a column of them stand those of the columns low, high and n that say something."""
    columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
    shown: list[list[str]] = []
    for name, cells in zip(map(_raw, self.header), columns, strict=True):
      found = [cell if isinstance(cell, Cell) else None for cell in cells]
      if not any(found):
        shown.append([name, *(_raw(_markdown(cell)) for cell in cells)])
        continue
      name = name.partition(", n = ")[0]  # which has a column of its own
      for field in ("value", "low", "high", "n"):
        values = [None if cell is None else getattr(cell, field) for cell in found]
        if any(value is not None for value in values):
          shown.append([name if field == "value" else f"{name} {field}", *map(_number, values)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*shown, strict=True))
    return text.getvalue()

  @property
  def latex(self) -> str:
    """A tabular with the rules of booktabs, to be put into a table environment."""
    lines = [" & ".join(_latex(_markdown(cell)) for cell in row) + r" \\" for row in (self.header, *self.rows)]
    columns = "l" + ("r" if self.numbers else "l") * (len(self.header) - 1)
    inside = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *inside, r"\end{tabular}"]) + "\n"


def _markdown(cell: str | Cell) -> str:
  return cell.text if isinstance(cell, Cell) else cell


def _raw(markdown: str) -> str:
  """The text that Markdown shows, bold or not."""
  text = _CODE.sub(r"\2", markdown).replace("**", "")
  return _ESCAPED.sub(r"\1", text)


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.10g}"


def _latex(markdown: str) -> str:
  bold = re.fullmatch(r"\*\*(.+)\*\*", markdown)
  text = "".join(_LATEX.get(letter, letter) for letter in _raw(markdown))
  return rf"\textbf{{{text}}}" if bold else text
