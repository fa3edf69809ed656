"""The tables and the explaining text of a report, as Markdown."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from drope_jax.drope import FROM_SCRATCH_COEFFICIENT, SMOLLM_COEFFICIENT, temperature
from drope_jax.evaluate.measure import FIT_TASK
from drope_jax.positions import ALiBi, LayerPattern
from drope_jax.transitions import Keep
from experiments.plan import Row
from experiments.reporting.finding import (
  MEASURES,
  PERPLEXITY,
  Measure,
  best_rows,
  measured,
  show_perplexity,
  standard_error,
)
from experiments.reporting.records import TEMPERATURE, Figure, Run, Study

MISSING = "–"

# What each method does to a model, after "with", for a reader who has not met it.
METHODS = {
  "pi": "all rotations slowed down by the extension factor (positional interpolation)",
  "ntk": "slow rotations slowed down and fast ones nearly kept, by a smooth rule (NTK-aware scaling)",
  "yarn": "slow rotations slowed down, fast ones kept, and attention sharpened a little (YaRN)",
  "dynamic_ntk": "NTK-aware scaling for the length of each text",
  "dynamic_yarn": "YaRN for the length of each text",
  "crop": "only the last tokens shown to it, as many as the training context holds",
  TEMPERATURE: "the attention logits multiplied by the fitted temperature β",
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table whose first column is text and whose others are numbers."""

  def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

  return "\n".join([line(header), "|" + "|".join([":--", *["--:"] * (len(header) - 1)]) + "|", *map(line, rows)])


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


def _column(study: Study, context: int, figures: Iterable[Figure]) -> str:
  """`2× (256), n = 100`: length and, where all rows agree, the number of samples."""
  counts = {figure.n for figure in figures}
  n = f", n = {counts.pop():,}" if len(counts) == 1 else ""
  return f"{study.extension(context):g}× ({context:,}){n}"


def results_table(study: Study, measure: Measure) -> str:
  """A row a line, a length a column; bold: the best of each column and those level with it."""
  contexts = study.contexts(measure.task)
  if not contexts:
    return f"{MISSING} (`results.jsonl` holds no figure of the task “{measure.task}”.)"
  columns = [measured(study, study.rows, measure, context) for context in contexts]
  best = [set(best_rows(figures, measure)) for figures in columns]

  def cell(row: Row, column: int) -> str:
    figure = columns[column].get(row)
    if figure is None:
      return MISSING
    if measure is PERPLEXITY:
      text = show_perplexity(figure.value)
    else:
      text = f"{100 * figure.value:.0f} ± {100 * standard_error(figure):.0f}"
    if len({other.n for other in columns[column].values()}) > 1:
      text += f" (n = {figure.n:,})"
    # Where all are level there is no best to point at.
    stands_out = row in best[column] and (len(best[column]) < len(columns[column]) or len(columns[column]) == 1)
    return f"**{text}**" if stands_out else text

  header = ["", *(_column(study, context, columns[i].values()) for i, context in enumerate(contexts))]
  return markdown_table(header, ([row.label, *(cell(row, i) for i in range(len(contexts)))] for row in study.rows))


_BLOCK = re.compile(r"loss@(\d+)-(\d+)$")


def position_blocks(study: Study, row: Row, context: int) -> dict[tuple[int, int], float]:
  """Mean loss of each block [start, end) of positions, ascending."""
  matches = {_BLOCK.match(metric): figure for metric, figure in study.figures(row, "perplexity", context).items()}
  return dict(sorted(((int(m[1]), int(m[2])), figure.value) for m, figure in matches.items() if m))


def longest(study: Study, task: str) -> int | None:
  contexts = study.contexts(task)
  return contexts[-1] if contexts else None


def blocks_table(study: Study) -> str:
  """Perplexity by position at the longest length: a block a line, a row of the study a column."""
  context = longest(study, "perplexity")
  by_row = {} if context is None else {row: position_blocks(study, row, context) for row in study.rows}
  blocks = sorted({block for found in by_row.values() for block in found})
  if not blocks:
    return MISSING
  lines = []
  for start, end in blocks:
    values = [found.get((start, end)) for found in by_row.values()]
    lines.append([f"{start:,}–{end - 1:,}", *(MISSING if v is None else show_perplexity(v) for v in values)])
  return markdown_table(["positions", *(row.label for row in by_row)], lines)


