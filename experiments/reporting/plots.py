"""The plots of a report. Every row of a study keeps its colour, line and marker in all of them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from drope_jax.config import ModelConfig
from drope_jax.evaluate.results import BY_DEPTH
from drope_jax.positions import NTK, PI, RoPE, YaRN, layer_cycle
from experiments.plan import Arm, Row
from experiments.reporting.finding import PERPLEXITY, RETRIEVAL, measured, measures, standard_error
from experiments.reporting.records import TEMPERATURE, Study
from experiments.reporting.tables import longest, position_blocks, show_count

# Okabe and Ito's colours, which the colour-blind can tell apart; the yellow is left out, too pale for a line.
INK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
  "#1f1f1f", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8c8c8c",
)  # fmt: skip
METHOD_LOOKS = {"pi": (ORANGE, "s"), "ntk": (SKY, "^"), "yarn": (GREEN, "D"), "crop": (GREY, "X")}
ROLE_LOOKS = {"control": (INK, "o"), "drope": (VERMILION, "o"), "baseline": (BLUE, "v")}
SPARE_LOOKS = ((PURPLE, "P"), ("#7A5C3E", "<"), ("#5B4B9A", ">"), ("#8A8A00", "h"), ("#A63A50", "p"), ("#2F6F6F", "d"))
STYLE: dict[Any, Any] = {
  "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
  "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555", "axes.labelcolor": "#333333",
  "xtick.color": "#555555", "ytick.color": "#555555", "axes.grid": True, "axes.axisbelow": True,
  "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "legend.frameon": False, "figure.facecolor": "white",
  "savefig.dpi": 150,
}  # fmt: skip
CONTEXT_SHADE = "#f1f1f1"


@dataclasses.dataclass(frozen=True)
class Look:
  """How a row is drawn; with the temperature and without it, a model keeps its colour."""

  color: str
  marker: str
  dashed: bool = False
  heavy: bool = False

  @property
  def line(self) -> dict[str, Any]:
    return {
      "color": self.color,
      "marker": self.marker,
      "linestyle": (0, (4, 1.8)) if self.dashed else "-",
      "linewidth": 2.4 if self.heavy else 1.6,
      "markersize": 5.5,
      "markerfacecolor": "white" if self.dashed else self.color,
      "markeredgewidth": 1.3,
      "zorder": 4 if self.heavy else 3,
    }


def looks(study: Study) -> dict[Row, Look]:
  """A look for each row: by method for the control's rows, by role for the others; a spare one if that is taken."""
  chosen: dict[tuple[str, str], tuple[str, str]] = {}
  spare = list(SPARE_LOOKS)
  with_temperature = {row.run for row in study.rows if row.method == TEMPERATURE}
  found = {}
  for row in study.rows:
    role = study.role(row)
    as_trained = row.plain or row.method == TEMPERATURE
    key = (row.run, "" if as_trained else row.method)
    if key not in chosen:
      wanted = None
      if as_trained and role is not None:
        wanted = ROLE_LOOKS[role]
      elif role == "control":
        wanted = METHOD_LOOKS.get(row.method)
      if wanted is None or wanted in chosen.values():
        wanted = spare.pop(0) if spare else (GREY, ".")
      chosen[key] = wanted
    heavy = as_trained and role in ("control", "drope")
    dashed = row.plain and row.run in with_temperature
    found[row] = Look(*chosen[key], dashed=dashed, heavy=heavy)
  return found


def _arm_colors(study: Study) -> dict[Arm, str]:
  """An arm's curve has the colour of the row that evaluates it as it was trained."""
  by_run = {row.run: look.color for row, look in looks(study).items() if row.plain or row.method == TEMPERATURE}
  return {arm: by_run.get(arm.runs[-1], GREY) for arm in study.arms}


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
  """Writes (y, text, color) at the right edge at the height of y, moved apart where they would overlap."""
  if not ends:
    return
  height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
  gap = 12.5 / height
  to_share = axes.transData + axes.transAxes.inverted()
  x = axes.get_xlim()[1]
  wanted = sorted((float(to_share.transform((x, y))[1]), text, color) for y, text, color in ends)
  places = [min(max(share, 0.0), 1.0) for share, _, _ in wanted]
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + gap)
  top = 1.04
  for i in reversed(range(len(places))):
    places[i] = min(places[i], top)
    top = places[i] - gap
  for place, (share, text, color) in zip(places, wanted, strict=True):
    axes.annotate(
      text, xy=(1.0, share), xytext=(1.035, place), xycoords="axes fraction", textcoords="axes fraction",
      color=color, va="center", fontsize=9.5, annotation_clip=False,
      arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 1, "alpha": 0.7,
                  "relpos": (0, 0.5)},
    )  # fmt: skip


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
  """Ticks at exactly `values`, written as numbers (a log axis would write powers)."""
  axis.set_major_locator(FixedLocator(list(values)))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))


