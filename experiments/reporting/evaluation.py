"""The report of figures that belong to no study: a table for each task and score, and its heat map by depth."""

from collections.abc import Mapping

from drope_jax.evaluate.results import BETA
from experiments.plan import Row
from experiments.reporting.records import Figure, Study
from experiments.reporting.tables import MISSING, markdown_table


def _cell(figure: Figure | None) -> str:
  if figure is None:
    return MISSING
  interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
  return f"{figure.value:.3f}{interval}, {figure.n:,}"


def _scores(study: Study, row: Row, task: str) -> list[str]:
  """The metrics that a row has as a whole: not by depth or position."""
  names = [name for context in study.contexts(task) for name in study.figures(row, task, context)]
  return [name for name in dict.fromkeys(names) if "@" not in name and name != BETA]


def _section(study: Study, task: str, picture: str | None) -> list[str]:
  contexts = study.contexts(task)
  rows = [row for row in study.rows if _scores(study, row, task)]
  parts = [f"## {task}"]
  for metric in dict.fromkeys(name for row in rows for name in _scores(study, row, task)):
    lines = [[row.label, *(_cell(study.figure(row, task, c, metric)) for c in contexts)] for row in rows]
    header = [metric, *(f"{study.extension(context):g}× ({context:,})" for context in contexts)]
    parts.append(markdown_table(header, lines))
  if picture is not None:
    parts.append(f"![{task} by depth and length]({picture})")
  return parts


def compose(study: Study, pictures: Mapping[str, str]) -> str:
  """The whole report.md; `pictures`: names by task."""
  parts = [
    f"# {study.title}",
    f"A line is a method, a column a length (as a multiple of the training context of {study.train_context:,} tokens); "
    "a figure has its 95 % bootstrap interval over samples, and the number of them. In the pictures: per cent, by the "
    "depth of the needle, 0 % being the start of the text.",
  ]
  for task in study.tasks:
    parts += _section(study, task, pictures.get(task))
  parts += ["## How this was made", f"```\n{study.command}\n```", "`results.jsonl` has every figure, and its command."]
  return "\n\n".join(parts) + "\n"
