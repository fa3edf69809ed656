"""Plots of measurements: every task by length and by its parts, and the rotations of each row."""

import math
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from drope_jax.config import ModelConfig
from drope_jax.errors import ConfigError
from drope_jax.evaluate.figures import LOSS, At, Figure, bootstrap
from drope_jax.evaluate.methods import Method, inference
from drope_jax.positions import layer_cycle
from experiments.plan import Row
from experiments.reporting.arms import main_control
from experiments.reporting.axes import (
  Point,
  are_shares,
  error_bars,
  label_ends,
  length_axis,
  log_axis,
  log_ticks,
  mark_context,
  plain_ticks,
  value_axis,
)
from experiments.reporting.dots import Dots, at_one_length, draw_dots, draw_panel, length_in_words
from experiments.reporting.looks import INK, looks
from experiments.reporting.records import Records
from experiments.reporting.tables import is_text, longest_with, parts, show_at, start_of

COLUMNS = 3  # panels beside each other
TITLE_CHARACTERS = 10  # per inch of a panel, in bold of 10 points


def plot_summary(records: Records) -> Canvas | None:
  """The main metric of every task by length: one panel per task, one line per row.

  A task with one length has a dot per row instead.
  """
  tasks, styles = records.tasks, looks(records)
  if not tasks:
    return None
  if all(at_one_length(records, task) for task in tasks):
    return draw_dots([_dots(records, task) for task in tasks], records.rows, styles)
  columns = min(COLUMNS, len(tasks))
  lines = -(-len(tasks) // columns)
  canvas, panels = plt.subplots(lines, columns, figsize=(max(5.0 * columns, 6), 4.2 * lines), squeeze=False)
  drawn: dict[Row, Line2D] = {}
  for axes, task in zip(panels.flat, tasks, strict=False):
    if at_one_length(records, task):
      drawn |= draw_panel(axes, _dots(records, task), records.rows, styles)
    else:
      drawn |= _draw_by_length(axes, records, task)
  for axes in panels.flat[len(tasks) :]:
    axes.axis("off")
  rows = [row for row in records.rows if row in drawn]
  canvas.tight_layout()
  canvas.legend(
    handles=[drawn[row] for row in rows], labels=[row.label for row in rows], loc="upper center",
    bbox_to_anchor=(0.5, 0.0), ncols=min(4, len(rows)), columnspacing=2.2, handlelength=2.8,
  )  # fmt: skip
  return canvas


def _main(records: Records, row: Row, task: str, contexts: list[int]) -> dict[int, Figure]:
  """A row's main figure of a task by length, where it was measured."""
  metric = records.metrics(task)[0]
  return {c: figure for c in contexts if (figure := records.figure(row, task, c, (metric, None, None)))}


def _as_perplexity(records: Records, task: str) -> bool:
  return records.metrics(task)[0] == LOSS and is_text(records, task)


def _title(records: Records, task: str) -> str:
  """The main metric of a task, and which values of it are better."""
  metric, contexts = records.metrics(task)[0], records.contexts(task)
  better = [one.better for row in records.rows for one in _main(records, row, task, contexts).values() if one.better]
  name = "perplexity" if _as_perplexity(records, task) else metric if task == metric else f"{task}: {metric}"
  return name + (f" ({better[0]} is better)" if better else "")


def _dots(records: Records, task: str) -> Dots:
  points, as_perplexity = {}, _as_perplexity(records, task)
  for row in records.rows:
    for figure in _main(records, row, task, records.contexts(task)).values():
      values, ends = _values([figure], as_perplexity)
      points[row] = (float(values[0]), float(ends[0, 0]), float(ends[0, 1]))
  return Dots(_title(records, task), points, length_in_words(records, task), as_perplexity)


def _draw_by_length(axes: Axes, records: Records, task: str) -> dict[Row, Line2D]:
  """Draws a task's main metric; returns the line of each row."""
  contexts, styles = records.contexts(task), looks(records)
  as_perplexity = _as_perplexity(records, task)
  drawn: dict[Row, Line2D] = {}
  every: list[Point] = []
  for index, row in enumerate(records.rows):
    found = _main(records, row, task, contexts)
    if not found:
      continue
    values, ends = _values(list(found.values()), as_perplexity)
    (drawn[row],) = axes.plot(list(found), values, **styles[row].line)
    beside = 2 ** (0.03 * (index - (len(records.rows) - 1) / 2))  # so that the bars of equal values do not overlap
    error_bars(axes, np.array(list(found)) * beside, values, ends, styles[row].color)
    every += zip(values, *ends.T, strict=True)
  axes.set_title(_title(records, task))
  value_axis(axes, every, logarithmic=as_perplexity)
  length_axis(axes, records, contexts)
  axes.set_xlabel("length, as a multiple of the training context")
  return drawn


def plot_parts(records: Records, task: str, metric: str, by: str) -> Canvas | None:
  """A metric by its parts: maps over lengths for a share whose parts are the same at all lengths, else lines."""
  contexts = [c for c in records.contexts(task) if _parts_at(records, task, c, metric, by)]
  shared = {frozenset(_parts_at(records, task, c, metric, by)) for c in contexts}
  values = [
    figure.value
    for row in records.rows
    for c in contexts
    for figure in parts(records, row, task, c, metric, by).values()
  ]
  if not values:
    return None
  if len(contexts) > 1 and len(shared) == 1 and are_shares(values):
    return _draw_maps(records, task, metric, by, contexts)
  return _draw_lines(records, task, metric, by)


def _parts_at(records: Records, task: str, context: int, metric: str, by: str) -> set[At]:
  return {at for row in records.rows for at in parts(records, row, task, context, metric, by)}


def _draw_lines(records: Records, task: str, metric: str, by: str) -> Canvas:
  """Lines at the longest length; a part that is an interval is drawn at its middle, or without an end at its start."""
  context = longest_with(records, task, metric, by)
  assert context is not None
  as_perplexity = metric == LOSS and is_text(records, task)
  styles, ends, every, places = looks(records), [], [], []
  canvas, axes = plt.subplots(figsize=(8.2, 4.4))
  for row in records.rows:
    found = parts(records, row, task, context, metric, by)
    if not found:
      continue
    x = [_middle(at) for at in found]
    values, bars = _values(list(found.values()), as_perplexity)
    axes.plot(x, values, **{**styles[row].line, "markersize": 4})
    error_bars(axes, x, values, bars, styles[row].color)
    ends.append((float(values[-1]), row.label, styles[row]))
    every += [*values, *bars[np.isfinite(bars)]]
    places += x
  if min(places) > 0 and max(places) > 8 * min(places):
    axes.set_xscale("log", base=2)
    left, right = min(places) / 2**0.2, max(places) * 2**0.2
    axes.set_xlim(left, right)
    plain_ticks(axes.xaxis, [2**k for k in range(40) if left <= 2**k <= right])
  axes.set_xlabel(f"{by}, at a length of {context:,} tokens")
  axes.set_ylabel("perplexity" if as_perplexity else metric)
  if as_perplexity:
    log_axis(axes, every)
  if by == "position":
    mark_context(axes, records)
  canvas.subplots_adjust(right=0.76)
  canvas.draw_without_rendering()
  label_ends(axes, ends)
  return canvas


def _draw_maps(records: Records, task: str, metric: str, by: str, contexts: list[int]) -> Canvas:
  """One panel per row: lengths across, parts down."""
  rows = [row for row in records.rows if any(parts(records, row, task, c, metric, by) for c in contexts)]
  every = sorted(_parts_at(records, task, contexts[0], metric, by), key=start_of)
  counts = {one.n for row in rows for c in contexts for one in parts(records, row, task, c, metric, by).values()}
  shared_n = counts.pop() if len(counts) == 1 else None
  columns = min(4, len(rows))
  lines = -(-len(rows) // columns)
  width = max(2.2, 0.62 * len(contexts) + 0.2)  # of a panel, in inches
  titles = [textwrap.fill(row.label, int(width * TITLE_CHARACTERS)) for row in rows]
  title_lines = max(title.count("\n") + 1 for title in titles)
  size = (1.0 + columns * width, lines * (0.57 + 0.18 * title_lines + 0.42 * len(every)) + 0.45)
  canvas, panels = plt.subplots(
    lines, columns, figsize=size, squeeze=False, layout="constrained", sharex=True, sharey=True
  )
  colormap = matplotlib.colormaps["Blues"].with_extremes(bad="#f0f0f0")
  for axes in panels.flat[len(rows) :]:
    axes.axis("off")
  for index, row in enumerate(rows):
    axes = panels.flat[index]
    found = [parts(records, row, task, context, metric, by) for context in contexts]
    figures = [[here.get(at) for here in found] for at in every]
    grid = np.array([[math.nan if one is None else one.value for one in line] for line in figures])
    axes.imshow(np.ma.masked_invalid(grid), cmap=colormap, vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
      color = "white" if value > 0.55 else "#333333"
      text, small = _in_map(figures[y][x], counted=shared_n is None)
      axes.text(x, y - (0.14 if small else 0), text, ha="center", va="center", fontsize=9, color=color)
      axes.text(x, y + 0.26, small, ha="center", va="center", fontsize=6, color=color)
    within = sum(context <= records.train_context for context in contexts)
    if 0 < within < len(contexts):
      axes.axvline(within - 0.5, color="white", linewidth=3.5)
      axes.axvline(within - 0.5, color="#444444", linestyle="--", linewidth=1.2)
    axes.set_title(titles[index], color=looks(records)[row].color, fontsize=10)
    axes.set_xticks(range(len(contexts)), [f"{records.extension(context):g}×" for context in contexts])
    axes.set_yticks(range(len(every)), [show_at(at) for at in every])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    # sharex would hide the tick labels of a panel with an empty place below it.
    axes.tick_params(labelbottom=index + columns >= len(rows))
  canvas.supxlabel("length (multiple of the training context)", fontsize=10, color="#333333")
  counted = "" if shared_n is None else f", n = {shared_n:,} in each cell"
  canvas.supylabel(f"{by} ({metric} in %, 95 % interval{counted})", fontsize=9, color="#333333")
  return canvas


def _in_map(figure: Figure | None, *, counted: bool) -> tuple[str, str]:
  """A value in %, and the small print below it: its interval and, if `counted`, its number of samples."""
  if figure is None:
    return "–", ""
  interval = "" if figure.low is None or figure.high is None else f"{100 * figure.low:.0f}–{100 * figure.high:.0f}"
  small = [interval, f"n {figure.n:,}" if counted else ""]
  return f"{100 * figure.value:.0f}", ", ".join(filter(None, small))


def plot_samples(records: Records, task: str) -> Canvas | None:
  """At the longest length: each row less the control, sample by sample; None if the samples were not recorded.

  Also None for samples that are right or wrong: their mean says it all.
  """
  metric, control = records.metrics(task)[0], main_control(records)
  contexts = [c for c in records.contexts(task) if control is not None and records.at(control, task, c) is not None]
  if control is None or not contexts:
    return None
  base = records.at(control, task, contexts[-1])
  assert base is not None
  theirs = base.whole().get(metric)
  if theirs is None or theirs.values is None or len(theirs.values) < 2 or set(theirs.values) <= {0.0, 1.0}:
    return None
  differences: dict[Row, np.ndarray] = {}
  for row in records.rows:
    one = records.at(row, task, contexts[-1])
    mine = None if one is None else one.whole().get(metric)
    same = one is not None and one.samples == base.samples and mine is not None and mine.values is not None
    if row != control and same and mine is not None and len(mine.values or ()) == len(theirs.values):
      differences[row] = np.asarray(mine.values) - np.asarray(theirs.values)
  return _draw_samples(records, metric, contexts[-1], control, differences) if differences else None


def _draw_samples(
  records: Records, metric: str, context: int, control: Row, differences: dict[Row, np.ndarray]
) -> Canvas:
  styles = looks(records)
  canvas, axes = plt.subplots(figsize=(8.2, 0.7 + 0.36 * len(differences)), layout="constrained")
  for y, (row, values_N) in enumerate(reversed(differences.items())):
    beside_N = np.linspace(-0.22, 0.22, len(values_N))[np.random.default_rng(0).permutation(len(values_N))]
    axes.scatter(values_N, y + beside_N, s=9, color=styles[row].color, alpha=0.45, linewidths=0, zorder=3)
    low, high = bootstrap(values_N, np.ones(len(values_N)))
    axes.plot([low, high], [y, y], color=INK, linewidth=2.2, zorder=4)
    axes.plot([values_N.mean()], [y], color=INK, marker="|", markersize=11, zorder=5)
  axes.axvline(0, color="#777777", linewidth=1, zorder=2)
  axes.set_yticks(range(len(differences)), [row.label for row in reversed(differences)])
  axes.set_xlabel(f"{metric} at {records.extension(context):g}×, less that of “{control.label}”, n = {len(values_N):,}")
  return canvas


def _middle(at: At) -> float:
  if isinstance(at, tuple):
    return at[0] if at[1] is None else (at[0] + at[1]) / 2
  return math.nan if at is None else at


def _values(figures: list[Figure], as_perplexity: bool) -> tuple[np.ndarray, np.ndarray]:
  """The values (N,), and the ends of their intervals (N, 2), NaN where there is none."""
  values = np.array([figure.value for figure in figures])
  ends = np.array([[math.nan if end is None else end for end in (one.low, one.high)] for one in figures])
  return (np.exp(values), np.exp(ends)) if as_perplexity else (values, ends)


def plot_frequencies(records: Records) -> Canvas | None:
  """gamma_i = omega'_i / omega_i of every row at the longest length, by wavelength 2 pi / omega_i."""
  contexts = records.contexts(*records.tasks)
  base = next(
    (omega for run in records.runs.values() if (omega := _omega(run.model)) is not None and omega.all()), None
  )
  if base is None or not contexts or contexts[-1] <= records.train_context:
    return None
  curves: dict[tuple[float, ...], list[Row]] = {}
  for row in records.rows:
    gamma = _factors(records, row, contexts[-1], base)
    if gamma is not None:
      curves.setdefault(tuple(np.round(gamma, 6)), []).append(row)
  if len(curves) < 2:
    return None
  wavelengths, styles = 2 * math.pi / base, looks(records)
  canvas, axes = plt.subplots(figsize=(8.2, 3.9))
  ends = []
  for factors, rows in curves.items():
    look = styles[rows[0]]
    axes.plot(wavelengths, factors, **{**look.line, "markersize": 5, "linewidth": 1.8})
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    ends.append((factors[-1], rows[0].label + more, look))
  axes.set_xscale("log", base=10)
  axes.set_xlim(wavelengths[0] / 1.3, wavelengths[-1] * 1.15)
  axes.set_ylim(-0.05, max(1.06, max(map(max, curves)) * 1.05))
  plain_ticks(axes.xaxis, log_ticks(*axes.get_xlim()))
  axes.set_xlabel("wavelength of the rotation (tokens for one turn, before scaling)")
  axes.set_ylabel(f"frequency factor γ = ω′/ω at {records.extension(contexts[-1]):g}×")
  mark_context(axes, records)
  canvas.subplots_adjust(right=0.76)
  canvas.draw_without_rendering()
  label_ends(axes, ends)
  return canvas


def _omega(model: ModelConfig | None, length: int | None = None) -> np.ndarray | None:
  """The frequencies of the first layer that rotates."""
  if model is None:
    return None
  for layer in layer_cycle(model.positions):
    table = None
    if layer.positions is not None and (length is not None or not layer.positions.dynamic):
      table = layer.positions.frequencies(model.head_dim, length)
    if table is not None:
      return np.asarray(table.omega)
  return None


def _factors(records: Records, row: Row, length: int, base: np.ndarray) -> np.ndarray | None:
  """The factors by which a row changes the frequencies `base`; None if its model's cannot be compared with them."""
  trained = records.measured_model(row.run)
  if trained is None:
    return None
  try:
    method = Method.parse(row.method)
  except ConfigError:  # a method of a module that is not imported
    return None
  model = inference(row.method, trained, records.train_context, length, 0.0 if method.reads_c else None).config
  if all(layer.positions is None for layer in layer_cycle(model.positions)):
    return np.zeros_like(base)
  omega = _omega(model, length)
  return None if omega is None or omega.shape != base.shape else omega / base
