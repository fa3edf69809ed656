"""Plots of the training: its loss, and the held-out loss of every arm against its control's (the recovery curve)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from experiments.plan import Arm
from experiments.reporting import arms
from experiments.reporting.axes import LEGEND_BELOW, label_ends, limit_to, log_axis, token_axis
from experiments.reporting.heldout import Curve, arm_curves, arm_gaps, gap_curve, heldout_curve
from experiments.reporting.looks import INK, VERMILION, Look, arm_looks
from experiments.reporting.records import Records


@dataclasses.dataclass
class _Curve:
  """A run's loss on the token axis of its arm."""

  arm: Arm
  tokens: np.ndarray
  losses: np.ndarray  # smoothed
  heldout_tokens: np.ndarray
  heldout: np.ndarray


def _smoothed(tokens: np.ndarray, losses: np.ndarray, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
  """Means of neighbouring records, at most `points` of them, so that noise does not hide the curve."""
  size = -(-len(tokens) // points)
  groups = [slice(i, i + size) for i in range(0, len(tokens), size)]
  return np.array([tokens[g].mean() for g in groups]), np.array([losses[g].mean() for g in groups])


def _curves(records: Records) -> list[_Curve]:
  """The curve of each run, with the first arm that it belongs to."""
  found: dict[str, _Curve] = {}
  for arm in records.arms:
    for position, name in enumerate(arm.runs):
      run, start = records.runs[name], records.offset(arm, position)
      logged = [record for record in run.metrics if math.isfinite(record["loss"])]
      if name in found or start is None or not logged:
        continue
      tokens = np.array([record["tokens"] for record in logged], float)
      smooth = _smoothed(tokens, np.array([record["loss"] for record in logged]))
      heldout = heldout_curve(run)
      found[name] = _Curve(arm, smooth[0] + start, smooth[1], heldout.tokens_N + start, heldout.losses_N)
  return list(found.values())


def plot_loss(records: Records) -> Canvas | None:
  """Training loss by tokens of the arm; in a second panel, enlarged, from the first drop on."""
  curves, looks = _curves(records), arm_looks(records)
  if not curves:
    return None
  drop = arms.first_drop(records, records.arms)
  shape: dict[str, Any] = {"ncols": 1} if drop is None else {"ncols": 2, "width_ratios": [1.15, 1]}
  canvas, panels = plt.subplots(1, figsize=(10, 3.9), squeeze=False, layout="constrained", **shape)
  for axes in panels[0]:
    for curve in curves:
      look = looks[curve.arm]
      axes.plot(curve.tokens, curve.losses, color=look.color, linestyle=look.linestyle, linewidth=1.6, zorder=3)
      axes.plot(curve.heldout_tokens, curve.heldout, color=look.color, marker=".", linestyle=":", linewidth=1)
    if drop is not None:
      axes.axvline(drop, color=VERMILION, linestyle=":", linewidth=1.4, zorder=2)
    token_axis(axes, "training tokens of the arm")
  whole = panels[0][0]
  whole.set_ylabel("loss (nats per token)")
  whole.set_title("the whole training")
  whole.set_xlim(0, max(curve.tokens[-1] for curve in curves) * 1.01)
  named = set() if drop is None else _enlarge_after(canvas, panels[0][1], curves, drop, looks)
  unnamed = [arm for arm in dict.fromkeys(curve.arm for curve in curves) if arm not in named]
  if unnamed:
    handles = [Line2D([], [], color=looks[arm].color, linestyle=looks[arm].linestyle, linewidth=1.8) for arm in unnamed]
    whole.legend(handles, [arm.label for arm in unnamed], loc="upper right")
  return canvas


def _enlarge_after(
  canvas: Canvas, axes: Axes, curves: Sequence[_Curve], drop: float, looks: Mapping[Arm, Look]
) -> set[Arm]:
  """Limits the axes to the part after the drop, and labels the curves at their ends; returns the labelled arms."""
  end = max(curve.tokens[-1] for curve in curves)
  first = drop - 0.12 * (end - drop)
  seen = [curve.losses[curve.tokens >= first] for curve in curves]
  seen += [curve.heldout[curve.heldout_tokens >= first] for curve in curves]
  # The first losses after the drop are far above the rest; the other panel shows them.
  settled = np.concatenate([losses[len(losses) // 6 :] for losses in seen if len(losses)])
  low, high = settled.min(), settled.max()
  axes.set_xlim(first, end + 0.01 * (end - drop))
  axes.set_ylim(low - 0.06 * (high - low) - 1e-3, high + 0.12 * (high - low) + 1e-3)
  axes.set_title("from the drop on, enlarged")
  canvas.draw_without_rendering()  # fixes the layout before the labels are placed
  ends = {curve.arm: curve for curve in curves if curve.tokens[-1] > drop * 1.001}  # the last run of each arm
  label_ends(axes, [(curve.losses[-1], arm.label, looks[arm]) for arm, curve in ends.items()])
  return set(ends)


def _draw(axes: Axes, curve: Curve, look: Look, of: int, label: str | None = None) -> None:
  """A held-out curve, one `of` several, with its band over documents where it has one; many bands are paler."""
  style = {"color": look.color, "linestyle": look.linestyle, "marker": ".", "linewidth": 1.8}
  axes.plot(curve.tokens_N, curve.losses_N, label=label, **style)
  axes.fill_between(curve.tokens_N, *curve.ends_N2.T, color=look.color, alpha=min(0.18, 0.7 / of), linewidth=0)


def plot_recovery(records: Records) -> Canvas | None:
  """Held-out loss in context of every arm by tokens of its last run; in a second panel, less the control's.

  Bands: 95 % intervals over documents, paired for the differences.
  """
  looks = arm_looks(records)
  runs = {arm: records.runs[name] for name, arm in arms.last_runs(records).items()}
  runs = {arm: run for arm, run in runs.items() if run.transition is not None and heldout_curve(run)}
  if not runs:
    return None
  gaps = {arm: gap for arm, run in runs.items() if (gap := gap_curve(records, run))}
  canvas, panels = plt.subplots(1, 2 if gaps else 1, figsize=(10, 3.9), squeeze=False)
  for arm, run in runs.items():
    _draw(panels[0][0], heldout_curve(run), looks[arm], len(runs), arm.label)
  panels[0][0].set_title("held-out loss in context")
  panels[0][0].set_ylabel("nats per token")
  for arm, gap in gaps.items():
    _draw(panels[0][1], gap, looks[arm], len(gaps))
  if gaps:
    _scale_gaps(panels[0][1], list(gaps.values()))
    panels[0][1].set_title("less that of the control at the same step")
    panels[0][1].set_ylabel("nats per token" + (", log axis" if panels[0][1].get_yscale() == "log" else ""))
  for axes in panels[0]:
    token_axis(axes, "tokens of recalibration")
  canvas.tight_layout()
  canvas.legend(ncols=min(3, len(runs)), **LEGEND_BELOW)
  return canvas


def _scale_gaps(axes: Axes, gaps: Sequence[Curve]) -> None:
  """A log axis for gaps that are positive and differ more than tenfold, else a line at 0: small ones stay visible."""
  values = np.concatenate([np.r_[gap.losses_N, gap.ends_N2.ravel()] for gap in gaps])
  values = values[np.isfinite(values)]
  if values.size and values.min() > 0 and values.max() > 10 * values.min():
    log_axis(axes, values.tolist())
  else:
    axes.axhline(0, color=INK, linewidth=1, zorder=2)


def plot_tokens(records: Records) -> Canvas | None:
  """Held-out loss in context of whole arms by tokens, and less that of a run from scratch; None without several such.

  Bands: 95 % intervals over documents, paired for the differences. The first tenth of the tokens may be cut.
  """
  curves, gaps, base, looks = arm_curves(records), arm_gaps(records), arms.base_of(records), arm_looks(records)
  if base is None or not gaps:
    return None
  canvas, panels = plt.subplots(1, 2, figsize=(10, 3.9))
  for axes, shown in zip(panels, (curves, gaps), strict=True):
    for arm, curve in shown.items():
      _draw(axes, curve, looks[arm], len(shown), arm.label)
    first = 0.1 * max(curve.tokens_N[-1] for curve in shown.values())
    limit_to(axes, np.concatenate([curve.losses_N[curve.tokens_N >= first] for curve in shown.values()]).tolist())
    token_axis(axes, "training tokens of the arm")
  panels[0].set_title("held-out loss in context")
  panels[0].set_ylabel("nats per token")
  panels[1].set_title(f"less that of “{next(arm.label for arm in curves if arm.runs == (base.name,))}”")
  panels[1].axhline(0, color=INK, linewidth=1, zorder=2)
  canvas.tight_layout()
  handles, labels = panels[0].get_legend_handles_labels()
  canvas.legend(handles, labels, ncols=min(3, len(labels)), **LEGEND_BELOW)
  return canvas


def plot_heldout(records: Records) -> Canvas | None:
  """Held-out loss of a single run by tokens, one line per extension that was measured."""
  if len(records.runs) != 1:
    return None
  (run,) = records.runs.values()
  extensions = sorted({record["extension"] for record in run.heldout})
  if not extensions:
    return None
  canvas, axes = plt.subplots(figsize=(8.2, 3.9))
  shades = plt.colormaps["viridis"](np.linspace(0, 0.8, len(extensions)))
  for extension, color in zip(extensions, shades, strict=True):
    _draw(axes, heldout_curve(run, extension), Look(to_hex(color), "."), len(extensions), f"{extension:g}×")
  axes.set_ylabel("held-out loss (nats per token)")
  token_axis(axes, "training tokens of the run")
  axes.legend(title="length, as a multiple of the training context")
  return canvas
