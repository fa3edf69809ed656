"""What the arms of a study are according to their configs: controls, drops, other transitions, runs from scratch."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from drope_jax.config import TrainConfig
from drope_jax.evaluate.methods import METHODS, allowed_methods, is_as_trained
from drope_jax.markdown import code, plain
from drope_jax.transitions import PartialDrop, Transition
from experiments.plan import Arm, Row
from experiments.reporting import wording
from experiments.reporting.records import Records, Run

CONTROL, SCRATCH = "control", "from scratch"
_KINDS = {"Keep": CONTROL, "Drop": "DroPE"}  # other transitions are called by their class name, as "partial drop"
_NAMES = {"Replace": "another embedding", "KeepWindows": "RNoPE-SWA"}  # where the class name says too little


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
  """The run that started from the same weights and kept the embedding.

  Of several it is the first with as many steps, and among these with the same peak learning rate. A control with as
  many steps as an earlier one is compared with that at any rate; the first is its own control. A run from scratch has
  one only in a study without any run that kept its embedding: the first run from scratch (`base_of`).
  """
  controls = [one for one in records.runs.values() if is_control(one)]
  if not controls and is_from_scratch(run):
    return base_of(records)
  start = _start(run)
  controls = [one for one in controls if start is not None and _start(one) == start]
  alike = [one for one in controls if _steps(one) == _steps(run)]
  at_rate = next((one for one in alike if peak_rate(one) == peak_rate(run)), run)
  return at_rate if at_rate is not run else next(iter(alike or controls), None)


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


def peak_rate(run: Run) -> float | None:
  """The peak learning rate; None for a run that was not trained."""
  return None if run.config is None else run.config.optim.peak_lr


def rate_sweeps(records: Records) -> list[dict[str, float]]:
  """Runs whose configs differ in the peak learning rate alone: by run, its rate; of at least two rates each."""
  sweeps: list[tuple[TrainConfig, dict[str, float]]] = []
  for name, run in records.runs.items():
    if run.config is None:
      continue
    rate, config = run.config.optim.peak_lr, _without_rate(run.config)
    found = next((sweep for other, sweep in sweeps if other == config), None)
    if found is None:
      sweeps.append((config, {name: rate}))
    else:
      found[name] = rate
  return [sweep for _, sweep in sweeps if len(set(sweep.values())) > 1]


def _without_rate(config: TrainConfig) -> TrainConfig:
  """At a rate of 1, with file names for paths: a run that several studies share has those of the first."""
  data, init = config.data, config.init
  data = dataclasses.replace(data, directory=Path(data.directory).name, tokenizer=Path(data.tokenizer).name)
  if init is not None and init.source is not None:
    init = dataclasses.replace(init, checkpoint=init.source)
  return dataclasses.replace(config, optim=dataclasses.replace(config.optim, peak_lr=1.0), data=data, init=init)


def last_runs(records: Records) -> dict[str, Arm]:
  """The last runs of all arms, each with the first arm that it ends."""
  found: dict[str, Arm] = {}
  for arm in records.arms:
    found.setdefault(arm.runs[-1], arm)
  return found


def described(records: Records, row: Row) -> str:
  """A description of a row: its run, and what the method does to it."""
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
  if not run.begun:
    return f"{code(run.name)}, which has not begun"
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
  """The tokens after which an arm first changes its embedding; None if no arm does."""
  found = []
  for arm in arms:
    for position, name in enumerate(arm.runs):
      run, start = records.runs[name], records.offset(arm, position)
      if position and run.transition is not None and not is_control(run) and start is not None:
        found.append(start)
  return min(found, default=None)
