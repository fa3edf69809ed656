"""The records that a report is written from: study.json, the runs' records and results.jsonl, read and checked."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.errors import ConfigError, ReportError, ResultsError
from drope_jax.evaluate import results
from drope_jax.evaluate.coefficient import FIT_TASK
from drope_jax.evaluate.figures import BETA, BITS_PER_BYTE, At, Figure, mean_figure
from drope_jax.evaluate.results import Measurement, Result
from drope_jax.files import read_json_lines
from drope_jax.metrics import is_training, objective_flops_per_token
from drope_jax.parameters import count_parameters
from drope_jax.serialization import from_dict, load_config
from drope_jax.transitions import Transition
from drope_jax.workdir import run_name
from experiments.plan import Arm, Pretrained, Row, run_directory
from experiments.reporting.stored import checked_record, read_description, read_json

Part = tuple[str, str | None, At]  # metric, by, at of a figure
_MODEL_SETTINGS = {"step", "weights", "beta"}  # settings that identify the model; all others identify the samples


class Measured(NamedTuple):
  """The figures of a row on a task at one length."""

  figures: dict[Part, Figure]
  samples: dict[str, Any]  # the settings that identify the samples

  def whole(self) -> dict[str, Figure]:
    """By metric, the figures that are not parts of others, the task's main metric first; without beta."""
    return {metric: figure for (metric, by, _), figure in self.figures.items() if by is None and metric != BETA}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's config.json and metrics.jsonl; None and empty for a run that has not begun or is pretrained."""

  name: str
  config: TrainConfig | None
  metrics: tuple[dict[str, Any], ...]  # one record per logged step of training
  heldout: tuple[dict[str, Any], ...]  # one record per evaluation during training and extension
  model: ModelConfig | None  # that it trains, or that the pretrained checkpoint holds
  pretrained: Pretrained | None = None

  @property
  def begun(self) -> bool:
    return self.config is not None or self.pretrained is not None

  @property
  def last(self) -> dict[str, Any] | None:
    return self.metrics[-1] if self.metrics else None

  @property
  def tokens(self) -> int | None:
    return None if self.last is None else self.last["tokens"]

  @property
  def parameters(self) -> int | None:
    return None if self.model is None else count_parameters(self.model)

  @property
  def transition(self) -> Transition | None:
    """What happened to the embedding at its start; None: it started from scratch, or has not begun."""
    if self.pretrained is not None:
      return self.pretrained.transition
    return None if self.config is None or self.config.init is None else self.config.init.transition

  def tokens_at(self, step: int | None) -> float | None:
    """Tokens trained on up to `step` (None: the last step), interpolated between logged steps."""
    if step is None or self.last is None:
      return self.tokens
    steps, tokens = ([0, *(record[name] for record in self.metrics)] for name in ("step", "tokens"))
    return None if step > steps[-1] else float(np.interp(step, steps, tokens))

  @property
  def flops(self) -> float | None:
    """FLOPs of the steps so far, including a teacher's forward passes; None if they cannot be known."""
    if self.config is None or self.model is None or self.last is None:
      return None
    objective, context, steps = self.config.objective, self.config.data.context, range(self.last["step"])
    whose, teacher = objective.frozen(), None
    if whose == "init":
      teacher = self.config.init.model if self.config.init is not None else None
    elif whose is not None:
      teacher = _recorded_model(Path(whose))
    if whose is not None and teacher is None:
      return None
    each = objective_flops_per_token(objective, self.model, teacher, context, steps, self.config.steps)
    return self.last["tokens"] * each

  def heldout_losses(self, extension: float = 1) -> dict[int, float]:
    """By step, the held-out loss at `extension` times the training context, where it is finite."""
    found = {one["step"]: one["loss"] for one in self.heldout if one["extension"] == extension}
    return {step: loss for step, loss in sorted(found.items()) if math.isfinite(loss)}

  def heldout_tokens(self) -> dict[int, float]:
    """By step, the tokens of this run when the held-out loss was measured, where they are known."""
    # Runs before 0.1 did not record tokens beside the loss.
    found = {one["step"]: one.get("tokens", self.tokens_at(one["step"])) for one in self.heldout}
    return {step: tokens for step, tokens in found.items() if tokens is not None}

  def heldout_groups(self, extension: float = 1) -> dict[int, list[float]]:
    """By step, the held-out losses of groups of documents; empty in older records."""
    return {one["step"]: one.get("loss_by_group", []) for one in self.heldout if one["extension"] == extension}


