"""A study over its seeds: every figure once per seed, and how the study was made."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from drope_jax.errors import ReportError
from drope_jax.evaluate.coefficient import FIT_TASK
from drope_jax.evaluate.figures import BETA, LOSS, At, Figure
from experiments.plan import Row
from experiments.reporting import arms, study_command
from experiments.reporting.heldout import Curve, arm_curves, arm_gaps, gap_curve
from experiments.reporting.records import Measured, Part, Records
from experiments.reporting.study_command import StudyCommand

HELDOUT = "heldout"  # the task of held-out losses in context while training
STEP, TOKENS = "step", "tokens"  # what they are by: steps of a recalibration, or training tokens of a whole arm
GAP = "loss_less_control"  # likewise less the control's, kept for a single seed: its interval is paired over documents
# Parts that are not kept, as they would make up most of the file; the reports of the seeds draw them.
_TOO_FINE = {"position", "depth", BETA}


class Place(NamedTuple):
  """What a figure is of."""

  run: str
  method: str
  task: str
  context: int  # tokens
  metric: str
  by: str | None = None
  at: At = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making:
  """How a study was made."""

  title: str
  command: str
  machine: str
  date: str  # as 2026-11-26
  commit: str  # of this repository; empty if it is not known
  versions: dict
  seconds: float | None  # per seed, on average
  parameters: int | None  # of the model
  tokens: float | None  # training tokens in all runs of a seed

  @property
  def study(self) -> StudyCommand:
    """The study that the command runs."""
    return study_command.parse(self.command)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """A study over its seeds."""

  making: Making
  train_context: int  # tokens
  seeds: tuple[int, ...]
  rows: tuple[Row, ...]
  kinds: Mapping[str, str]  # arms.kind of each run
  controls: Mapping[str, str]  # by run, the label of the row that its rows are compared with
  figures: Mapping[Place, tuple[Figure, ...]]  # one per seed
  sweeps: tuple[Mapping[str, float], ...] = ()  # runs that differ in their peak learning rate alone, with that rate

  def extension(self, context: float) -> float:
    return context / self.train_context

  @property
  def tasks(self) -> list[str]:
    """Every task that models were measured on, in the order of the records."""
    return [task for task in dict.fromkeys(place.task for place in self.figures) if task not in (HELDOUT, FIT_TASK)]

  def metrics(self, task: str) -> list[str]:
    """The metrics of a task, its main metric first; without those of parts alone."""
    return list(dict.fromkeys(place.metric for place in self.figures if place.task == task and place.by is None))

  def contexts(self, task: str) -> list[int]:
    """The lengths of a task, ascending."""
    return sorted({place.context for place in self.figures if place.task == task})

  def at(self, row: Row, task: str, context: int, metric: str) -> tuple[Figure, ...] | None:
    """The figure of a row as a whole, once per seed."""
    return self.figures.get(Place(row.run, row.method, task, context, metric))

  def values(self, row: Row, task: str, context: int, metric: str) -> list[float] | None:
    found = self.at(row, task, context, metric)
    return None if found is None else [figure.value for figure in found]

  def measured_rows(self, task: str, metric: str) -> list[Row]:
    """The rows that have this metric at any length."""
    return [row for row in self.rows if any(self.at(row, task, c, metric) for c in self.contexts(task))]

  def control(self, row: Row) -> Row | None:
    """The row that a row is compared with; None if that is the row itself, or there is none."""
    label = self.controls.get(row.run)
    return next((other for other in self.rows if other.label == label and other != row), None)

  def curves(self, by: str = STEP) -> dict[str, dict[float, list[float]]]:
    """The held-out loss in context, one value per seed, of every run that has more than one point.

    Args:
      by: STEP for recalibrations, TOKENS for the arms, from scratch on, that the runs end.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for place, figures in self.figures.items():
      if (place.task, place.metric, place.by) == (HELDOUT, LOSS, by) and isinstance(place.at, int | float):
        found.setdefault(place.run, {})[place.at] = [figure.value for figure in figures]
    return {run: dict(sorted(curve.items())) for run, curve in found.items() if len(curve) > 1}

  @property
  def base(self) -> str | None:
    """The run from scratch that whole arms are compared with: the control of the rows if it is one, else the first."""
    scratch = [run for run in self.curves(TOKENS) if self.kinds.get(run) == arms.SCRATCH]
    controls = {row.run for row in self.rows if row.label in self.controls.values()}
    return next((run for run in scratch if run in controls), next(iter(scratch), None))

  def coefficients(self) -> dict[str, tuple[Figure, ...]]:
    """By run, the fitted c of the temperature, one per seed."""
    return {p.run: found for p, found in self.figures.items() if (p.task, p.metric) == (FIT_TASK, "c")}


