"""Tables over seeds: every figure, and its differences from the control."""

from collections.abc import Sequence

from drope_jax.evaluate.figures import LOSS
from drope_jax.evaluate.tasks.copying import GAIN
from drope_jax.markdown import plain
from experiments.plan import Row
from experiments.reporting.lengths import at_length, show_length
from experiments.reporting.spread import Spread, paired, show_difference, show_interval, show_spread, spread
from experiments.reporting.summary import Summary
from experiments.reporting.table import MISSING, Cell, Column, Table
from experiments.reporting.tables import show_at, show_number, start_of, with_unit

TASKS_BESIDE = 2  # tasks side by side in one table of a page
MOST_LENGTHS = 4  # of a task there; of more, the shortest and the longest


def spread_table(summary: Summary, task: str, metric: str, *, less_control: bool = False) -> Table:
  """One line per row, one column per length; `less_control`: each row's differences from its control."""
  contexts = summary.contexts(task)

  def cell(row: Row, context: int) -> str | Cell:
    if less_control:
      difference = difference_at(summary, row, task, context, metric)
      return MISSING if difference is None else spread_cell(show_difference(difference), difference)
    values = summary.values(row, task, context, metric)
    return MISSING if values is None else spread_cell(show_spread(spread(values)), spread(values))

  rows = [row for row in summary.measured_rows(task, metric) if not less_control or summary.control(row) is not None]
  lines = [[plain(row.label), *(cell(row, context) for context in contexts)] for row in rows]
  name = f"{task}_{metric}" + ("_less_control" if less_control else "")
  stored = with_unit(metric) + (" less the control's" if less_control else "")
  columns = [Column(show_length(summary, context), at_length(stored, context)) for context in contexts]
  return Table(name, [Column(plain(metric), "row"), *columns], lines)


def spread_cell(text: str, found: Spread) -> Cell:
  """A mean with its interval, number of seeds and standard deviation beside it in the CSV."""
  return Cell(text, found.mean, {"low": found.low, "high": found.high, "n": found.n, "sd": found.sd})


def difference_at(summary: Summary, row: Row, task: str, context: int, metric: str) -> Spread | None:
  """A row less its control, paired within seeds; None if either was not measured, or there is no control."""
  control = summary.control(row)
  if control is None:
    return None
  values, base = (summary.values(one, task, context, metric) for one in (row, control))
  return None if values is None or base is None else paired(values, base)


def compared_with(summary: Summary) -> str:
  """What the rows are compared with, in words; empty if they are not compared."""
  controls = dict.fromkeys(control for row in summary.rows if (control := summary.control(row)) is not None)
  if len(controls) == 1:
    return f"“{plain(next(iter(controls)).label)}” of the same seed"
  if not controls:
    return ""
  swept = any(sum(control.run in sweep for control in controls) > 1 for sweep in summary.sweeps)
  if swept:
    return "the control of the same start, steps, peak rate and seed (itself compared with the first control)"
  return "the control of the same start, steps and seed"


def compact_tables(summary: Summary) -> list[Table]:
  """A summary for a reader in a hurry: the main metric of every task by length.

  A loss is given at its shortest and longest length, and less the control's at the shortest, to show what a drop costs;
  other metrics at every length, if there are few, and less the control's at the longest, to show what it gains.
  """
  tasks = summary.tasks
  groups = [tasks[start : start + TASKS_BESIDE] for start in range(0, len(tasks), TASKS_BESIDE)]
  return [_compact(summary, group) for group in groups]


def _compact(summary: Summary, tasks: Sequence[str]) -> Table:
  columns: list[tuple[str, str, int, bool]] = []  # task, metric, length, whether it is a difference
  for task in tasks:
    metric, contexts = summary.metrics(task)[0], summary.contexts(task)
    shown = contexts if metric != LOSS and len(contexts) <= MOST_LENGTHS else dict.fromkeys((contexts[0], contexts[-1]))
    columns += [(task, metric, context, False) for context in shown]
    columns += [(task, metric, contexts[0] if metric == LOSS else contexts[-1], True)] if compared_with(summary) else []

  def heading(task: str, metric: str, context: int, less: bool) -> str:
    name = metric if metric == LOSS else task
    return plain(f"{name} {summary.extension(context):g}×" + (" minus control" if less else ""))

  def cell(row: Row, task: str, metric: str, context: int, less: bool) -> str:
    if not less:
      return _value(summary, row, task, context, metric)
    found = difference_at(summary, row, task, context, metric)
    return MISSING if found is None else show_interval(found)

  rows = [row for row in summary.rows if any(row in summary.measured_rows(t, summary.metrics(t)[0]) for t in tasks)]
  lines = [[plain(row.label), *(cell(row, *column) for column in columns)] for row in rows]
  return Table("_".join(tasks), ["", *(heading(*column) for column in columns)], lines)


def _value(summary: Summary, row: Row, task: str, context: int, metric: str) -> str:
  """Mean ± standard deviation over seeds; with one seed, the value and the interval over its samples."""
  found = summary.at(row, task, context, metric)
  if found is None:
    return MISSING
  if len(found) > 1:
    return show_spread(spread([figure.value for figure in found]))
  (one,) = found
  ends = "" if one.low is None or one.high is None else f" ({show_number(one.low)} to {show_number(one.high)})"
  return f"{show_number(one.value)}{ends}"


def distance_tables(summary: Summary) -> list[Table]:
  """What copying gains by distance, at the longest length: it tells models apart where none ever copies exactly."""
  tables = []
  for task in summary.tasks:
    found = [place for place in summary.figures if (place.task, place.metric, place.by) == (task, GAIN, "distance")]
    context = max((place.context for place in found), default=0)
    parts = {place: summary.figures[place] for place in found if place.context == context}
    distances = sorted({place.at for place in parts}, key=start_of)
    lines = []
    for row in summary.rows:
      at_distance = {
        place.at: spread([one.value for one in figures])
        for place, figures in parts.items()
        if (place.run, place.method) == (row.run, row.method)
      }
      cells = [show_spread(at_distance[at]) if at in at_distance else MISSING for at in distances]
      lines += [[plain(row.label), *cells]] if at_distance else []
    title = f"{task} {summary.extension(context):g}×: gain (nats per token) by distance"
    header = [plain(title), *(f"{show_at(at)} tokens" for at in distances)]
    tables += [Table(f"{task}_{GAIN}_by_distance", header, lines)] if lines else []
  return tables


def coefficient_lines(summary: Summary) -> list[str]:
  """One line per run with a fitted c, with its spread over seeds."""
  lines = []
  for run, figures in summary.coefficients().items():
    found, values = spread([figure.value for figure in figures]), [f"{figure.value:.3f}" for figure in figures]
    if len(values) > 1 and len(set(values)) == 1:  # on a point of the grid, so that their spread says nothing
      lines.append(f"Fitted c of `{run}`: {values[0]} in all seeds.")
      continue
    interval = "" if found.low is None else f", 95 % interval {found.low:.3f} to {found.high:.3f}"
    lines.append(f"Fitted c of `{run}`: {show_spread(found)}{interval} (by seed: {', '.join(values)}).")
  return lines