@dataclasses.dataclass(frozen=True)
class Records:
  """Everything a report is written from: a study, a single run, or an evaluation by itself."""

  directory: Path
  title: str
  train_context: int  # C, in tokens
  rows: tuple[Row, ...] = ()
  measured: dict[tuple[str, str, str], dict[int, Measured]] = dataclasses.field(default_factory=dict)
  arms: tuple[Arm, ...] = ()
  runs: dict[str, Run] = dataclasses.field(default_factory=dict)
  command: str = ""  # one line per command, if figures come from several
  seed: int = 0
  machine: str = ""
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  seconds: float | None = None
  spread: str = ""  # a sentence on how much other seeds differ, if that is known

  @property
  def trained(self) -> bool:
    """Whether anything was or will be trained."""
    return any(run.pretrained is None for run in self.runs.values())

  @property
  def tasks(self) -> list[str]:
    """Every task that was measured, in the order of the records, without the temperature fit."""
    return [task for task in dict.fromkeys(task for _, _, task in self.measured) if task != FIT_TASK]

  def at(self, row: Row, task: str, context: int) -> Measured | None:
    """The measurement of a row on a task at a length."""
    return self.measured.get((row.run, row.method, task), {}).get(context)

  def figure(self, row: Row, task: str, context: int, part: Part) -> Figure | None:
    found = self.at(row, task, context)
    return None if found is None else found.figures.get(part)

  def metrics(self, task: str) -> list[str]:
    """The metrics of a task, its main metric first; without those of parts alone."""
    found = [one for row in self.rows for one in self.measured.get((row.run, row.method, task), {}).values()]
    metrics = list(dict.fromkeys(metric for one in found for metric in one.whole()))
    if BITS_PER_BYTE in metrics and not self.same_tokens(task):
      metrics.sort(key=lambda metric: metric != BITS_PER_BYTE)
    return metrics

  def same_tokens(self, task: str) -> bool:
    """Whether all rows read the same tokens, so that their losses per token can be compared."""
    for context in self.contexts(task):
      found = [one for row in self.rows if (one := self.at(row, task, context)) is not None]
      texts = {tuple((name, value) for name, value in one.samples.items() if name.endswith(".text")) for one in found}
      if len(texts) > 1:
        return False
    return True

  def contexts(self, *tasks: str) -> list[int]:
    """The lengths at which any row was measured, ascending."""
    return sorted({c for (_, _, task), by_context in self.measured.items() if task in tasks for c in by_context})

  def extension(self, context: float) -> float:
    return context / self.train_context

  def measured_model(self, name: str) -> ModelConfig | None:
    """The model that a run is measured with: of a pretrained checkpoint the one that its transition makes."""
    run = self.runs.get(name)
    if run is None or run.model is None or run.pretrained is None:
      return None if run is None else run.model
    return run.pretrained.transition.apply(run.model, self.train_context)

  def offset(self, arm: Arm, position: int) -> float | None:
    """Tokens the arm has seen before its run at `position` begins; None if they are not recorded."""
    total = 0.0
    for before, name in zip(arm.runs[:position], arm.runs[1 : position + 1], strict=True):
      config = self.runs[name].config
      step = config.init.step if config is not None and config.init is not None else None
      tokens = self.runs[before].tokens_at(step)
      if tokens is None:
        return None
      total += tokens
    return total

  def arm_tokens(self, arm: Arm) -> float | None:
    """Training tokens of the whole arm."""
    before, last = self.offset(arm, len(arm.runs) - 1), self.runs[arm.runs[-1]].tokens
    return None if before is None or last is None else before + last


def read_study(directory: Path) -> Records:
  """Reads the workdir of a study; runs need not have begun. A study of figures alone has no results.jsonl.

  Raises:
    ReportError: a file is missing, empty or malformed.
  """
  said = read_description(directory / "study.json")
  measured = _measured(_read_results(directory / "results.jsonl")) if said.rows else {}
  names = dict.fromkeys(name for arm in said.arms for name in arm.runs)
  return Records(
    directory=directory,
    title=said.title,
    command=said.command,
    seed=said.seed,
    train_context=said.train_context,
    machine=said.machine,
    versions=said.versions,
    seconds=said.seconds,
    spread=said.spread,
    arms=said.arms,
    rows=_with_others(said.rows, measured),
    runs={name: _read_run(run_directory(directory, name), name, said.pretrained.get(name)) for name in names},
    measured=measured,
  )


def read_evaluation(directory: Path) -> Records:
  """Reads the output of `experiments.evaluate`, a results.jsonl alone, without arms or runs.

  Raises:
    ReportError: the file is missing, empty or malformed.
  """
  found = _read_results(directory / "results.jsonl")
  measured, last = _measured(found), found[-1]
  rows = _with_others((), measured)
  if len({row.run for row in rows}) == 1:
    rows = tuple(dataclasses.replace(row, label=row.method) for row in rows)
  return Records(
    directory=directory,
    title="Measured: " + ", ".join(dict.fromkeys(row.run for row in rows)),
    command="\n".join(dict.fromkeys(one.command for one in found if one.command)),
    seed=last.seed,
    train_context=round(last.context / last.extension),
    rows=rows,
    measured=measured,
  )