def _nice_log_ticks(low: float, high: float) -> list[float]:
  """Between three and seven round numbers in [low, high], evenly spaced on a log axis as far as round numbers are."""
  for mantissas in (
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 3, 5),
    (1, 2, 5),
    (1, 3),
    (1,),
  ):
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in decades for m in mantissas if low <= m * 10.0**e <= high]
    if len(ticks) <= 7:
      return ticks
  return ticks


def _log_perplexity(axes: Axes, losses: Sequence[float]) -> None:
  """A log axis of perplexity around exp(losses)."""
  low, high = min(losses), max(losses)
  margin = max(0.06 * (high - low), 0.03)
  axes.set_yscale("log")
  axes.set_ylim(math.exp(low - margin), math.exp(high + margin))
  _plain_ticks(axes.yaxis, _nice_log_ticks(*axes.get_ylim()))


def _length_axis(axes: Axes, study: Study, contexts: Sequence[int]) -> None:
  """Lengths on a log-2 axis, as multiples and in tokens, the training context marked."""
  axes.set_xscale("log", base=2)
  axes.set_xlim(min(contexts) / 2**0.25, max(contexts) * 2**0.25)
  axes.xaxis.set_major_locator(FixedLocator(list(contexts)))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{study.extension(value):g}×\n{value:,.0f}"))
  axes.set_xlabel("length, as a multiple of the training context and in tokens")
  _mark_context(axes, study)


def _mark_context(axes: Axes, study: Study) -> None:
  """Shades what lies within the training context."""
  left, right = axes.get_xlim()
  if left < study.train_context < right:
    axes.axvspan(left, study.train_context, color=CONTEXT_SHADE, zorder=0)
    axes.axvline(study.train_context, color="#777777", linestyle="--", linewidth=1, zorder=1)


def _note_at_context(axes: Axes, study: Study, text: str, share: float, left: bool) -> None:
  """Writes on one side of the mark of the training context, at a share of the height."""
  axes.annotate(
    text, xy=(study.train_context, share), xycoords=("data", "axes fraction"), xytext=(-5 if left else 6, 0),
    textcoords="offset points", ha="right" if left else "left", va="top", color="#555555", fontsize=9,
  )  # fmt: skip


def _save(canvas: Canvas, path: Path) -> None:
  canvas.savefig(path, bbox_inches="tight", pad_inches=0.12)
  plt.close(canvas)


# --- training ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Curve:
  """A run's loss on the token axis of its arm."""

  arm: Arm
  start: float
  dropped: bool
  tokens: np.ndarray
  losses: np.ndarray


