"""The tables of the paper (arXiv 2512.12167) that pages show for comparison; paper_tables.json has their numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.reporting.table import Table


class PaperTable(NamedTuple):
  """A table of the paper."""

  study: str  # the study here that repeats it
  table: str  # as "Table 6"
  caption: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]

  @property
  def beside(self) -> Table:
    """As a table of a report."""
    return Table(f"paper_{self.table.lower().replace(' ', '_')}", self.header, self.rows)


def paper_tables() -> list[PaperTable]:
  """All of them, in the order of the paper."""
  path = Path(__file__).with_name("paper_tables.json")
  return [PaperTable(**one) for one in json.loads(path.read_text(encoding="utf-8"))["tables"]]


def paper_section(study: str) -> list[str | Table]:
  """What the paper has beside the study of this name; nothing for one that it has no table of."""
  parts: list[str | Table] = []
  for one in paper_tables():
    if one.study == study:
      parts += [f"**{one.table} of the paper.** {one.caption}", one.beside]
  return ["## The paper", *parts] if parts else []
