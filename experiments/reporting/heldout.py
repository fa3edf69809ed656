"""The held-out loss of runs and arms during training, and its differences, with intervals over documents."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from experiments.plan import Arm
from experiments.reporting import arms
from experiments.reporting.records import Records, Run
from experiments.reporting.spread import spread


class Curve(NamedTuple):
  """A curve over the tokens of a run or of an arm."""

  steps_N: np.ndarray  # of the run that was measured
  tokens_N: np.ndarray
  losses_N: np.ndarray  # nats per token
  # Of each point: the losses of groups of documents; empty where the records lack them.
  groups: tuple[Sequence[float], ...]

  def __bool__(self) -> bool:
    return bool(len(self.tokens_N))

  @property
  def ends_N2(self) -> np.ndarray:
    """The 95 % interval over documents, NaN where the records lack losses by group of documents."""
    ends = [_ends(*point) for point in zip(self.losses_N.tolist(), self.groups, strict=True)]
    return np.array(ends).reshape(-1, 2)


EMPTY = Curve(np.zeros(0, int), np.zeros(0), np.zeros(0), ())


def heldout_curve(run: Run, extension: float = 1) -> Curve:
  """The held-out loss at `extension` times the training context."""
  tokens, losses, groups = run.heldout_tokens(), run.heldout_losses(extension), run.heldout_groups(extension)
  steps = [step for step in losses if step in tokens]
  tokens_N, losses_N = (np.array([found[step] for step in steps], float) for found in (tokens, losses))
  return Curve(np.array(steps, int), tokens_N, losses_N, tuple(groups.get(step, []) for step in steps))


def gap_curve(records: Records, run: Run) -> Curve:
  """The held-out loss in context less the control's, at the steps where both were measured; empty without a control.

  Where both runs read the same documents, the interval is that of the paired differences.
  """
  control = arms.control_of(records, run)
  if control is None or control is run or arms.is_control(run):
    return EMPTY
  return _less(heldout_curve(run), heldout_curve(control), "steps_N", paired=_choice(run) == _choice(control))


def arm_curves(records: Records) -> dict[Arm, Curve]:
  """The held-out loss in context over the tokens of whole arms, from scratch to their ends.

  Empty for a study that does not compare runs from scratch (`arms.base_of`), and without arms of which a run lacks a
  curve.
  """
  if arms.base_of(records) is None:
    return {}
  curves = {arm: _of_arm(records, arm) for arm in arms.last_runs(records).values()}
  return {arm: curve for arm, curve in curves.items() if len(curve.tokens_N) > 1}


def arm_gaps(records: Records, label: str | None = None) -> dict[Arm, Curve]:
  """`arm_curves` less the curve of `arms.base_of`, at the tokens where both were measured."""
  curves, base = arm_curves(records), arms.base_of(records, label)
  theirs = next((arm for arm in curves if base is not None and arm.runs == (base.name,)), None)
  if theirs is None:
    return {}

  def choices(arm: Arm) -> set[object]:
    return {_choice(records.runs[name]) for name in arm.runs}

  gaps = {
    arm: _less(curve, curves[theirs], "tokens_N", paired=choices(arm) == choices(theirs))
    for arm, curve in curves.items()
    if arm is not theirs
  }
  return {arm: gap for arm, gap in gaps.items() if len(gap.tokens_N) > 1}


def _of_arm(records: Records, arm: Arm) -> Curve:
  """The curve of each run up to where the next one starts; empty if a curve or a start is not known."""
  starts = [records.offset(arm, position) for position in range(len(arm.runs))]
  curves = [heldout_curve(records.runs[name]) for name in arm.runs]
  if None in starts or not all(curves) or not arms.is_from_scratch(records.runs[arm.runs[0]]):
    return EMPTY
  parts = []
  for curve, start, end in zip(curves, starts, [*starts[1:], None], strict=True):
    moved = curve._replace(tokens_N=curve.tokens_N + start)
    parts.append(moved if end is None else _at(moved, np.flatnonzero(moved.tokens_N < end)))
  return Curve(
    np.concatenate([part.steps_N for part in parts]),
    np.concatenate([part.tokens_N for part in parts]),
    np.concatenate([part.losses_N for part in parts]),
    tuple(groups for part in parts for groups in part.groups),
  )


def _at(curve: Curve, places_M: np.ndarray) -> Curve:
  """The points of a curve at some places."""
  groups = tuple(curve.groups[place] for place in places_M)
  return Curve(curve.steps_N[places_M], curve.tokens_N[places_M], curve.losses_N[places_M], groups)


def _less(curve: Curve, base: Curve, by: Literal["steps_N", "tokens_N"], *, paired: bool) -> Curve:
  """The differences where both have a point; `paired`: both read the same documents, so groups are subtracted too."""
  ours_N, theirs_N = getattr(curve, by), getattr(base, by)
  _, places_M, base_places_M = np.intersect1d(ours_N, theirs_N, assume_unique=True, return_indices=True)
  mine, other = _at(curve, places_M), _at(base, base_places_M)
  groups = tuple(
    [loss - less for loss, less in zip(*pair, strict=True)] if paired and len(pair[0]) == len(pair[1]) else []
    for pair in zip(mine.groups, other.groups, strict=True)
  )
  return mine._replace(losses_N=mine.losses_N - other.losses_N, groups=groups)


def _choice(run: Run) -> object:
  """The settings that a run's held-out documents depend on, besides tokenizer and data, which a study's runs share."""
  config = run.config
  return None if config is None else (config.eval_documents, max(config.eval_extensions), config.data.context)


def _ends(value: float, groups: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of a mean over documents from the means of groups, by Student's t."""
  found = spread(groups) if groups and np.isfinite(groups).all() else None
  if found is None or found.low is None or found.high is None:
    return np.nan, np.nan
  half = (found.high - found.low) / 2  # centred on `value`, as groups may differ by one document
  return value - half, value + half
