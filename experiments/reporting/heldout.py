"""The held-out loss of a run during training, and its difference from the control's, with intervals over documents."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.reporting import arms
from experiments.reporting.records import Records, Run
from experiments.reporting.spread import spread


class Curve(NamedTuple):
  """A curve over the tokens of a run; `ends_N2` is NaN where the records lack losses by group of documents."""

  steps_N: np.ndarray
  tokens_N: np.ndarray
  losses_N: np.ndarray  # nats per token
  ends_N2: np.ndarray  # of the 95 % interval over documents

  def __bool__(self) -> bool:
    return bool(len(self.tokens_N))


def heldout_curve(run: Run, extension: float = 1) -> Curve:
  """The held-out loss at `extension` times the training context."""
  return _curve(run, run.heldout_losses(extension), run.heldout_groups(extension))


def gap_curve(records: Records, run: Run) -> Curve:
  """The held-out loss in context less the control's, at the steps where both were measured; empty without a control.

  Where both runs read the same documents, the interval is that of the paired differences.
  """
  control = arms.control_of(records, run)
  if control is None or arms.is_control(run):
    return _curve(run, {}, {})
  theirs = control.heldout_losses()
  gaps = {step: loss - theirs[step] for step, loss in run.heldout_losses().items() if step in theirs}
  return _curve(run, gaps, _paired_groups(run, control))


def _paired_groups(run: Run, control: Run) -> dict[int, list[float]]:
  """By step, the differences of groups of documents; empty if the runs chose their documents differently."""
  if _choice(run) != _choice(control):
    return {}
  ours, theirs = run.heldout_groups(), control.heldout_groups()
  both = [step for step, groups in ours.items() if len(groups) == len(theirs.get(step, []))]
  return {step: [loss - base for loss, base in zip(ours[step], theirs[step], strict=True)] for step in both}


def _choice(run: Run) -> object:
  """The settings that a run's held-out documents depend on, besides tokenizer and data, which a study's runs share."""
  config = run.config
  return None if config is None else (config.eval_documents, max(config.eval_extensions), config.data.context)


def _curve(run: Run, values: Mapping[int, float], groups: Mapping[int, Sequence[float]]) -> Curve:
  tokens = run.heldout_tokens()
  steps = [step for step in values if step in tokens]
  ends_N2 = np.array([_ends(values[step], groups.get(step, [])) for step in steps]).reshape(-1, 2)
  tokens_N, values_N = (np.array([found[step] for step in steps], float) for found in (tokens, values))
  return Curve(np.array(steps, int), tokens_N, values_N, ends_N2)


def _ends(value: float, groups: Sequence[float]) -> tuple[float, float]:
  """The 95 % interval of a mean over documents from the means of groups, by Student's t."""
  found = spread(groups) if groups and np.isfinite(groups).all() else None
  if found is None or found.low is None or found.high is None:
    return np.nan, np.nan
  half = (found.high - found.low) / 2  # centred on `value`, as groups may differ by one document
  return value - half, value + half
