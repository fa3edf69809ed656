"""What the arms of a study are according to their configs: controls, drops, other transitions, runs from scratch."""

import re
from collections.abc import Iterable

from drope_jax.evaluate.methods import METHODS, allowed_methods
from drope_jax.markdown import code, plain
from drope_jax.transitions import Transition
from experiments.plan import Arm, Row
from experiments.reporting.records import Records, Run

CONTROL, SCRATCH = "control", "from scratch"
_KINDS = {"Keep": CONTROL, "Drop": "DroPE"}  # other transitions are called by their class name, as "partial drop"


def kind(run: Run) -> str:
  """The kind of a run in one or two words: "control", "DroPE", "from scratch", or the name of its transition."""
  if run.transition is None:
    return SCRATCH
  name = type(run.transition).__name__
  return _KINDS.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def is_control(run: Run) -> bool:
  """Whether a run started from another's weights and kept the embedding."""
  return kind(run) == CONTROL


def is_from_scratch(run: Run) -> bool:
  """Whether it began from no other's weights; False for a run that has not begun."""
  return run.config is not None and kind(run) == SCRATCH


def control_of(records: Records, run: Run) -> Run | None:
  """The run that started from the same weights and kept the embedding; of several, one with as many steps.

  A control may be its own control. A run from scratch has one only in a study without any run that kept its embedding:
  the first run from scratch (`base_of`).
  """
  controls = [one for one in records.runs.values() if is_control(one)]
  if not controls and is_from_scratch(run):
    return base_of(records)
  start = _start(run)
  controls = [one for one in controls if start is not None and _start(one) == start]
  return next((one for one in controls if _steps(one) == _steps(run)), next(iter(controls), None))


def base_of(records: Records, label: str | None = None) -> Run | None:
  """The run from scratch that arms are compared with at the same tokens; None unless the study has several.

  It is the run of the row with this label if that is from scratch, otherwise the first of the study's arms.
  """
  ends = [records.runs[arm.runs[0]] for arm in records.arms if len(arm.runs) == 1]
  scratch = [run for run in ends if is_from_scratch(run)]
  if len(scratch) < 2:
    return None
  named = {row.run for row in records.rows if row.label == label}
  return next((run for run in scratch if run.name in named), scratch[0])


def main_control(records: Records) -> Row | None:
  """The row that others are compared with: the first control as it was trained, preferably one that was trained on.

  Without any control it is the row of `base_of`.
  """
  runs, base = records.runs, base_of(records)
  plain_rows = [row for row in records.rows if row.plain and row.run in runs]
  rows = [row for row in plain_rows if is_control(runs[row.run])]
  rows.sort(key=lambda row: runs[row.run].pretrained is not None)
  rows += [row for row in plain_rows if base is not None and row.run == base.name]
  return next(iter(rows), None)


def _start(run: Run) -> tuple[str | int | None, ...] | None:
  """Identifies the weights a run started from, whatever path a shared run knows them by; None: from scratch."""
  if run.pretrained is not None:
    return (run.pretrained.checkpoint, None)
  init = None if run.config is None else run.config.init
  if init is None:
    return None
  return (init.source,) if init.source is not None else (init.checkpoint, init.step)


def _steps(run: Run) -> int:
  return 0 if run.config is None else run.config.steps


def last_runs(records: Records) -> dict[str, Arm]:
  """The last runs of all arms, each with the first arm that it ends."""
  found: dict[str, Arm] = {}
  for arm in records.arms:
    found.setdefault(arm.runs[-1], arm)
  return found


def about(transition: Transition) -> str:
  """The first sentence of a transition's docstring, followed by its settings."""
  sentence = re.split(r"(?<=[.:])\s", " ".join((type(transition).__doc__ or "").split()))[0].rstrip(".:")
  sentence = sentence[:1].lower() + sentence[1:]
  settings = str(transition).partition("(")[2].rstrip(")")
  return sentence if not settings else f"{sentence} ({settings})"


def described(records: Records, row: Row) -> str:
  """A description of a row: its run, and what the method does to it."""
  run = records.runs.get(row.run)
  parts = [code(row.run) if run is None else _run(run)]
  text, _, c = row.method.partition("+")
  name, _, number = text.partition(":")
  if not row.plain:
    parts.append(f"with {METHODS.get(name, f'method {code(name)}')}" + (f", {plain(number)}" if number else ""))
  if c:
    parts.append(f"at β = 1 + {plain(c)}·ln s")
  return "; ".join(parts)


def _run(run: Run) -> str:
  model = f"the pretrained model ({code(run.name)})" if run.pretrained is not None else code(run.name)
  if run.pretrained is not None and is_control(run):
    return f"{model} as it is"
  names = {CONTROL: "the control", "DroPE": "DroPE, the paper's method"}
  start = SCRATCH
  if run.transition is not None:
    start = f"{names.get(kind(run), f'{kind(run)}, not the method of the paper')}: {about(run.transition)}"
  untrained = ", not recalibrated" if run.pretrained is not None else ""
  embedding = "" if run.model is None or run.transition is not None else f", {embedding_of(run)}"
  return f"{model}, {start}{embedding}{untrained}"


def embedding_of(run: Run) -> str:
  """The positional embedding of a run's model, as a value."""
  if run.model is None:
    return "an unknown embedding"
  if allowed_methods(run.model)[0] == "nope":
    return "without any positional embedding"
  return f"with {run.model.positions}"


def first_drop(records: Records, arms: Iterable[Arm]) -> float | None:
  """The tokens after which an arm first changes its embedding; None if no arm does."""
  found = []
  for arm in arms:
    for position, name in enumerate(arm.runs):
      run, start = records.runs[name], records.offset(arm, position)
      if position and run.transition is not None and not is_control(run) and start is not None:
        found.append(start)
  return min(found, default=None)
