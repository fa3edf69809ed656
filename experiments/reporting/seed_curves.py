"""Curves over seeds: the held-out loss while training, less that of the control or of a run from scratch."""

from collections.abc import Callable, Mapping

from drope_jax.evaluate.figures import LOSS
from drope_jax.markdown import plain
from experiments.reporting.seed_tables import spread_cell
from experiments.reporting.spread import Spread, paired, show_difference, show_interval, show_spread, spread
from experiments.reporting.summary import GAP, HELDOUT, STEP, TOKENS, Place, Summary
from experiments.reporting.table import MISSING, Column, Table
from experiments.reporting.tables import with_unit
from experiments.reporting.training_tables import quarters, show_count


def recovery_table(summary: Summary) -> Table | None:
  """The held-out loss in context while the runs train, less the control's at the same step; None without curves."""
  curves = {run: recovery(summary, run) for run in summary.curves()}
  stored = f"{with_unit(LOSS)} less the control's"
  return _curve_table("recovery", curves, lambda step: Column(f"step {step:,}", f"{stored} at step {step:g}"))


def token_gap_table(summary: Summary) -> Table | None:
  """The held-out loss in context of whole arms less that of the base, wherever both were measured; None without any."""
  curves = {run: token_gap(summary, run) for run in summary.curves(TOKENS)}
  stored = f"{with_unit(LOSS)} less that of {summary.base}"
  return _curve_table(
    "heldout_by_tokens", curves, lambda at: Column(f"{show_count(at)} tokens", f"{stored} at {at:.0f} tokens")
  )


def _curve_table(
  name: str, curves: Mapping[str, Mapping[float, Spread]], heading: Callable[[float], Column]
) -> Table | None:
  points = sorted({at for curve in curves.values() for at in curve})
  lines = [
    [plain(run), *(spread_cell(show_difference(curve[at]), curve[at]) if at in curve else MISSING for at in points)]
    for run, curve in curves.items()
    if curve
  ]
  return Table(name, ["run", *map(heading, points)], lines) if lines else None


def recovery(summary: Summary, run: str) -> dict[float, Spread]:
  """The held-out loss in context of a run less its control's, by step; empty for a control, and without curves.

  The interval is over seeds; of one seed over documents, where the records have it.
  """
  row = next((row for row in summary.rows if row.run == run and row.plain), None)
  control = None if row is None else summary.control(row)
  return {} if control is None or control.run == run else _gap(summary, run, control.run, STEP)


def token_gap(summary: Summary, run: str) -> dict[float, Spread]:
  """The held-out loss in context of the arm that a run ends less that of the base after as many tokens (`recovery`)."""
  return {} if summary.base in (None, run) else _gap(summary, run, summary.base, TOKENS)


def _gap(summary: Summary, run: str, other: str, by: str) -> dict[float, Spread]:
  curves = summary.curves(by)
  curve, base = curves.get(run, {}), curves.get(other, {})
  shared = [at for at in curve if at in base]
  found = {at: paired(curve[at], base[at]) for at in shared} if len(shared) > 1 else {}
  for at, difference in found.items():
    gap = summary.figures.get(Place(run, "", HELDOUT, summary.train_context, GAP, by, at))
    if gap is not None:
      found[at] = difference._replace(low=gap[0].low, high=gap[0].high)
  return found


def tokens_table(summary: Summary) -> Table | None:
  """For a page: the loss of every arm at its end, and its gap to the base on the way there; None without arms."""
  gaps = {run: token_gap(summary, run) for run in summary.curves(TOKENS)}
  points = sorted({at for gap in gaps.values() for at in gap})
  if summary.base is None or not points:
    return None
  shown = quarters(points)
  base = base_label(summary)

  def gap_at(run: str, at: float) -> str:
    return show_interval(gaps[run][at]) if at in gaps[run] else MISSING

  lines = []
  for run, curve in summary.curves(TOKENS).items():
    end = spread(curve[max(curve)])
    lines.append([plain(_label(summary, run)), show_spread(end), *(gap_at(run, at) for at in shown)])
  header = ["held-out loss in context", "at the end", *(f"minus {base}, {show_count(at)} tokens" for at in shown)]
  return Table("heldout_by_tokens", list(map(plain, header)), lines)


def base_label(summary: Summary) -> str:
  """Of what whole arms are compared with, `Summary.base`."""
  return _label(summary, summary.base or "")


def _label(summary: Summary, run: str) -> str:
  """That of its row as it was trained."""
  return next((row.label for row in summary.rows if row.run == run and row.plain), run)