_GRID = re.compile(r"loss@beta=([\d.]+)$")


class _Fit:
  """The temperature fit of one run."""

  def __init__(self, study: Study, run: str):
    merged: dict[int, dict[str, Figure]] = {}
    for (name, _, task), by_context in study.results.items():
      if (name, task) == (run, FIT_TASK):
        for context, figures in by_context.items():
          merged.setdefault(context, {}).update(figures)
    self.c = next((figures["c"].value for figures in merged.values() if "c" in figures), None)
    self.grids: dict[int, dict[float, float]] = {}  # context -> beta -> loss
    self.best: dict[int, float] = {}
    for context, figures in sorted(merged.items()):
      matches = {_GRID.match(metric): figure for metric, figure in figures.items()}
      self.grids[context] = dict(sorted((float(m[1]), figure.value) for m, figure in matches.items() if m))
      grid = self.grids[context]
      if grid:
        self.best[context] = min(grid, key=grid.__getitem__)
      elif "beta" in figures:
        self.best[context] = figures["beta"].value

  def on_edge(self, context: int) -> bool:
    grid = list(self.grids[context])
    return bool(grid) and any(math.isclose(self.best[context], end) for end in (grid[0], grid[-1]))


def temperature_section(study: Study) -> str:
  """For each run whose temperature was fitted: c, and by length the best beta, beta of the fit, and what it gains."""
  runs = dict.fromkeys(run for run, _, task in study.results if task == FIT_TASK)
  if not runs:
    return f"{MISSING} (no temperature was fitted)"
  parts = []
  for run in runs:
    fit = _Fit(study, run)
    c = MISSING if fit.c is None else f"{fit.c:.3f}"
    parts.append(
      f"For `{run}` the fit gives c = **{c}** (the paper: {FROM_SCRATCH_COEFFICIENT} for a model trained from "
      f"scratch, {SMOLLM_COEFFICIENT} for SmolLM)."
      + (" It is not positive: sharper attention does not help this model." if fit.c is not None and fit.c <= 0 else "")
    )
    lines, warnings = [], []
    for context, best in fit.best.items():
      grid = fit.grids[context]
      losses = [next((grid[b] for b in grid if math.isclose(b, beta)), None) for beta in (1.0, best)]
      extension = study.extension(context)
      fitted = MISSING if fit.c is None else f"{temperature(extension, fit.c):.2f}"
      tried = f"{min(grid):g} to {max(grid):g}" if grid else MISSING
      shown = [MISSING if loss is None else f"{loss:.3f}" for loss in losses]
      edge = fit.on_edge(context)
      lines.append([f"{extension:g}× ({context:,})", tried, f"{best:.2f}" + ("*" if edge else ""), fitted, *shown])
      if edge:
        warnings.append(f"{extension:g}×")
    if lines:
      header = ["length", "β tried", "best β", "β = 1 + c·ln s", "loss at β = 1", "loss at best β"]
      parts.append(markdown_table(header, lines))
    if warnings:
      parts.append(
        f"\\* **Warning:** at {', '.join(warnings)} the best β is at the edge of the grid: the true optimum may lie "
        "beyond it, and c would change with it."
      )
  return "\n\n".join(parts)


def _speed(run: Run) -> str:
  speeds = [record["tokens_per_second"] for record in run.metrics if record.get("tokens_per_second") is not None]
  return f"{statistics.median(speeds):,.0f}" if speeds else MISSING


def _start(run: Run) -> str:
  if run.config is None:
    return MISSING
  if run.config.init is None:
    return "scratch"
  init = run.config.init
  parts = [f"`{Path(init.checkpoint).name}`" + ("" if init.step is None else f" at step {init.step:,}")]
  parts += [] if init.transition == Keep() else [str(init.transition)]
  parts += ["QK-norm inserted"] if init.qk_norm is not None else []
  return ", ".join(parts)


def pretrained_described(study: Study) -> str:
  """A bullet for each checkpoint that was measured without training."""
  found = {run.pretrained.checkpoint: run for run in study.runs.values() if run.pretrained is not None}
  return "\n".join(
    f"- `{path}`: {run.parameters:,} parameters, trained{_embedding(run)}, at {study.train_context:,} tokens."
    for path, run in found.items()
  )