def _thin(tokens: np.ndarray, losses: np.ndarray, points: int = 150) -> tuple[np.ndarray, np.ndarray]:
  """Means of neighbouring records, so that noise does not hide the curve."""
  size = -(-len(tokens) // points)
  groups = [slice(i, i + size) for i in range(0, len(tokens), size)]
  return np.array([tokens[g].mean() for g in groups]), np.array([losses[g].mean() for g in groups])


def _curves(study: Study) -> list[_Curve]:
  """Each run once, with the first arm it belongs to."""
  found: dict[str, _Curve] = {}
  for arm in study.arms:
    for position, name in enumerate(arm.runs):
      run, start = study.runs[name], study.offset(arm, position)
      records = [record for record in run.metrics if math.isfinite(record["loss"])]
      if name in found or start is None or not records:
        continue
      tokens = np.array([record["tokens"] for record in records], float)
      thinned = _thin(tokens, np.array([record["loss"] for record in records]))
      found[name] = _Curve(arm, start, run.dropped, thinned[0] + start, thinned[1])
  return list(found.values())


def plot_loss(study: Study, path: Path) -> bool:
  """Training loss against the tokens of the arm; beside it, larger, what follows the first drop."""
  curves, colors = _curves(study), _arm_colors(study)
  if not curves:
    return False
  drops = sorted({curve.start for curve in curves if curve.dropped})
  shape: dict[str, Any] = {"ncols": 2, "width_ratios": [1.15, 1]} if drops else {"ncols": 1}
  canvas, panels = plt.subplots(1, figsize=(10, 3.9), squeeze=False, layout="constrained", **shape)
  for axes in panels[0]:
    _draw_losses(axes, curves, drops, colors)
  whole = panels[0][0]
  whole.set_ylabel("training loss (nats per token)")
  whole.set_title("the whole training")
  whole.set_xlim(0, max(curve.tokens[-1] for curve in curves) * 1.01)
  named: set[Arm] = set()
  if drops:
    whole.annotate(
      "drop", xy=(drops[0], 0.02), xycoords=("data", "axes fraction"), xytext=(-4, 0), textcoords="offset points",
      color=VERMILION, ha="right", va="bottom",
    )  # fmt: skip
    named = _enlarge_after(canvas, panels[0][1], curves, drops[0], colors)
  unnamed = [arm for arm in dict.fromkeys(curve.arm for curve in curves) if arm not in named]
  if unnamed:
    handles = [Line2D([], [], color=colors[arm], linewidth=1.8) for arm in unnamed]
    whole.legend(handles, [arm.label for arm in unnamed], loc="upper right")
  _save(canvas, path)
  return True


def _draw_losses(axes: Axes, curves: Sequence[_Curve], drops: Sequence[float], colors: Mapping[Arm, str]) -> None:
  """Every curve, and a dotted line at each drop."""
  for curve in curves:
    order = 4 if curve.arm.role == "drope" else 3
    axes.plot(curve.tokens, curve.losses, color=colors[curve.arm], linewidth=1.8, zorder=order)
  for drop in drops:
    axes.axvline(drop, color=VERMILION, linestyle=":", linewidth=1.4, zorder=2)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value) if value else "0"))
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.set_xlabel("training tokens of the arm")


