"""The tables of measurements: for each task and metric, as a whole and by its parts."""

import math
from collections.abc import Iterable

from drope_jax.evaluate.figures import BETA, BITS_PER_BYTE, LOSS, At, Figure
from drope_jax.markdown import plain
from experiments.plan import Row
from experiments.reporting.lengths import at_length, show_length
from experiments.reporting.level import standings
from experiments.reporting.records import Records
from experiments.reporting.table import MISSING, Cell, Column, Heading, Table

LEVEL = "level with the best"
_UNITS = {LOSS: "nats per token", "position": "tokens", "distance": "tokens"}  # of metrics, and of their parts


def with_unit(name: str) -> str:
  """`loss (nats per token)`; names without a known unit are unchanged."""
  return f"{name} ({_UNITS[name]})" if name in _UNITS else name


def show_number(value: float) -> str:
  """To three decimals, or fewer for large numbers."""
  size = abs(value)
  return f"{value:.3f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def show_perplexity(loss: float) -> str:
  """exp(loss); written as a power of e where it is very large."""
  return f"e^{loss:.1f}" if loss > 13 else show_number(math.exp(loss))


def show_at(at: At) -> str:
  """`0.25`, or `128–192` for an interval, or `128–` for one without an end."""
  if isinstance(at, tuple):
    start, stop = at
    return f"{start:,.10g}–" + ("" if stop is None else f"{stop:,.10g}")
  return MISSING if at is None else f"{at:,.10g}"


def is_text(records: Records, task: str) -> bool:
  """Whether a task measures the loss on text, which is shown as a perplexity too."""
  return {LOSS, BITS_PER_BYTE} <= set(records.metrics(task))


def results_table(records: Records, task: str, metric: str, as_perplexity: bool = False) -> Table:
  """One line per row, one column per length; the last column lists the lengths where a row is level with the best.

  In the CSV that is one column of 1 and 0 per length.
  """
  contexts = records.contexts(task)
  part = (metric, None, None)
  rows = [row for row in records.rows if any(records.figure(row, task, c, part) for c in contexts)]
  found = {context: {row: records.figure(row, task, context, part) for row in rows} for context in contexts}
  standing = standings(records, task, metric)

  def stands_out(figure: Figure, context: int) -> bool:
    """Whether it is the best value of a column, and not all values are the same."""
    values = {other.value for other in found[context].values() if other is not None}
    best = None if context not in standing else found[context][standing[context].best]
    return best is not None and figure.value == best.value and len(values) > 1

  def cell(row: Row, context: int) -> str | Cell:
    figure = found[context][row]
    if figure is None:
      return MISSING
    text = _with_interval(figure, as_perplexity)
    text += f", n = {figure.n:,}" if _shared_n(found[context].values()) is None else ""
    plain_cell = _cell(f"**{text}**" if stands_out(figure, context) else text, figure, as_perplexity)
    level = {LEVEL: int(row in standing[context].level)} if context in standing else {}
    return plain_cell._replace(beside={**plain_cell.beside, **level})

  def level(row: Row) -> Cell:
    at = [f"{records.extension(c):g}×" for c, one in standing.items() if row in one.level]
    return Cell(", ".join(at) or MISSING)

  def heading(context: int) -> Column:
    n = _shared_n(found[context].values())
    shown = show_length(records, context) + ("" if n is None else f", n = {n:,}")
    return Column(shown, at_length(with_unit(name), context))

  name = "perplexity" if as_perplexity else metric
  header: list[Heading] = [Column(plain(name), "row"), *map(heading, contexts), *([LEVEL] if standing else [])]
  lines = [[plain(row.label), *(cell(row, c) for c in contexts), *([level(row)] if standing else [])] for row in rows]
  return Table(task if name == task else f"{task}_{name}", header, lines)


def divisions(records: Records, task: str) -> list[tuple[str, str]]:
  """The pairs of metric and `by` for which a task has parts, in the order of the records."""
  found: dict[tuple[str, str], None] = {}
  for (_, _, name), by_context in records.measured.items():
    for one in by_context.values() if name == task else ():
      found |= {(metric, by): None for metric, by, _ in one.figures if by is not None}
  return list(found)