def runs_table(study: Study) -> str:
  """What was trained: a run a line."""
  with_mfu = any(record.get("mfu") is not None for run in study.runs.values() for record in run.metrics)
  header = ["run", "starts from", "parameters", "steps", "tokens", "last loss", "time", "tokens/s"]
  lines = []
  for run in study.runs.values():
    if run.pretrained is not None:
      continue
    steps = MISSING
    if run.last is not None:
      steps = f"{run.last['step']:,}"
      if run.config is not None and run.last["step"] != run.config.steps:
        steps += f" of {run.config.steps:,} (unfinished)"
    parameters = MISSING if run.parameters is None else f"{run.parameters:,}"
    cells = [f"`{run.name}`", _start(run), parameters, steps]
    if run.last is None:
      cells += [MISSING] * 4
    else:
      last = run.last
      cells += [f"{last['tokens']:,}", f"{last['loss']:.3f}", show_duration(last["seconds"]), _speed(run)]
    if with_mfu:
      shares = [record["mfu"] for record in run.metrics if record.get("mfu") is not None]
      cells.append(f"{100 * statistics.median(shares):.1f} %" if shares else MISSING)
    lines.append(cells)
  return markdown_table(header + (["MFU (PaLM)"] if with_mfu else []), lines)


def unnamed_results(study: Study) -> list[str]:
  """Figures of results.jsonl that no row of the study shows, so that nothing is left out in silence."""
  named = {(row.run, row.method) for row in study.rows}
  tasks = {measure.task for measure in MEASURES}
  return sorted(
    f"`{run}` / `{method}` / `{task}`"
    for run, method, task in study.results
    if task != FIT_TASK and ((run, method) not in named or task not in tasks)
  )


def _embedding(run: Run) -> str:
  """Which positional embedding a run trains with, in words."""
  if run.model is None:
    return ""
  match run.model.positions:
    case None:
      return " without any positional embedding"
    case ALiBi():
      return " with ALiBi, a penalty on attention that grows with the distance"
    case LayerPattern():
      return " with a repeating pattern of layers, with and without positional embedding"
    case _:
      return " with RoPE"


def _describe(study: Study, row: Row) -> str:
  """What a row is."""
  arm = next((arm for arm in study.arms if arm.runs[-1] == row.run), None)
  role = None if arm is None else arm.role
  pretrained = study.runs[row.run].pretrained
  if pretrained is not None:
    parts = [f"the pretrained model (`{row.run}`)"]
    parts += [] if pretrained.transition == Keep() else [f"{pretrained.transition} and nothing recalibrated"]
    parts += [] if row.plain else [f"with {METHODS.get(row.method, f'method `{row.method}`')}"]
    return ", ".join(parts) + (", as it is" if len(parts) == 1 else "")
  if not row.plain:
    names = {"control": "the control", "drope": "the dropped model", "baseline": "the baseline", None: "run"}
    return f"{names[role]} (`{row.run}`), with {METHODS.get(row.method, f'method `{row.method}`')}"
  if role == "control":
    return f"the control (`{row.run}`): the positional embedding kept to the end"
  if role == "drope":
    return f"the dropped model (`{row.run}`): trained with RoPE, then dropped and recalibrated"
  trained = f"trained{_embedding(study.runs[row.run])}"
  return f"a baseline (`{row.run}`), {trained}" if role else f"an earlier run (`{row.run}`), {trained}"


def rows_described(study: Study) -> str:
  """A bullet for each row of the tables: what it is."""
  return "\n".join(f"- **{row.label}**: {_describe(study, row)}." for row in study.rows)


def arms_described(study: Study) -> str:
  """The training tokens of each arm, which a fair comparison wants equal."""
  trained = [arm for arm in study.arms if study.runs[arm.runs[-1]].pretrained is None]
  totals = {arm.label: study.arm_tokens(arm) for arm in trained}
  shown = [f"{label} {MISSING if total is None else show_count(total)}" for label, total in totals.items()]
  return f"Training tokens of each arm, from scratch to its end: {', '.join(shown)}."
