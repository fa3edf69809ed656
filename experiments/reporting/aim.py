"""The aim of the partial drop, by model and threshold: what it costs in context, and whether it keeps its needles."""

from collections.abc import Mapping
from typing import NamedTuple

from experiments.reporting.claims import MARGIN, Comparison, kept, less
from experiments.reporting.spread import show_mean
from experiments.reporting.summary import Summary
from experiments.reporting.table import MISSING, Table
from experiments.reporting.verdicts import FAILS, HOLDS, OPEN, difference, overall, verdict

THRESHOLDS = {
  "half a turn": ("turns_0.5", "rope"),
  "one turn": ("turns_1", "rope"),
  "two turns": ("turns_2", "rope"),
  "full drop": ("drop", "drope"),
}
UNTEMPERED = {"drope": "nope"}  # for studies that have not fitted a temperature
SHOWN = {HOLDS: "reached", FAILS: "missed", OPEN: "open"}


class Setting(NamedTuple):
  """A model at a context and a base, and the pages of the studies that measured it."""

  label: str
  studies: tuple[str, ...]  # for each threshold, the first that has it counts: that on seeds which did not choose it
  prefix: str = ""  # of the names of its runs


SETTINGS = (
  Setting("0.9M, 128 tokens, base 1e4", ("partial_drop_half", "partial_drop")),
  Setting("0.9M, 128 tokens, base 1e5", ("partial_drop_rule",), "theta_1e5_"),
  Setting("0.9M, 256 tokens, base 1e4", ("partial_drop_rule_256",), "theta_1e4_"),
  Setting("0.9M, 256 tokens, base 1e5", ("partial_drop_rule_256",), "theta_1e5_"),
  Setting("15.7M, 256 tokens, base 1e4", ("partial_drop_small", "partial_drop_small_half")),
)


def aim_table(summaries: Mapping[str, Summary]) -> str:
  """One line per setting: for each threshold the verdict, the cost in context, and the needles lost at 4× and 8×."""
  lines = [
    [setting.label, *(_cell(setting, run, method, summaries) for run, method in THRESHOLDS.values())]
    for setting in SETTINGS
  ]
  return Table("aim", ["model, context, base", *THRESHOLDS], lines, numbers=False).markdown


def _cell(setting: Setting, run: str, method: str, summaries: Mapping[str, Summary]) -> str:
  model, control = (setting.prefix + run, method), (setting.prefix + "control", "rope")
  for study in setting.studies:
    asked = (less(study, model, control, 1, MARGIN), kept(study, model, 4), kept(study, model, 8))
    shown = _shown(asked, summaries[study]) if study in summaries else None
    if shown is not None:
      return shown
  return _cell(setting, run, UNTEMPERED[method], summaries) if method in UNTEMPERED else MISSING


def _shown(asked: tuple[Comparison, Comparison, Comparison], summary: Summary) -> str | None:
  """The cell of a threshold; None if the study has not measured it."""
  cost, near, far = (difference(summary, one) for one in asked)
  if cost is None or near is None or far is None:
    return None
  found = {"cost": cost, "needles 4×": near, "needles 8×": far}
  verdicts = [verdict(one, wanted) for one, wanted in zip(found.values(), asked, strict=True)]
  parts = [
    f"{name} {show_mean(one)}{'' if said == HOLDS else f', {SHOWN[said]}'}"
    for (name, one), said in zip(found.items(), verdicts, strict=True)
  ]
  page = f"[{len(summary.seeds)} seeds]({asked[0].study}.md)"
  return "<br>".join([f"**{SHOWN[overall(verdicts)]}** ({page})", *parts])
