"""What an arm of a study is, as its runs' configs say: a control, a drop, another transition, or a run from scratch."""

import re
from collections.abc import Iterable

from drope_jax.evaluate.methods import METHODS, allowed_methods, is_as_trained
from drope_jax.markdown import code, plain
from drope_jax.transitions import PartialDrop, Transition
from experiments.plan import Arm, Row
from experiments.reporting import wording
from experiments.reporting.records import Records, Run

CONTROL, SCRATCH = "control", "from scratch"
_KINDS = {"Keep": CONTROL, "Drop": "DroPE"}  # others go by the words of their name, as "partial drop"
_NAMES = {"Replace": "another embedding", "KeepWindows": "RNoPE-SWA"}  # where these words would be no name


def kind(run: Run) -> str:
  """One or two words: "control", "DroPE", "partial drop", "from scratch"; that of a user's transition is its name."""
  if run.transition is None:
    return SCRATCH
  name = type(run.transition).__name__
  return _KINDS.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def is_control(run: Run) -> bool:
  """Whether the embedding was kept, by a run that went on from another's weights."""
  return kind(run) == CONTROL


def control_of(records: Records, run: Run) -> Run | None:
  """The run that went on from the same weights with the embedding kept, for as many steps if there are several.

  The first control of a start is its own; None for a run from scratch, or without a control.
  """
  start = _start(run)
  controls = [one for one in records.runs.values() if start is not None and is_control(one) and _start(one) == start]
  return next((one for one in controls if _steps(one) == _steps(run)), next(iter(controls), None))


def main_control(records: Records) -> Row | None:
  """The row that others are compared with: the first control as it was trained, one that was trained on if there is."""
  rows = [row for row in records.rows if row.plain and row.run in records.runs and is_control(records.runs[row.run])]
  return next((row for row in rows if records.runs[row.run].pretrained is None), next(iter(rows), None))


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


def described(records: Records, row: Row) -> str:
  """What a row is: its run, and what the method does to it."""
  run = records.runs.get(row.run)
  parts = [code(row.run) if run is None else _run(run)]
  text, _, c = row.method.partition("+")
  name, _, number = text.partition(":")
  if not is_as_trained(text):
    setting = f", {'c' if name == 'drope' else 'factor'} = {number}" if number else ""
    parts.append(f"with {METHODS.get(name, f'method {code(name)}')}{plain(setting)}")
  if c:
    parts.append(plain(f"at β = 1 + {c}·ln s"))
  return "; ".join(parts)


def _run(run: Run) -> str:
  model = f"the pretrained model ({code(run.name)})" if run.pretrained is not None else code(run.name)
  if run.pretrained is not None and is_control(run):
    return f"{model} as it is"
  if run.transition is None:
    return f"{model}, {SCRATCH}" + ("" if run.model is None else f", {embedding_of(run)}")
  changes = [] if run.config is None else wording.changes(run.config)
  changes += ["nothing is recalibrated"] if run.pretrained is not None else []
  words = [wording.transition(run.transition), *changes]
  return f"{model}, {plain(_whose(run, run.transition, bool(changes)))}: {plain('; '.join(words))}"


def _whose(run: Run, transition: Transition, changed: bool) -> str:
  """What a method is, and whether it is the paper's."""
  if is_control(run):
    return "a control of a variant" if changed else "the control"
  if wording.is_papers(transition):
    return "a variant of DroPE, not as in the paper" if changed else "DroPE, the paper's method"
  name = _NAMES.get(type(transition).__name__, kind(run))
  whose = "ours and not the paper's" if isinstance(transition, PartialDrop) else "not the paper's method"
  return f"{name}, {whose}"


def embedding_of(run: Run) -> str:
  """The positional embedding of a run's model, in words behind "trained"."""
  if run.model is None:
    return "an unknown embedding"
  if allowed_methods(run.model)[0] == "nope":
    return "without any positional embedding"
  return plain(f"with {wording.embedding(run.model.positions)}")


def first_drop(records: Records, arms: Iterable[Arm]) -> float | None:
  """Tokens of its arm after which the first run begins that changes the embedding; None if there is no such run."""
  found = []
  for arm in arms:
    for position, name in enumerate(arm.runs):
      run, start = records.runs[name], records.offset(arm, position)
      if position and run.transition is not None and not is_control(run) and start is not None:
        found.append(start)
  return min(found, default=None)
