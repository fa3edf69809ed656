"""The tables of the training: runs, their held-out loss against the control's, and the fit of the temperature."""

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drope_jax.additions import ADDITIONS
from drope_jax.drope import FROM_SCRATCH_COEFFICIENT, SMOLLM_COEFFICIENT, best_betas, ends_grid, temperature
from drope_jax.evaluate.coefficient import FIT_TASK
from drope_jax.evaluate.figures import BETA, LOSS, Figure
from drope_jax.markdown import code, plain
from drope_jax.serialization import to_dict
from drope_jax.transitions import Keep
from experiments.reporting import arms
from experiments.reporting.heldout import Curve, arm_gaps, gap_curve, heldout_curve
from experiments.reporting.lengths import show_length
from experiments.reporting.records import Part, Records, Run
from experiments.reporting.table import MISSING, Cell, Column, Heading, Table
from experiments.reporting.tables import with_unit


def show_duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def show_count(count: float) -> str:
  """1,234,567 as 1.23M."""
  for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if count >= size:
      return f"{count / size:.3g}{letter}"
  return f"{count:.0f}"


def runs_table(records: Records) -> Table:
  """One line per run that was trained."""
  with_mfu = any(record.get("mfu") is not None for run in records.runs.values() for record in run.metrics)
  header: list[Heading] = [
    "run",
    "starts from",
    "parameters",
    "steps",
    "tokens",
    "FLOPs (PaLM)",
    Column("last loss", f"last {with_unit(LOSS)}"),
    Column("time", "time (seconds)"),
    Column("tokens/s", "tokens per second, median"),
  ]
  mfu = [Column("MFU (PaLM)", "MFU (PaLM, %), median")] if with_mfu else []
  runs = [run for run in records.runs.values() if run.pretrained is None]
  lines = [[*_of_run(run), *([_median(run, "mfu", 100, ".1f", " %")] if with_mfu else [])] for run in runs]
  return Table("runs", [*header, *mfu], lines)


def _of_run(run: Run) -> list[str | Cell]:
  parameters = MISSING if run.parameters is None else Cell(f"{run.parameters:,}", run.parameters)
  cells = [code(run.name), _start(run), parameters]
  last = run.last
  if last is None:
    return [*cells, *[MISSING] * 6]
  planned = None if run.config is None else run.config.steps
  unfinished = "" if planned in (None, last["step"]) else f" of {planned:,} (unfinished)"
  return [
    *cells,
    Cell(f"{last['step']:,}{unfinished}", last["step"], {"planned": planned}),
    Cell(f"{last['tokens']:,}", last["tokens"]),
    MISSING if run.flops is None else Cell(f"{run.flops:.2e}", run.flops),
    Cell(f"{last['loss']:.3f}", last["loss"]),
    Cell(show_duration(last["seconds"]), last["seconds"]),
    _median(run, "tokens_per_second", 1, ",.0f"),
  ]


def _start(run: Run) -> str | Cell:
  if run.config is None:
    return MISSING
  init = run.config.init
  if init is None:
    return Cell("scratch", "scratch")
  name = Path(init.checkpoint).name
  start = code(name) + ("" if init.step is None else f" at step {init.step:,}")
  changes = [] if init.transition == Keep() else [arms.kind(run)]
  changes += ["QK-norm inserted"] if init.qk_norm is not None else []
  changes += [f"{field} added" for field in ADDITIONS if getattr(init, field)]
  beside = {"at step": init.step, "changed": ", ".join(changes) or None}
  return Cell(", ".join([start, *changes]), name, beside)


def _median(run: Run, field: str, times: float, form: str, unit: str = "") -> str | Cell:
  found = [record[field] for record in run.metrics if record.get(field) is not None]
  if not found:
    return MISSING
  median = times * statistics.median(found)
  return Cell(f"{median:{form}}{unit}", median)


def arms_described(records: Records) -> str:
  """The training tokens of each arm; in a fair comparison they are equal."""
  trained = [arm for arm in records.arms if records.runs[arm.runs[-1]].pretrained is None]
  totals = {plain(arm.label): records.arm_tokens(arm) for arm in trained}
  shown = [f"{label} {MISSING if total is None else show_count(total)}" for label, total in totals.items()]
  return f"Training tokens of each arm, from scratch to its end: {', '.join(shown)}."