def parts(records: Records, row: Row, task: str, context: int, metric: str, by: str) -> dict[At, Figure]:
  """The parts of a metric in ascending order."""
  found = records.at(row, task, context)
  figures = {} if found is None else found.figures
  mine = {at: figure for (name, division, at), figure in figures.items() if (name, division) == (metric, by)}
  return dict(sorted(mine.items(), key=lambda one: start_of(one[0])))


def start_of(at: At) -> float:
  """The number that a part is at, or the start of its interval."""
  return -math.inf if at is None else at[0] if isinstance(at, tuple) else at


def longest_with(records: Records, task: str, metric: str, by: str) -> int | None:
  """The longest length at which a metric has such parts; None if there is none."""
  found = [c for c in records.contexts(task) if any(parts(records, row, task, c, metric, by) for row in records.rows)]
  return max(found, default=None)


def parts_table(records: Records, task: str, metric: str, by: str) -> Table | None:
  """At the longest length: one line per part, one column per row; None if no length has such parts."""
  context = longest_with(records, task, metric, by)
  if context is None:
    return None
  by_row = {row: parts(records, row, task, context, metric, by) for row in records.rows}
  by_row = {row: found for row, found in by_row.items() if found}
  as_perplexity = metric == LOSS and is_text(records, task)
  every = sorted({at for found in by_row.values() for at in found}, key=start_of)
  name = "perplexity" if as_perplexity else metric
  first = Column(plain(f"{name} by {by}, at {show_length(records, context)}"), with_unit(by))
  each = [Column(plain(row.label), at_length(f"{row.label}, {with_unit(name)}", context)) for row in by_row]
  header: list[Heading] = [first, *each]
  lines = [[_at(at), *(_value(found.get(at), as_perplexity) for found in by_row.values())] for at in every]
  return Table(f"{task}_{name}_by_{by}", header, lines)


def betas_table(records: Records) -> Table | None:
  """The factor on the attention logits of every row with one other than 1; None if there is no such row."""
  contexts = records.contexts(*records.tasks)
  found = {row: [_beta(records, row, context) for context in contexts] for row in records.rows}
  lines = [
    [plain(row.label), *(MISSING if beta is None else Cell(f"{beta:.3f}", beta) for beta in betas)]
    for row, betas in found.items()
    if any(beta not in (None, 1.0) for beta in betas)
  ]
  header: list[Heading] = [Column("β", "row"), *(Column(show_length(records, c), at_length("β", c)) for c in contexts)]
  return Table("beta", header, lines) if lines else None


def _beta(records: Records, row: Row, context: int) -> float | None:
  figures = (records.figure(row, task, context, (BETA, None, None)) for task in records.tasks)
  return next((figure.value for figure in figures if figure is not None), None)


def _at(at: At) -> Cell:
  ends = {"from": at[0], "to": at[1]} if isinstance(at, tuple) else {}
  return Cell(show_at(at), None if isinstance(at, tuple) else at, ends)


def _with_interval(figure: Figure, as_perplexity: bool) -> str:
  show = show_perplexity if as_perplexity else show_number
  if figure.low is None or figure.high is None:
    return show(figure.value)
  return f"{show(figure.value)} ({show(figure.low)} to {show(figure.high)})"


def _value(figure: Figure | None, as_perplexity: bool) -> str | Cell:
  if figure is None:
    return MISSING
  text = show_perplexity(figure.value) if as_perplexity else show_number(figure.value)
  return _cell(text, figure, as_perplexity)


def _cell(text: str, figure: Figure, as_perplexity: bool) -> Cell:
  value, low, high = (
    _exp(end) if as_perplexity and end is not None else end for end in (figure.value, figure.low, figure.high)
  )
  return Cell(text, value, {"low": low, "high": high, "n": figure.n})


def _exp(loss: float) -> float:
  return math.exp(loss) if loss < 700 else math.inf  # exp of more overflows


def _shared_n(figures: Iterable[Figure | None]) -> int | None:
  """The number of samples, if all figures have the same; else None."""
  counts = {figure.n for figure in figures if figure is not None}
  return counts.pop() if len(counts) == 1 else None
