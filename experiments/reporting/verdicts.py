"""Whether claims hold according to a stated rule, from the summaries of the studies in docs/results/data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from drope_jax.errors import ReportError
from drope_jax.markdown import plain
from experiments.plan import Row
from experiments.reporting.claims import OURS, PAPER, Claim, Comparison
from experiments.reporting.spread import Spread, paired, show_mean
from experiments.reporting.stored import read_json
from experiments.reporting.summary import Summary
from experiments.reporting.table import MISSING, Table

HOLDS, FAILS, OPEN, UNTESTED = "holds", "does not hold", "open", "not tested"

RULE = """\
A claim is about a difference between two rows of a study, taken within each seed. It **holds** at our scale if the 95 %
interval of the mean difference (Student's t over seeds) lies entirely where the claim puts it, **does not hold** if the
interval lies entirely outside, and is **open** if the interval covers both, or if there is only one seed. If a claim
has several comparisons, all must be measured and hold; one that fails refutes the claim; sizes whose verdicts differ
have one each (`mini` has 0.9M parameters, `small` 15.7M). Intervals are 95 % each, without correction for their number.
Studies at `mini` share trained models, so that two of them are not independent evidence; figure 3 trains longer than
the others. Verdicts marked as judged are a person's, on pictures and proofs, and on runs of one seed by intervals over
documents or prompts. Prompts are pooled over the seeds: needles at `mini` rest on 300 to 4,000 per row and length, at
`small` on 5,000 (half a turn: 2,000)."""


def difference(summary: Summary, asked: Comparison) -> Spread | None:
  """The difference that a comparison asks for; None if the study has not measured it."""
  values = []
  for (run, method), extension in zip((asked.first, asked.second), _extensions(asked), strict=True):
    row, context = _row(summary, run, method), round(extension * summary.train_context)
    values.append(None if row is None else summary.values(row, asked.task, context, asked.metric))
  return None if values[0] is None or values[1] is None else paired(values[0], values[1])


def _extensions(asked: Comparison) -> tuple[float, float]:
  """The extensions at which the first and the second row are compared."""
  return asked.extension, asked.extension if asked.second_extension is None else asked.second_extension


def verdict(found: Spread, asked: Comparison) -> str:
  """The verdict on a comparison by the rule."""
  if found.low is None or found.high is None:
    return OPEN
  above = -math.inf if asked.above is None else asked.above
  below = math.inf if asked.below is None else asked.below
  if above < found.low and found.high < below:
    return HOLDS
  return FAILS if found.high <= above or found.low >= below else OPEN


def overall(verdicts: Sequence[str]) -> str:
  """The verdict on a claim, given the verdicts on its comparisons."""
  if not verdicts:
    return UNTESTED
  return next((one for one in (FAILS, OPEN) if one in verdicts), HOLDS)


class Judged(NamedTuple):
  """A person's verdict on a claim that no rule decides, such as one about a picture."""

  evidence: str
  verdict: str


def judged(path: Path) -> dict[str, Judged]:
  """The verdicts in a JSON file, by the claim's place in the paper, or the text of one of ours; empty without a file.

  Raises:
    ReportError: a verdict is malformed, or its claim does not exist or is left to the rule.
  """
  found = read_json(path) if path.exists() else {}
  open_to = [_key(claim) for claim in (*PAPER, *OURS) if not claim.comparisons and not claim.tests]
  for where, one in found.items():
    if where not in open_to:
      raise ReportError(f"{path}: {where!r} is not a claim for a person to judge; those are: {'; '.join(open_to)}")
    if not isinstance(one, dict) or set(one) != set(Judged._fields) or one["verdict"] not in (HOLDS, FAILS, OPEN):
      raise ReportError(f"{path}: {where!r} needs `evidence`, and a `verdict` of {HOLDS!r}, {FAILS!r} or {OPEN!r}")
  return {where: Judged(**one) for where, one in found.items()}


def _key(claim: Claim) -> str:
  return claim.where or claim.text


def claims_table(
  claims: Sequence[Claim], summaries: Mapping[str, Summary], header: str, by_hand: Mapping[str, Judged]
) -> str:
  """One line per claim: its place in the paper, the evidence, and the verdict."""
  lines = []
  for claim in claims:
    evidence: list[str] = []
    found: dict[str, list[str]] = {}  # verdicts by size of the study
    comparisons = _judged_by_rule(claim, summaries)
    for asked in comparisons:
      here = difference(summaries[asked.study], asked)
      one = OPEN if here is None else verdict(here, asked)
      found.setdefault(summaries[asked.study].making.study.size, []).append(one)
      evidence.append(f"{_described(summaries[asked.study], asked, here)}: {one}")
    if found and _kinds(comparisons) < _kinds(claim.comparisons):
      evidence.append("the claim's other comparisons are not measured")
      found = {size: [*verdicts, OPEN] for size, verdicts in found.items()}
    result = _result(found)
    if claim.tests:
      evidence, result = [f"checked by `{claim.tests}`"], f"**{HOLDS}**, by a test"
    if _key(claim) in by_hand:
      evidence, result = [by_hand[_key(claim)].evidence], f"**{by_hand[_key(claim)].verdict}** (judged)"
    missing = f"needs {claim.wants}" if claim.wants else ", ".join(dict.fromkeys(c.study for c in claim.comparisons))
    shown = "<br>".join(evidence) or (missing if claim.wants else f"not run yet: {missing}")
    lines.append([claim.text, *([claim.where] if claim.where else []), shown, result])
  columns = [header, *(["where"] if claims[0].where else []), "our evidence", "verdict"]
  return Table("claims", columns, lines, numbers=False).markdown


def _result(found: Mapping[str, Sequence[str]]) -> str:
  """The verdict on a claim from those on its comparisons, by size: one, or one per size where they differ."""
  by_size = {size: overall(verdicts) for size, verdicts in found.items()}
  if len(set(by_size.values())) > 1:
    return ", ".join(f"**{one}** at {f'`{size}`' if size else 'the quickstart'}" for size, one in by_size.items())
  one = next(iter(by_size.values()), UNTESTED)
  return f"**{one}**" + (" at our scale" if one in (HOLDS, FAILS) else "")


def _kinds(asked: Sequence[Comparison]) -> int:
  """The number of different comparisons; the same one in two studies counts once."""
  return len({one._replace(study="") for one in asked})


def _judged_by_rule(claim: Claim, summaries: Mapping[str, Summary]) -> list[Comparison]:
  """A claim's comparisons in studies that were run, measured or not; empty if none of them was measured."""
  asked = [one for one in claim.comparisons if one.study in summaries]
  return asked if any(difference(summaries[one.study], one) is not None for one in asked) else []


def _described(summary: Summary, asked: Comparison, found: Spread | None) -> str:
  """`[controls](controls.md) mini, 5 seeds: “DroPE” minus “RoPE, continued”, loss at 1×: +0.33 (+0.31 to +0.35)`.

  A row that is compared with itself is named once: `“DroPE”, needles at 8× minus 1×`.
  """
  first, second = (_row(summary, run, method) for run, method in (asked.first, asked.second))
  size = summary.making.study.size
  seeds = f"{len(summary.seeds)} seeds" if len(summary.seeds) > 1 else "one seed"
  rows = dict.fromkeys(f"“{plain(row.label)}”" if row is not None else MISSING for row in (first, second))
  lengths = dict.fromkeys(f"{extension:g}×" for extension in _extensions(asked))
  what = asked.metric if asked.metric == "loss" else asked.task
  value = "not measured" if found is None else show_mean(found)
  return (
    f"[{asked.study}]({asked.study}.md){f' {size}' if size else ''}, {seeds}: "
    f"{' minus '.join(rows)}, {what} at {' minus '.join(lengths)}: {value}"
  )


def _row(summary: Summary, run: str, method: str) -> Row | None:
  return next((row for row in summary.rows if (row.run, row.method) == (run, method)), None)