def pretrained_described(records: Records) -> str:
  """A bullet for each checkpoint that was measured without training."""
  measured = {run for run, _, _ in records.measured}
  runs = [run for name, run in records.runs.items() if name in measured]
  found = {run.pretrained.checkpoint: run for run in runs if run.pretrained is not None}
  return "\n".join(
    f"- {code(path)}: {run.parameters:,} parameters, trained {arms.embedding_of(run)}, "
    f"at {records.train_context:,} tokens."
    for path, run in found.items()
  )


def heldout_table(records: Records) -> Table | None:
  """Held-out loss in context of every arm, and its difference from the control's at the last step that both have.

  None if there is no such loss.
  """
  lines: list[list[str | Cell]] = []
  for name, arm in arms.last_runs(records).items():
    run = records.runs[name]
    curve, gaps = heldout_curve(run), gap_curve(records, run)
    if not curve:
      continue
    tokens = float(curve.tokens_N[-1])
    first, last = (_at_point(curve, index, "{:.3f}") for index in (0, -1))
    gap = _at_point(gaps, -1, "{:+.3f}", interval=True) if gaps else Cell(MISSING)
    if gaps:
      at = float(gaps.tokens_N[-1])
      elsewhere = f" (at {show_count(at)} tokens)" if at != tokens else ""
      gap = gap._replace(text=gap.text + elsewhere, beside={**gap.beside, "at (tokens)": at})
    lines.append([plain(arm.label), arms.kind(run), Cell(show_count(tokens), tokens), first, last, gap])
  stored = f"held-out {with_unit(LOSS)}"
  header: list[Heading] = [
    "arm",
    "what it is",
    "tokens",
    Column("held-out loss at its start", f"{stored} at its start"),
    Column("at its end", f"{stored} at its end"),
    Column("less the control's", f"{stored} less the control's"),
  ]
  return Table("heldout", header, lines) if lines else None


def token_gap_table(records: Records) -> Table | None:
  """Held-out loss in context of whole arms less that of a run from scratch, at four points; None without any.

  The points are those nearest to quarters of the tokens at which an arm and the base were both measured.
  """
  gaps, base = arm_gaps(records), arms.base_of(records)
  points = sorted({at for gap in gaps.values() for at in gap.tokens_N.tolist()})
  if base is None or not points:
    return None
  shown = quarters(points)

  def cell(gap: Curve, at: float) -> str | Cell:
    places = np.flatnonzero(gap.tokens_N == at)
    return _at_point(gap, int(places[0]), "{:+.3f}", interval=True) if len(places) else MISSING

  lines = [[plain(arm.label), *(cell(gap, at) for at in shown)] for arm, gap in gaps.items()]
  label = next(arm.label for arm in records.arms if arm.runs == (base.name,))
  stored = f"held-out {with_unit(LOSS)} less that of {label}"
  columns = [Column(f"{show_count(at)} tokens", f"{stored} at {at:.0f} tokens") for at in shown]
  header: list[Heading] = [Column(plain(f"held-out loss less that of {label}"), "arm"), *columns]
  return Table("heldout_by_tokens", header, lines)


def quarters(points: Sequence[float]) -> list[float]:
  """Of ascending points those nearest to a quarter, a half and three quarters of the last, and the last."""
  return sorted({min(points, key=lambda point: abs(point - share * points[-1])) for share in (0.25, 0.5, 0.75, 1)})


def _at_point(curve: Curve, index: int, form: str, *, interval: bool = False) -> Cell:
  """A point of a curve; with `interval`, its interval over documents is shown where it is known."""
  value, ends = float(curve.losses_N[index]), curve.ends_N2[index].tolist()
  low, high = ends if np.isfinite(ends).all() else (None, None)
  shown = f" ({form} to {form})".format(low, high) if interval and low is not None else ""
  return Cell(form.format(value) + shown, value, {"low": low, "high": high})


class _Fit(NamedTuple):
  """The temperature fit of one run: c, and by length the loss at each beta and the best beta."""

  c: Figure | None
  losses: dict[int, dict[float, float]]
  best: dict[int, float]

  def on_edge(self, context: int) -> bool:
    betas = list(self.losses[context])
    return bool(betas) and ends_grid(self.best[context], betas)


