"""The report of figures that belong to no study: a table for each task and score, by length, and by what it divides."""

import math
import re
from collections.abc import Mapping

from drope_jax.evaluate.measure import FIT_TASK
from drope_jax.evaluate.results import BETA, BY_DEPTH, LOSS
from experiments.plan import Row
from experiments.reporting.records import Figure, Study
from experiments.reporting.tables import MISSING, markdown_table, temperature_section

_PART = re.compile(r"(?P<metric>[^@]+)@(?:(?P<unit>[a-z]+)=)?(?P<part>.+)")
_UNITS = {None: "position", "distance": "distance of the copy", "tokens": "tokens of the prompt", "words": "words"}
_OF_TEXT = ("perplexity", "sliding_perplexity")  # tasks whose loss has a perplexity


def _cell(figure: Figure | None) -> str:
  if figure is None:
    return MISSING
  interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
  return f"{figure.value:.3f}{interval}, {figure.n:,}"


def _perplexity(figure: Figure | None) -> Figure | None:
  if figure is None:
    return None
  low, high = (None if end is None else math.exp(end) for end in (figure.low, figure.high))
  return Figure(math.exp(figure.value), figure.n, low, high)


def _metrics(study: Study, row: Row, task: str) -> list[str]:
  return list(dict.fromkeys(name for context in study.contexts(task) for name in study.figures(row, task, context)))


def _scores(study: Study, row: Row, task: str) -> list[str]:
  """The metrics that a row has as a whole: not by depth or position."""
  return [name for name in _metrics(study, row, task) if "@" not in name and name != BETA]


def _length(study: Study, context: int) -> str:
  return f"{study.extension(context):g}× ({context:,})"


def _by_part(study: Study, task: str, rows: list[Row]) -> list[str]:
  """At the longest length, a table for each score that is divided: a part a line, a method a column."""
  context = study.contexts(task)[-1]
  found: dict[tuple[str, str | None], dict[str, None]] = {}  # (score, unit) -> its metrics
  for row in rows:
    for name in study.figures(row, task, context):
      match = _PART.fullmatch(name)
      if match and BY_DEPTH not in name:  # by depth there is a picture
        found.setdefault((match["metric"], match["unit"]), {})[name] = None
  tables = []
  for (metric, unit), names in found.items():
    parts = sorted(((name, name.rpartition("=" if unit else "@")[2]) for name in names), key=lambda one: _begin(one[1]))
    lines = [[part, *(_cell(study.figure(row, task, context, name)) for row in rows)] for name, part in parts]
    header = [f"{metric} by {_UNITS.get(unit, unit)}, at {_length(study, context)}", *(row.label for row in rows)]
    tables.append(markdown_table(header, lines))
  return tables


def _begin(part: str) -> float:
  """The number that a part's name begins with, to sort by."""
  match = re.match(r"[\d.]+", part)
  return float(match[0]) if match else math.inf


def _section(study: Study, task: str, picture: str | None) -> list[str]:
  contexts = study.contexts(task)
  rows = [row for row in study.rows if _scores(study, row, task)]
  parts = [f"## {task}"]
  for metric in dict.fromkeys(name for row in rows for name in _scores(study, row, task)):
    figures = {row: [study.figure(row, task, context, metric) for context in contexts] for row in rows}
    lengths = [_length(study, context) for context in contexts]
    if metric == LOSS and task in _OF_TEXT:
      shown = [[row.label, *(_cell(_perplexity(figure)) for figure in found)] for row, found in figures.items()]
      parts.append(markdown_table(["perplexity", *lengths], shown))
    shown = [[row.label, *map(_cell, found)] for row, found in figures.items()]
    parts.append(markdown_table([metric, *lengths], shown))
  parts += _by_part(study, task, rows)
  if picture is not None:
    parts.append(f"![{task} by depth and length]({picture})")
  return parts


def _temperature(study: Study) -> list[str]:
  """The beta of every method that had one, and how it was fitted; nothing where every beta is 1."""
  contexts = study.contexts(*study.tasks)
  betas = {row: [_beta(study, row, context) for context in contexts] for row in study.rows}
  lines = [
    [row.label, *(MISSING if beta is None else f"{beta:.3f}" for beta in found)]
    for row, found in betas.items()
    if any(beta not in (None, 1.0) for beta in found)
  ]
  if not lines:
    return []
  fits = [temperature_section(study)] if any(task == FIT_TASK for _, _, task in study.results) else []
  about = "β = 1 + c·ln s, the factor on the attention logits; of methods that are not here it is 1."
  return ["## The temperature", about, markdown_table(["β", *(_length(study, c) for c in contexts)], lines), *fits]


def _beta(study: Study, row: Row, context: int) -> float | None:
  figures = (study.figure(row, task, context, BETA) for task in study.tasks)
  return next((figure.value for figure in figures if figure is not None), None)


def compose(study: Study, pictures: Mapping[str, str]) -> str:
  """The whole report.md; `pictures`: names by task."""
  parts = [
    f"# {study.title}",
    f"A line is a method, a column a length (as a multiple of the training context of {study.train_context:,} tokens); "
    "a figure has its 95 % bootstrap interval over samples, and the number of them. What a score is divided by has a "
    "table of the longest length: a line is a part, a column a method. In the pictures: per cent, by the depth of the "
    "needle, 0 % being the start of the text.",
  ]
  for task in study.tasks:
    parts += _section(study, task, pictures.get(task))
  parts += _temperature(study)
  parts += ["## How this was made", f"```\n{study.command}\n```", "`results.jsonl` has every figure, and its command."]
  return "\n\n".join(parts) + "\n"
