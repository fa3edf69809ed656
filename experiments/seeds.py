"""The spread over seeds: `python -m experiments.seeds DIR DIR ...` prints mean ± standard deviation of every figure.

Each DIR is a workdir of the same study with another seed; the tables are Markdown, for RESULTS.md.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from drope_jax import cli
from drope_jax.errors import ReportError
from experiments.reporting.finding import MEASURES, PERPLEXITY, Measure
from experiments.reporting.records import Study, read_study
from experiments.reporting.tables import markdown_table


def spread_table(studies: Sequence[Study], measure: Measure) -> str:
  """A row of the study a line, a length a column; losses in nats per token, retrieval in per cent.

  Raises:
    ReportError: if a study lacks a figure that the first one has.
  """
  first = studies[0]
  contexts = first.contexts(measure.task)

  def cell(row, context: int) -> str:
    values = []
    for study in studies:
      figure = study.figure(row, measure.task, context, measure.metric)
      if figure is None:
        raise ReportError(f"{study.directory}: no {measure.name} of {row.label} at {context} tokens")
      values.append(figure.value)
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.3f} ± {spread:.3f}" if measure is PERPLEXITY else f"{100 * mean:.0f} ± {100 * spread:.0f}"

  header = ["", *(f"{first.extension(context):g}× ({context:,})" for context in contexts)]
  return markdown_table(header, ([row.label, *(cell(row, context) for context in contexts)] for row in first.rows))


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.seeds", about=__doc__)
  parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="workdirs of one study, a seed each")
  return parser


def _print_tables(directories: Sequence[Path]) -> None:
  studies = [read_study(directory.expanduser()) for directory in directories]
  seeds = [study.seed for study in studies]
  if len(set(seeds)) < max(len(seeds), 2):
    raise ReportError(f"seeds are {seeds}; a spread needs at least two, all different")
  for measure, unit in zip(MEASURES, ("loss in nats per token", "needles found, %"), strict=True):
    print(f"{unit}, mean ± standard deviation over seeds {', '.join(map(str, sorted(seeds)))}:\n")
    print(spread_table(studies, measure) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), lambda given: _print_tables(given.directories), arguments)


if __name__ == "__main__":
  sys.exit(main())
