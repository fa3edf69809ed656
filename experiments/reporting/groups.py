"""Which rows of a study share a panel: all are drawn, few enough together that they can be told apart."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.plan import Row
from experiments.reporting.arms import CONTROL
from experiments.reporting.looks import Look, looks_of
from experiments.reporting.summary import Summary

MOST = 10  # lines in one panel


class Group(NamedTuple):
  """Rows that are drawn together, the controls that they are compared with among them, and how."""

  rows: tuple[Row, ...]  # in the order of the study
  looks: dict[Row, Look]


def groups_of(summary: Summary) -> list[Group]:
  """Every row of a study in at least one group: all in one if they are few, otherwise by what their runs are.

  Rows of one run stay together, and the controls of a group's rows are in it.
  """
  if len(summary.rows) <= MOST:
    return [_group(summary, summary.rows)]
  parts: list[list[Row]] = []
  for rows in _by_kind(summary):
    for part in _halved(summary, rows):
      joined = [*parts[-1], *part] if parts else part
      if parts and len(_with_controls(summary, joined)) <= MOST:
        parts[-1] = joined
      else:
        parts.append(part)
  return [_group(summary, part) for part in parts]


def whole(summary: Summary) -> Group:
  """All rows, for a picture that names each at its place: their looks are those of the groups, and may repeat."""
  looks: dict[Row, Look] = {}
  for group in groups_of(summary):
    looks = {**group.looks, **looks}
  return Group(summary.rows, looks)


def _group(summary: Summary, rows: Sequence[Row]) -> Group:
  shown = _with_controls(summary, rows)
  return Group(tuple(shown), looks_of(shown, kinds_drawn(summary)))


def kinds_drawn(summary: Summary) -> dict[str, str]:
  """By run, its kind; of every kind but the control the first run alone has it, so that its look means one thing."""
  firsts: dict[str, str] = {}
  for row in summary.rows:
    firsts.setdefault(summary.kinds.get(row.run, ""), row.run)
  return {run: kind if kind == CONTROL or firsts.get(kind) == run else "" for run, kind in summary.kinds.items()}


def _with_controls(summary: Summary, rows: Iterable[Row]) -> list[Row]:
  chosen = set(rows)
  chosen |= {control for row in chosen if (control := summary.control(row)) is not None}
  return [row for row in summary.rows if row in chosen]


def _by_kind(summary: Summary) -> list[list[Row]]:
  found: dict[str, list[Row]] = {}
  for row in summary.rows:
    found.setdefault(summary.kinds.get(row.run, ""), []).append(row)
  return list(found.values())


def _halved(summary: Summary, rows: list[Row]) -> list[list[Row]]:
  """Rows of one kind, halved between two runs until no part is too large; a run alone is never divided."""
  runs = list(dict.fromkeys(row.run for row in rows))
  if len(_with_controls(summary, rows)) <= MOST or len(runs) == 1:
    return [rows]
  half = set(runs[: (len(runs) + 1) // 2])
  parts = [row for row in rows if row.run in half], [row for row in rows if row.run not in half]
  return [one for part in parts for one in _halved(summary, part)]
