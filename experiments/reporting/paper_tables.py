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
  def markdown(self) -> str:
    return Table(self.table, self.header, self.rows).markdown


def paper_tables() -> list[PaperTable]:
  """All of them, in the order of the paper."""
  path = Path(__file__).with_name("paper_tables.json")
  return [PaperTable(**one) for one in json.loads(path.read_text(encoding="utf-8"))["tables"]]