def read_run(directory: Path) -> Records:
  """Reads the workdir of a single run, with the results of an evaluation in it.

  Raises:
    ReportError: a file is missing, empty or malformed.
  """
  name = run_name(directory)
  run = _read_run(directory, name, None)
  if run.config is None:
    raise ReportError(f"{directory / 'config.json'}: is missing; is this the workdir of a run?")
  if not run.metrics and not (directory / "results.jsonl").exists():
    raise ReportError(f"{directory / 'metrics.jsonl'}: holds no record; nothing has been trained yet")
  seen = read_evaluation(directory) if (directory / "results.jsonl").exists() else None
  return Records(
    directory=directory,
    title=f"Run {name}",
    train_context=run.config.data.context,
    seed=run.config.seed,
    versions=_versions(directory / "config.json"),
    arms=(Arm(name, (name,)),),
    runs={name: run},
    rows=() if seen is None else seen.rows,
    measured={} if seen is None else seen.measured,
  )


def _versions(path: Path) -> dict[str, str]:
  """The versions of libraries in a config.json; none in one that does not record them."""
  found = read_json(path).get("versions", {})
  if not isinstance(found, dict):
    raise ReportError(f"{path}: versions is {found!r}; it must be an object")
  return found


def _read_run(directory: Path, name: str, pretrained: dict[str, Any] | None) -> Run:
  if pretrained is not None:
    fields = dict(pretrained)
    try:
      model = from_dict(ModelConfig, fields.pop("model", {}))
      return Run(name, None, (), (), model, from_dict(Pretrained, fields))
    except ConfigError as error:
      raise ReportError(f"study.json: pretrained.{name}: {error}") from error
  path, metrics = directory / "config.json", directory / "metrics.jsonl"
  try:
    config = load_config(TrainConfig, path) if path.exists() else None
  except ConfigError as error:
    raise ReportError(str(error)) from error
  lines = read_json_lines(metrics, torn="skip") if metrics.exists() else []
  records = [checked_record(metrics, number, record) for number, record in enumerate(lines, 1)]
  training = tuple(filter(is_training, records))
  heldout = tuple(record for record in records if record.get("kind") == "eval")
  return Run(name, config, training, heldout, None if config is None else config.model)


def _recorded_model(workdir: Path) -> ModelConfig | None:
  """The model of a run that does not belong to the study; None if its config.json no longer exists."""
  path = workdir / "config.json"
  return load_config(TrainConfig, path).model if path.exists() else None


def _read_results(path: Path) -> list[Result]:
  try:
    found = results.read(path)
  except ResultsError as error:
    raise ReportError(str(error)) from error
  if not found:
    raise ReportError(f"{path}: holds no figure; nothing has been evaluated yet")
  empty = next((number for number, record in enumerate(found, 1) if record.n < 1), None)
  if empty is not None:
    raise ReportError(f"{path}:{empty}: n is {found[empty - 1].n}; a figure needs at least one sample")
  return found


def _measured(found: Sequence[Result]) -> dict[tuple[str, str, str], dict[int, Measured]]:
  """By run, method and task, then by length. If one was measured again, only its last settings count."""

  def place(record: Result) -> Measurement:
    return dataclasses.replace(record.measurement, settings=None)

  last = {place(record): record.settings for record in found}
  seeds: dict[tuple[str, str, str], dict[int, dict[int, list[Result]]]] = {}
  for record in found:
    if record.settings == last[place(record)]:
      by_context = seeds.setdefault((record.run, record.method, record.task), {})
      by_context.setdefault(record.context, {}).setdefault(record.seed, []).append(record)
  return {key: {c: _pooled(by_seed) for c, by_seed in by_context.items()} for key, by_context in seeds.items()}


def _pooled(by_seed: dict[int, list[Result]]) -> Measured:
  """The figures over the samples of all evaluation seeds."""
  parts: dict[Part, list[Figure]] = {}
  for records in by_seed.values():
    latest = {(record.metric, record.by, record.at): record.figure for record in records}
    for part, figure in latest.items():
      parts.setdefault(part, []).append(figure)
  settings = [records[-1].settings or {} for records in by_seed.values()]
  samples = {
    f"{seed}.{name}": value
    for seed, one in zip(by_seed, settings, strict=True)
    for name, value in one.items()
    if name not in _MODEL_SETTINGS
  }
  return Measured({part: _pool(figures) for part, figures in parts.items()}, samples)


def _pool(figures: Sequence[Figure]) -> Figure:
  """One figure from several; it has an interval if the values of all their samples were recorded."""
  first = figures[0]
  if len(figures) == 1:
    return first
  n = sum(figure.n for figure in figures)
  if all(figure.values for figure in figures):
    values = [value for figure in figures for value in figure.values or ()]
    return mean_figure(first.metric, values, n=n, lower_is_better=first.better == "lower")
  value = sum(figure.value * figure.n for figure in figures) / n
  return first._replace(value=value, n=n, low=None, high=None, values=None)


def _with_others(rows: Sequence[Row], measured: Iterable[tuple[str, str, str]]) -> tuple[Row, ...]:
  """The rows, and one more for each run and method that was measured without being named."""
  named = {(row.run, row.method) for row in rows}
  others = dict.fromkeys((run, method) for run, method, task in measured if task != FIT_TASK)
  return (*rows, *(Row(run, method, f"{run}, {method}") for run, method in others if (run, method) not in named))
