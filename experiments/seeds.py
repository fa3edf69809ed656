"""The spread over seeds: `python -m experiments.seeds DIR DIR ... [--control=LABEL]` prints every figure over seeds.

Each DIR is a workdir of the same study with another seed; the tables are Markdown, for RESULTS.md. The first table of a
metric has mean ± standard deviation. The second has the differences from the control, each taken within a seed, so that
what a seed does to all rows alike falls out: mean ± standard deviation, and a 95 % interval of the mean (Student's t,
n - 1 degrees of freedom). The control is the row of this label; by default the first that went on with its embedding.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import scipy.stats

from drope_jax import cli
from drope_jax.errors import ReportError
from experiments.plan import Row
from experiments.reporting.arms import is_control
from experiments.reporting.records import Records, read_study
from experiments.reporting.tables import MISSING, markdown_table, show_length


def spread(values: Sequence[float]) -> str:
  """Mean ± standard deviation of at least two values."""
  return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def interval(differences: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of the mean of at least two paired differences, by Student's t."""
  n = len(differences)
  half = float(scipy.stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
  return statistics.mean(differences) - half, statistics.mean(differences) + half


def show_difference(differences: Sequence[float]) -> str:
  low, high = interval(differences)
  mean, sd = statistics.mean(differences), statistics.stdev(differences)
  return f"{mean:+.3f} ± {sd:.3f} ({low:+.3f} to {high:+.3f})"


def spread_table(studies: Sequence[Records], task: str, metric: str, control: Row | None = None) -> str:
  """One line per row of the study, one column per length; with a control, the differences from it.

  Raises:
    ReportError: if a study lacks a figure that the first one has.
  """
  first = studies[0]
  contexts = first.contexts(task)
  rows = [row for row in first.rows if any(_value(first, row, task, metric, c) is not None for c in contexts)]

  def values(row: Row, context: int) -> list[float]:
    found = []
    for study in studies:
      value = _value(study, row, task, metric, context)
      if value is None:
        raise ReportError(f"{study.directory}: no {metric} of {row.label} in {task} at {context} tokens")
      found.append(value)
    return found

  def cell(row: Row, context: int) -> str:
    if control is None:
      return spread(values(row, context))
    return show_difference(
      [value - base for value, base in zip(values(row, context), values(control, context), strict=True)]
    )

  lines = ([row.label, *(cell(row, context) for context in contexts)] for row in rows if row != control)
  return markdown_table([metric, *(show_length(first, context) for context in contexts)], lines)


def recovery_table(studies: Sequence[Records], control: Row) -> str | None:
  """The held-out loss in context while the runs train, as differences from the control's at the same step.

  None if no run that begins where the control does has such a curve in every study.
  """
  curves = {run: [_curve(study, run) for study in studies] for run in studies[0].runs}
  base = curves[control.run]
  steps = sorted(set.intersection(*map(set, base)))
  lines = []
  for run, found in curves.items():
    shared = [step for step in steps if all(step in curve for curve in found)]
    if run == control.run or len(shared) < 2:
      continue
    pairs = {step: [a[step] - b[step] for a, b in zip(found, base, strict=True)] for step in shared}
    lines.append([run, *(show_difference(pairs[step]) if step in pairs else MISSING for step in steps)])
  return markdown_table(["run", *(f"step {step:,}" for step in steps)], lines) if lines else None


def _curve(study: Records, run: str) -> dict[int, float]:
  """The held-out loss at the training context, by step, of a run that began from another's weights."""
  if study.runs[run].transition is None:
    return {}
  return {one["step"]: one["loss"] for one in study.runs[run].heldout if one["extension"] == 1}


def _value(study: Records, row: Row, task: str, metric: str, context: int) -> float | None:
  figure = study.figure(row, task, context, (metric, None, None))
  return None if figure is None else figure.value


def _control(study: Records, label: str | None) -> Row | None:
  """The row of this label, or the first control as it was trained. Raises ReportError for an unknown label."""
  if label is None:
    controls = (row for row in study.rows if row.plain and row.run in study.runs and is_control(study.runs[row.run]))
    return next(controls, None)
  found = next((row for row in study.rows if row.label == label), None)
  if found is None:
    raise ReportError(f"--control is {label!r}; rows: {', '.join(row.label for row in study.rows)}")
  return found


def seed_report(directories: Sequence[Path], control: str | None = None) -> str:
  """The tables of all tasks and metrics, as Markdown.

  Args:
    directories: workdirs of one study, with different seeds.
    control: the label of the row that the differences are from.

  Raises:
    ReportError: seeds are not different, or a study lacks a figure that the first one has.
  """
  studies = [read_study(directory) for directory in directories]
  seeds = [study.seed for study in studies]
  if len(set(seeds)) < max(len(seeds), 2):
    raise ReportError(f"seeds are {seeds}; a spread needs at least two, all different")
  over = f"over seeds {', '.join(map(str, sorted(seeds)))}"
  base = _control(studies[0], control)
  paired = "" if base is None else f"difference from “{base.label}” of the same seed, mean ± standard deviation"
  parts = []
  for task in studies[0].tasks:
    for metric in studies[0].metrics(task):
      parts += [f"{task}, {metric}: mean ± standard deviation {over}", spread_table(studies, task, metric)]
      if base is not None:
        parts += [f"{task}, {metric}: {paired} (95 % interval) {over}", spread_table(studies, task, metric, base)]
  recovery = None if base is None else recovery_table(studies, base)
  if recovery is not None:
    parts += [f"held-out loss in context while training: {paired} (95 % interval) {over}", recovery]
  return "\n\n".join(parts) + "\n"


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.seeds", about=__doc__)
  parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="workdirs of one study, one per seed")
  parser.add_argument("--control", metavar="LABEL", help="row that the others are compared with")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(
    _parser(), lambda given: print(seed_report([d.expanduser() for d in given.directories], given.control)), arguments
  )


if __name__ == "__main__":
  sys.exit(main())