def summarized(studies: Sequence[Records], making: Making, control: str | None = None) -> Summary:
  """The figures of workdirs of one study with different seeds.

  Args:
    control: the label of the row that all others are compared with. By default a run is compared with its control
      (`arms.control_of`), or else with the first control of the study; without any control, with the first run from
      scratch.

  Raises:
    ReportError: two workdirs have the same seed or are of different studies, there is no such row, or one workdir lacks
      a figure that another has.
  """
  studies = sorted(studies, key=lambda study: study.seed)
  seeds = tuple(study.seed for study in studies)
  if len(set(seeds)) < len(seeds):
    raise ReportError(f"seeds are {list(seeds)}; a spread needs at least two, all different")
  first = studies[0]
  for study in studies[1:]:
    _check_same(first, study)
  figures: dict[Place, tuple[Figure, ...]] = {}
  for (run, method, task), by_context in first.measured.items():
    for context, here in sorted(by_context.items()):
      for part in _kept(task, here):
        found = [study.measured.get((run, method, task), {}).get(context) for study in studies]
        values = [None if one is None else one.figures.get(part) for one in found]
        missing = next((study for study, value in zip(studies, values, strict=True) if value is None), None)
        if missing is None:
          figures[Place(run, method, task, context, *part)] = tuple(value for value in values if value is not None)
        elif part[1] is None:
          label = next((row.label for row in first.rows if (row.run, row.method) == (run, method)), run)
          raise ReportError(f"{missing.directory}: no {part[0]} of {label} in {task} at {context} tokens")
  for run in first.runs:
    figures |= _shared(run, first.train_context, STEP, [_recovery(study, run) for study in studies])
  by_tokens = [_by_tokens(study) for study in studies]
  for run in by_tokens[0]:
    figures |= _shared(run, first.train_context, TOKENS, [found.get(run, {}) for found in by_tokens])
  controls = _controls(first, control)
  if len(studies) == 1:
    figures |= {place: (figure,) for place, figure in _gaps(first, controls, control).items()}
  measured = {(place.run, place.method) for place in figures}
  return Summary(
    making=making,
    train_context=first.train_context,
    seeds=seeds,
    rows=tuple(row for row in first.rows if (row.run, row.method) in measured),
    kinds={name: arms.kind(run) for name, run in first.runs.items()},
    controls=controls,
    figures=figures,
    sweeps=tuple(arms.rate_sweeps(first)),
  )


def _check_same(first: Records, study: Records) -> None:
  """Raises ReportError if a study differs from the first one, or has a figure that the first one lacks."""
  if study.train_context != first.train_context:
    raise ReportError(
      f"{study.directory}: its training context is {study.train_context}, that of {first.directory} "
      f"{first.train_context}; seeds are of one study"
    )
  for name, run in first.runs.items():
    other = study.runs.get(name)
    if other is None or None in (run.config, other.config):  # has not begun, or is pretrained
      continue
    if run.model != other.model:
      said = f"{name} has another model than in {first.directory}"
      raise ReportError(f"{study.directory}: {said}; seeds are of one study")
  for (run_name, method, task), by_context in study.measured.items():
    for context, here in by_context.items():
      there = first.measured.get((run_name, method, task), {}).get(context)
      lacking = [metric for metric in here.whole() if there is None or metric not in there.whole()]
      if lacking:
        raise ReportError(
          f"{first.directory}: no {lacking[0]} of {run_name}, {method} in {task} at {context} tokens, which "
          f"{study.directory} has"
        )


def _kept(task: str, found: Measured) -> Iterable[Part]:
  """The figures that a summary keeps, the task's main figure first."""
  whole = [part for part in found.figures if part[1] is None and (part[0] != BETA or task == FIT_TASK)]
  return [*whole, *(part for part in found.figures if part[1] is not None and part[1] not in _TOO_FINE)]


def _recovery(study: Records, run: str) -> dict[int, float]:
  """By step, the held-out loss in context of a run that started from another's weights; empty for others."""
  if run not in study.runs or study.runs[run].transition is None:
    return {}
  return study.runs[run].heldout_losses()


def _by_tokens(study: Records) -> dict[str, dict[int, float]]:
  """By the run that ends an arm, its held-out loss in context by tokens (`arm_curves`)."""
  curves = arm_curves(study)
  return {
    arm.runs[-1]: dict(zip(map(round, curve.tokens_N.tolist()), curve.losses_N.tolist(), strict=True))
    for arm, curve in curves.items()
  }


def _shared(run: str, context: int, by: str, curves: Sequence[Mapping[int, float]]) -> dict[Place, tuple[Figure, ...]]:
  """The points of a run's curve that every seed has."""
  shared = [at for at in curves[0] if all(at in curve for curve in curves)]
  return {
    Place(run, "", HELDOUT, context, LOSS, by, at): tuple(
      Figure(LOSS, curve[at], 0, better="lower") for curve in curves
    )
    for at in shared
  }


def _gaps(study: Records, controls: Mapping[str, str], label: str | None) -> dict[Place, Figure]:
  """The difference of each curve from what it is compared with, where it has an interval over documents."""
  found: dict[Place, Figure] = {}
  for name, run in study.runs.items():
    own = arms.control_of(study, run)
    if run.transition is not None and own is not None and own.name in _runs_of(study, controls.get(name)):
      found |= _of_gap(study, name, STEP, gap_curve(study, run))
  for arm, curve in arm_gaps(study, label).items():
    found |= _of_gap(study, arm.runs[-1], TOKENS, curve)
  return found


def _of_gap(study: Records, run: str, by: str, curve: Curve) -> dict[Place, Figure]:
  found = {}
  where = curve.steps_N if by == STEP else curve.tokens_N
  for at, gap, (low, high) in zip(*(x.tolist() for x in (where, curve.losses_N, curve.ends_N2)), strict=True):
    if math.isfinite(low) and math.isfinite(high):
      place = Place(run, "", HELDOUT, study.train_context, GAP, by, round(at))
      found[place] = Figure(GAP, gap, 0, low, high, better="lower")
  return found


def _runs_of(study: Records, label: str | None) -> set[str]:
  return {row.run for row in study.rows if row.label == label}


def _controls(study: Records, label: str | None) -> dict[str, str]:
  """By run, the label of the row that its rows are compared with."""
  if label is not None and label not in {row.label for row in study.rows}:
    raise ReportError(f"--control is {label!r}; rows: {', '.join(row.label for row in study.rows)}")
  main = arms.main_control(study)
  found = {}
  for name, run in study.runs.items():
    own = arms.control_of(study, run)
    row = next((row for row in study.rows if own is not None and row.plain and row.run == own.name), main)
    if label is not None or row is not None:
      found[name] = label if label is not None else row.label if row is not None else ""
  return found