def _fit(records: Records, run: str) -> _Fit:
  figures: dict[int, dict[Part, Figure]] = {}
  for (name, _, task), by_context in records.measured.items():
    if (name, task) == (run, FIT_TASK):
      for context, one in sorted(by_context.items()):
        figures.setdefault(context, {}).update(one.figures)
  c = next((found["c", None, None] for found in figures.values() if ("c", None, None) in found), None)
  losses, best = {}, {}
  for context, found in figures.items():
    betas = [(at, one.value) for (metric, by, at), one in found.items() if (metric, by) == (LOSS, BETA)]
    grid = {beta: loss for beta, loss in betas if isinstance(beta, int | float)}
    losses[context] = dict(sorted(grid.items()))
    if len(grid) > 2:
      best[context] = float(best_betas([list(losses[context].values())], list(losses[context]))[0])
    elif (BETA, None, None) in found:
      best[context] = found[BETA, None, None].value
  return _Fit(c, losses, best)


def temperature_section(records: Records) -> list[str | Table]:
  """For each run with a fitted temperature: c, and by length the best beta, the fitted beta, and their losses."""
  runs = dict.fromkeys(run for run, _, task in records.measured if task == FIT_TASK)
  return [part for run in runs for part in _fit_described(records, run)]


def _fit_described(records: Records, run: str) -> Iterator[str | Table]:
  fit = _fit(records, run)
  c = MISSING if fit.c is None else f"{fit.c.value:.3f}"
  known = fit.c is not None and fit.c.low is not None and fit.c.high is not None
  interval = f", 95 % interval {fit.c.low:.3f} to {fit.c.high:.3f} over documents" if known and fit.c else ""
  text = (
    f"For `{run}` the fit gives c = **{c}**{interval} (the paper: {FROM_SCRATCH_COEFFICIENT} for a model trained from "
    f"scratch, {SMOLLM_COEFFICIENT} for SmolLM)."
  )
  yield text + (
    " It is not positive: sharper attention does not help this model." if fit.c is not None and fit.c.value <= 0 else ""
  )
  lines, edges = [], []
  for context, best in fit.best.items():
    losses = fit.losses[context]
    extension, edge = records.extension(context), fit.on_edge(context)
    beta = None if fit.c is None else temperature(extension, fit.c.value)
    tried = (min(losses), max(losses)) if losses else None
    at_one = next((loss for beta, loss in losses.items() if math.isclose(beta, 1.0)), None)
    lowest = min(losses.values(), default=None)
    lines.append(
      [
        Cell(show_length(records, context), context),
        MISSING if tried is None else Cell("{:g} to {:g}".format(*tried), None, {"from": tried[0], "to": tried[1]}),
        Cell(f"{best:.2f}" + ("*" if edge else ""), best, {"on the edge of the grid": int(edge)}),
        MISSING if beta is None else Cell(f"{beta:.2f}", beta),
        *(MISSING if loss is None else Cell(f"{loss:.3f}", loss) for loss in (at_one, lowest)),
      ]
    )
    edges += [f"{extension:g}×"] if edge else []
  if lines:
    header: list[Heading] = [
      Column("length", "length (tokens)"),
      "β tried",
      "best β",
      "β = 1 + c·ln s",
      Column("loss at β = 1", f"{with_unit(LOSS)} at β = 1"),
      Column("lowest loss tried", f"{with_unit(LOSS)}, lowest tried"),
    ]
    yield Table(f"temperature_{run}", header, lines)
  if edges:
    yield (
      f"\\* **Warning:** at {', '.join(edges)} the best β is at the edge of the grid: the true optimum may lie beyond "
      "it, and would change c."
    )


def config_table(run: Run) -> Table:
  """Every setting of a run by its dotted name."""

  def flat(data: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, value in data.items():
      if isinstance(value, dict):
        yield (path + name, code(value["type"])) if "type" in value else (path + name, "")
        yield from flat({key: one for key, one in value.items() if key != "type"}, f"{path}{name}.")
      else:
        yield path + name, code(str(value))

  settings = {key: value for key, value in to_dict(run.config).items() if key != "type"}
  return Table("settings", ["setting", "value"], list(flat(settings, "")), numbers=False)
