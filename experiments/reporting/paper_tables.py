"""The tables of the paper (arXiv 2512.12167) that studies are set beside; their numbers are in paper_tables.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.reporting.table import Table


class PaperTable(NamedTuple):
  """A table as the paper has it."""

  study: str  # the study here that does what it did
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
