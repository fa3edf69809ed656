"""How rows and arms are drawn: a colour, a marker and a dash pattern each, the same in every picture of a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.plan import Arm, Row
from experiments.reporting import arms
from experiments.reporting.records import Records

# Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is left out, too pale for a line.
# The grey is dark because a lighter one looks like purple or green to some of them.
INK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
  "#1f1f1f", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#555555",
)  # fmt: skip
# Common methods and kinds of runs look the same in every report; all others take the spare colours in turn, and when
# these are used up the spare colours with the next dash pattern.
METHOD_LOOKS = {"pi": (ORANGE, "s"), "ntk": (SKY, "^"), "yarn": (GREEN, "D"), "crop": (GREY, "X")}
KIND_LOOKS = {arms.CONTROL: (INK, "o"), "DroPE": (VERMILION, "o"), "partial drop": (PURPLE, "o")}
SPARE_LOOKS = (
  (BLUE, "v"), (PURPLE, "P"), ("#5A3A1E", "<"), ("#332288", ">"), ("#8A9A5B", "h"), ("#6020e0", "p"), ("#2F6F6F", "d"),
)  # fmt: skip
Dashes = tuple[float, ...]  # lengths in line widths, on and off in turn; empty: a solid line
DASHES: tuple[Dashes, ...] = ((), (1, 1.4), (6, 1.4, 1, 1.4), (8, 2.5), (3, 1.4, 1, 1.4, 1, 1.4))
UNTEMPERED: Dashes = (4, 1.8)  # a model with beta 1, where the same model is drawn with its temperature too


@dataclasses.dataclass(frozen=True)
class Look:
  """How a row or an arm is drawn."""

  color: str
  marker: str
  dashes: Dashes = ()
  heavy: bool = False

  @property
  def linestyle(self) -> Any:
    """As matplotlib takes it."""
    return (0, self.dashes) if self.dashes else "-"

  @property
  def line(self) -> dict[str, Any]:
    """The settings of a line with a marker at each point."""
    return {
      "color": self.color,
      "marker": self.marker,
      "linestyle": self.linestyle,
      "linewidth": 2.4 if self.heavy else 1.6,
      "markersize": 5.5,
      "markerfacecolor": "white" if self.dashes == UNTEMPERED else self.color,
      "markeredgewidth": 1.3,
      "zorder": 4 if self.heavy else 3,
    }


def looks(records: Records) -> dict[Row, Look]:
  """A look for each row of a report."""
  return looks_of(records.rows, {name: arms.kind(run) for name, run in records.runs.items()})


def looks_of(rows: Sequence[Row], kinds: Mapping[str, str]) -> dict[Row, Look]:
  """By method for a control's rows, by kind of run for others; a spare one if that is taken."""
  chosen: dict[tuple[str, str], Look] = {}
  found = {}
  for row in rows:
    kind = kinds.get(row.run)
    whole = _is_whole(row)
    key = (row.run, "" if whole else row.method)
    if key not in chosen:
      usual = (
        KIND_LOOKS.get(kind or "") if whole else METHOD_LOOKS.get(row.method) if kind in (None, arms.CONTROL) else None
      )
      chosen[key] = _free(usual, list(chosen.values()))
    look = dataclasses.replace(chosen[key], heavy=whole and kind in KIND_LOOKS)
    tempered = any(other.run == row.run and other.method == "drope" for other in rows)
    found[row] = dataclasses.replace(look, dashes=UNTEMPERED) if row.plain and tempered else look
  return found


def _is_whole(row: Row) -> bool:
  """Whether a row shows a model as it was trained, with or without a temperature: then it has the model's colour."""
  return row.plain or row.method == "drope"


def _free(usual: tuple[str, str] | None, taken: Sequence[Look]) -> Look:
  """The usual look, or a spare one where that is taken. No two looks share colour and dashes while there are others."""
  pairs = {(look.color, look.dashes) for look in taken}
  spare = [Look(*look, dashes) for dashes in DASHES for look in SPARE_LOOKS]
  wanted = [] if usual is None else [Look(*usual)]
  free = (look for look in (*wanted, *spare) if (look.color, look.dashes) not in pairs)
  return next(free, spare[len(taken) % len(spare)])


def arm_looks(records: Records) -> dict[Arm, Look]:
  """The look of the row that evaluates an arm as it was trained; without one, that of its kind, or a spare one.

  Lines of arms have no markers, and no two of them share colour and dashes.
  """
  by_row = looks(records)
  rows = {row.run: look for row, look in by_row.items() if row.method == "drope"}
  rows |= {row.run: look for row, look in by_row.items() if row.plain and row.run not in rows}
  found: dict[Arm, Look] = {}
  for arm in records.arms:
    usual = KIND_LOOKS.get(arms.kind(records.runs[arm.runs[-1]]))
    found[arm] = rows.get(arm.runs[-1]) or _free(usual, [*rows.values(), *found.values()])
  return found