def _enlarge_after(
  canvas: Canvas, axes: Axes, curves: Sequence[_Curve], drop: float, colors: Mapping[Arm, str]
) -> set[Arm]:
  """Limits the axes to what follows the drop, and names the curves at their ends; returns the arms that are named."""
  end = max(curve.tokens[-1] for curve in curves)
  first = drop - 0.12 * (end - drop)
  seen = [curve.losses[curve.tokens >= first] for curve in curves]
  # The first moments after the drop are far off; the other panel shows them whole.
  settled = np.concatenate([losses[len(losses) // 6 :] for losses in seen if len(losses)])
  low, high = settled.min(), settled.max()
  axes.set_xlim(first, end + 0.01 * (end - drop))
  axes.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
  axes.set_title("from the drop on, enlarged")
  canvas.draw_without_rendering()  # fixes the layout, which the labels are placed in
  ends = {curve.arm: curve for curve in curves if curve.tokens[-1] > drop * 1.001}  # of an arm's runs the last
  _label_ends(axes, [(curve.losses[-1], arm.label, colors[arm]) for arm, curve in ends.items()])
  return set(ends)


# --- perplexity and retrieval -----------------------------------------------------------------------------------------


def plot_positions(study: Study, path: Path) -> bool:
  """Perplexity by position at the longest length."""
  context = longest(study, "perplexity")
  if context is None:
    return False
  by_row = {row: position_blocks(study, row, context) for row in study.rows}
  shown = {row: blocks for row, blocks in by_row.items() if blocks}
  if not shown:
    return False
  canvas, axes = plt.subplots(figsize=(8.2, 4.4))
  styles = looks(study)
  for row, blocks in shown.items():
    centres = [(start + end) / 2 for start, end in blocks]
    axes.plot(centres, [math.exp(loss) for loss in blocks.values()], **{**styles[row].line, "markersize": 4})
  edges = [edge for blocks in shown.values() for block in blocks for edge in block]
  centres = [(start + end) / 2 for blocks in shown.values() for start, end in blocks]
  axes.set_xscale("log", base=2)
  axes.set_xlim(min(centres) / 2**0.2, max(edges))
  powers = [2**k for k in range(1, 40) if axes.get_xlim()[0] <= 2**k <= max(edges)]
  _plain_ticks(axes.xaxis, powers)
  axes.set_xlabel(f"position in the document (tokens; documents of {context:,})")
  axes.set_ylabel("perplexity (lower is better)")
  _log_perplexity(axes, [loss for blocks in shown.values() for loss in blocks.values()])
  _mark_context(axes, study)
  if axes.get_xlim()[0] < study.train_context < axes.get_xlim()[1]:
    _note_at_context(axes, study, "training\ncontext", 0.975, left=True)
  canvas.subplots_adjust(right=0.76)
  canvas.draw_without_rendering()
  ends = [(math.exp(list(blocks.values())[-1]), row.label, styles[row].color) for row, blocks in shown.items()]
  _label_ends(axes, ends)
  _save(canvas, path)
  return True


def plot_depths(study: Study, path: Path, task: str) -> bool:
  """A task's score by depth of the needle and by length, a panel a row; False if it has none by depth."""
  contexts = study.contexts(task)
  names = {name for row in study.rows for context in contexts for name in study.figures(row, task, context)}
  by_depth = {float(name.split(BY_DEPTH)[1]): name for name in names if BY_DEPTH in name}
  depths = sorted(by_depth)
  if not depths:
    return False
  columns = min(4, len(study.rows))
  lines = -(-len(study.rows) // columns)
  size = (1.0 + columns * max(2.0, 0.5 * len(contexts) + 0.2), lines * (0.75 + 0.36 * len(depths)) + 0.45)
  canvas, panels = plt.subplots(
    lines, columns, figsize=size, squeeze=False, layout="constrained", sharex=True, sharey=True
  )
  colormap = matplotlib.colormaps["Blues"].with_extremes(bad="#f0f0f0")
  styles = looks(study)
  for axes in panels.flat[len(study.rows) :]:
    axes.axis("off")
  for index, row in enumerate(study.rows):
    axes = panels.flat[index]
    found = [[study.figure(row, task, c, by_depth[d]) for c in contexts] for d in depths]
    grid = np.array([[math.nan if figure is None else figure.value for figure in line] for line in found])
    axes.imshow(np.ma.masked_invalid(grid), cmap=colormap, vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
      text = f"{100 * value:.0f}" if math.isfinite(value) else "–"
      axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if value > 0.55 else "#333333")
    beyond = sum(context <= study.train_context for context in contexts)
    if 0 < beyond < len(contexts):
      axes.axvline(beyond - 0.5, color="white", linewidth=3.5)
      axes.axvline(beyond - 0.5, color="#444444", linestyle="--", linewidth=1.2)
    axes.set_title(row.label, color=styles[row].color, fontsize=10)
    axes.set_xticks(range(len(contexts)), [f"{study.extension(context):g}×" for context in contexts])
    axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f} %" for depth in depths])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    # sharex hides the ticks of a panel that has an empty place below it.
    axes.tick_params(labelbottom=index + columns >= len(study.rows))
  canvas.supxlabel("length (multiple of the training context)", fontsize=10, color="#333333")
  canvas.supylabel("depth of the needle (0 %: at the start)", fontsize=10, color="#333333")
  _save(canvas, path)
  return True


def plot_summary(study: Study, path: Path) -> bool:
  """What is measured, perplexity and needle accuracy, against length, a line a row."""
  styles, shown = looks(study), measures(study)
  canvas, panels = plt.subplots(1, len(shown), figsize=(10, 4.9), squeeze=False)
  drawn: dict[Row, Any] = {}
  for axes, measure in zip(panels[0], shown, strict=True):
    contexts = study.contexts(measure.task)
    by_row: dict[Row, dict[int, Any]] = {row: {} for row in study.rows}
    for context in contexts:
      for row, figure in measured(study, study.rows, measure, context).items():
        by_row[row][context] = figure
    by_row = {row: figures for row, figures in by_row.items() if figures}
    axes.set_title("perplexity (lower is better)" if measure is PERPLEXITY else "needles found, % (higher is better)")
    if not by_row:
      axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#777777")
      axes.set_xticks([])
      axes.set_yticks([])
      continue
    for row, figures in by_row.items():
      values = [math.exp(f.value) if measure is PERPLEXITY else 100 * f.value for f in figures.values()]
      (drawn[row],) = axes.plot(list(figures), values, **styles[row].line)
      if measure is RETRIEVAL:
        spread = [100 * standard_error(figure) for figure in figures.values()]
        axes.errorbar(list(figures), values, spread, fmt="none", ecolor=styles[row].color, elinewidth=1, alpha=0.45)
    if measure is PERPLEXITY:
      _log_perplexity(axes, [figure.value for figures in by_row.values() for figure in figures.values()])
    else:
      axes.set_ylim(-4, 104)
    _length_axis(axes, study, contexts)
  if not drawn:
    plt.close(canvas)
    return False
  handles = [drawn[row] for row in study.rows if row in drawn]
  labels = [row.label for row in study.rows if row in drawn]
  canvas.subplots_adjust(left=0.05, right=0.99, top=0.93, bottom=0.3, wspace=0.14)
  canvas.legend(
    handles, labels, loc="lower center", ncols=min(4, len(labels)), columnspacing=2.2, handlelength=2.8, fontsize=10.5
  )
  _save(canvas, path)
  return True


# --- frequencies ------------------------------------------------------------------------------------------------------


def _rotary_model(study: Study) -> tuple[ModelConfig, RoPE] | None:
  """The first model of the study that rotates, controls first, and its rotation."""
  arms = sorted(study.arms, key=lambda arm: arm.role != "control")
  for name in (name for arm in arms for name in arm.runs):
    model = study.runs[name].model
    if model is not None:
      for layer in layer_cycle(model.positions):
        if isinstance(layer.positions, RoPE):
          return model, layer.positions
  return None


def plot_frequencies(study: Study, path: Path) -> bool:
  """gamma_i = omega'_i / omega_i of PI, NTK and YaRN at the longest length, against the wavelength 2 pi / omega_i."""
  found, contexts = _rotary_model(study), study.contexts("perplexity", "needles")
  if found is None or not contexts or contexts[-1] <= study.train_context:
    return False
  (model, rope), factor = found, study.extension(contexts[-1])
  base = np.asarray(RoPE(rope.theta).frequencies(model.head_dim)[0])
  wavelengths = 2 * math.pi / base
  canvas, axes = plt.subplots(figsize=(8.2, 3.9))
  ends = []
  for name, scaling in (("PI", PI(factor)), ("NTK", NTK(factor)), ("YaRN", YaRN(factor, study.train_context))):
    omega, attention = RoPE(rope.theta, scaling).frequencies(model.head_dim)
    color, marker = METHOD_LOOKS[name.lower()]
    gamma = np.asarray(omega) / base
    axes.plot(wavelengths, gamma, color=color, marker=marker, markersize=5, linewidth=1.8, zorder=3)
    sharpened = f" (cos, sin × {attention:.2f})" if attention != 1 else ""
    ends.append((float(gamma[-1]), name + sharpened, color))
  for gamma, label, color in ((1.0, "RoPE, as trained", INK), (0.0, "DroPE: no rotation", VERMILION)):
    axes.plot(wavelengths, np.full_like(wavelengths, gamma), color=color, linewidth=1.8, zorder=2)
    ends.append((gamma, label, color))
  axes.set_xscale("log", base=10)
  axes.set_xlim(wavelengths[0] / 1.3, wavelengths[-1] * 1.15)
  axes.set_ylim(-0.05, 1.06)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
  axes.set_xlabel("wavelength of the rotation (tokens for one turn, before scaling)")
  axes.set_ylabel(f"frequency factor γ = ω′/ω at {factor:g}×")
  _mark_context(axes, study)
  if wavelengths[0] < study.train_context < wavelengths[-1]:
    _note_at_context(axes, study, "from here on: less than one full turn\nwithin the training context", 0.9, left=False)
  canvas.subplots_adjust(right=0.76)
  canvas.draw_without_rendering()
  _label_ends(axes, ends)
  _save(canvas, path)
  return True


PLOTS: dict[str, Callable[[Study, Path], bool]] = {
  "summary.png": plot_summary,
  "loss.png": plot_loss,
  "perplexity_by_position.png": plot_positions,
  "needles.png": functools.partial(plot_depths, task="needles"),
  "frequencies.png": plot_frequencies,
}


def draw_depths(study: Study) -> dict[str, str]:
  """Draws every task that has a score by depth; returns the names of the pictures by task."""
  drawn = {}
  with plt.rc_context(STYLE):
    for task in study.tasks:
      name = f"{task}.png"
      if plot_depths(study, study.directory / name, task):
        drawn[task] = name
  return drawn


def draw_all(study: Study) -> set[str]:
  """Draws every plot there are figures for; returns the names drawn, and removes an older one that no longer can be."""
  drawn = set()
  with plt.rc_context(STYLE):
    for name, plot in PLOTS.items():
      path = study.directory / name
      path.unlink(missing_ok=True)
      if plot(study, path):
        drawn.add(name)
  return drawn
