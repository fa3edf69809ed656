"""What an arm of a study is, as its runs' configs say: a control, a drop, another transition, or a run from scratch."""

import re
from collections.abc import Iterable

from drope_jax.evaluate.methods import METHODS, allowed_methods
from drope_jax.markdown import code, plain
from drope_jax.transitions import Transition
from experiments.plan import Arm, Row
from experiments.reporting.records import Records, Run

CONTROL, SCRATCH = "control", "from scratch"
_KINDS = {"Keep": CONTROL, "Drop": "DroPE"}  # others go by the words of their name, as "partial drop"


def kind(run: Run) -> str:
  """One or two words: "control", "DroPE", "partial drop", "from scratch"; that of a user's transition is its name."""
  if run.transition is None:
    return SCRATCH
  name = type(run.transition).__name__
  return _KINDS.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def is_control(run: Run) -> bool:
  """Whether the embedding was kept, by a run that went on from another's weights."""
  return kind(run) == CONTROL


def is_from_scratch(run: Run) -> bool:
  """Whether it began from no other's weights; False for a run that has not begun."""
  return run.config is not None and kind(run) == SCRATCH


def control_of(records: Records, run: Run) -> Run | None:
  """The run that went on from the same weights with the embedding kept, for as many steps if there are several.

  The first control of a start is its own. A run from scratch has a control only where no run of the study goes on from
  another's weights with the embedding kept: the first of those from scratch (`base_of`).
  """
  controls = [one for one in records.runs.values() if is_control(one)]
  if not controls and is_from_scratch(run):
    return base_of(records)
  start = _start(run)
  controls = [one for one in controls if start is not None and _start(one) == start]
  return next((one for one in controls if _steps(one) == _steps(run)), next(iter(controls), None))


def base_of(records: Records, label: str | None = None) -> Run | None:
  """What arms are compared with token by token: a run from scratch, where the study has several.

  It is the run of the row of this label, if that is one of them, otherwise the first of the study's arms.
  """
  ends = [records.runs[arm.runs[0]] for arm in records.arms if len(arm.runs) == 1]
  scratch = [run for run in ends if is_from_scratch(run)]
  if len(scratch) < 2:
    return None
  named = {row.run for row in records.rows if row.label == label}
  return next((run for run in scratch if run.name in named), scratch[0])


def main_control(records: Records) -> Row | None:
  """The row that others are compared with: the first control as it was trained, one that was trained on if there is.

  Without any control it is that of `base_of`.
  """
  runs, base = records.runs, base_of(records)
  plain_rows = [row for row in records.rows if row.plain and row.run in runs]
  rows = [row for row in plain_rows if is_control(runs[row.run])]
  rows.sort(key=lambda row: runs[row.run].pretrained is not None)
  rows += [row for row in plain_rows if base is not None and row.run == base.name]
  return next(iter(rows), None)


def _start(run: Run) -> tuple[str | int | None, ...] | None:
  """What weights a run began from; None: from scratch. Runs that studies share name the same ones by other paths."""
  if run.pretrained is not None:
    return (run.pretrained.checkpoint, None)
  init = None if run.config is None else run.config.init
  if init is None:
    return None
  return (init.source,) if init.source is not None else (init.checkpoint, init.step)


def _steps(run: Run) -> int:
  return 0 if run.config is None else run.config.steps


def last_runs(records: Records) -> dict[str, Arm]:
  """The run that ends each arm, with the first arm that it ends."""
  found: dict[str, Arm] = {}
  for arm in records.arms:
    found.setdefault(arm.runs[-1], arm)
  return found


def about(transition: Transition) -> str:
  """The first sentence of a transition's docstring, with its settings."""
  sentence = re.split(r"(?<=[.:])\s", " ".join((type(transition).__doc__ or "").split()))[0].rstrip(".:")
  sentence = sentence[:1].lower() + sentence[1:]
  settings = str(transition).partition("(")[2].rstrip(")")
  return sentence if not settings else f"{sentence} ({settings})"


def described(records: Records, row: Row) -> str:
  """What a row is: its run, and what the method does to it."""
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
  untrained = ", and nothing recalibrated" if run.pretrained is not None else ""
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
  """Tokens of its arm after which the first run begins that changes the embedding; None if there is no such run."""
  found = []
  for arm in arms:
    for position, name in enumerate(arm.runs):
      run, start = records.runs[name], records.offset(arm, position)
      if position and run.transition is not None and not is_control(run) and start is not None:
        found.append(start)
  return min(found, default=None)
