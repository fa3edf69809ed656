"""The spread over seeds: `python -m experiments.seeds DIR DIR ...` prints mean ± standard deviation of every figure.

Each DIR is a workdir of the same study with another seed; the tables are Markdown, for RESULTS.md.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from drope_jax import cli
from drope_jax.errors import ReportError
from experiments.plan import Row
from experiments.reporting.records import Records, read_study
from experiments.reporting.tables import markdown_table, show_length


def spread_table(studies: Sequence[Records], task: str, metric: str) -> str:
  """One line per row of the study, one column per length.

  Raises:
    ReportError: if a study lacks a figure that the first one has.
  """
  first = studies[0]
  contexts = first.contexts(task)
  rows = [row for row in first.rows if any(_value(first, row, task, metric, c) is not None for c in contexts)]

  def cell(row: Row, context: int) -> str:
    values = []
    for study in studies:
      value = _value(study, row, task, metric, context)
      if value is None:
        raise ReportError(f"{study.directory}: no {metric} of {row.label} in {task} at {context} tokens")
      values.append(value)
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"

  lines = ([row.label, *(cell(row, context) for context in contexts)] for row in rows)
  return markdown_table([metric, *(show_length(first, context) for context in contexts)], lines)


def _value(study: Records, row: Row, task: str, metric: str, context: int) -> float | None:
  figure = study.figure(row, task, context, (metric, None, None))
  return None if figure is None else figure.value


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.seeds", about=__doc__)
  parser.add_argument(
    "directories", type=cli.path_argument, nargs="+", metavar="DIR", help="workdirs of one study, one per seed"
  )
  return parser


def _print_tables(directories: Sequence[str]) -> None:
  studies = [read_study(Path(directory)) for directory in directories]
  seeds = [study.seed for study in studies]
  if len(set(seeds)) < max(len(seeds), 2):
    raise ReportError(f"seeds are {seeds}; a spread needs at least two, all different")
  for task in studies[0].tasks:
    for metric in studies[0].metrics(task):
      print(f"{task}, {metric}: mean ± standard deviation over seeds {', '.join(map(str, sorted(seeds)))}\n")
      print(spread_table(studies, task, metric) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), lambda given: _print_tables(given.directories), arguments)


if __name__ == "__main__":
  sys.exit(main())
