"""A study as its report sees it: study.json, the runs' records and results.jsonl, read and checked."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.errors import ConfigError, ReportError
from drope_jax.evaluate import results
from drope_jax.evaluate.measure import FIT_TASK
from drope_jax.files import read_json_lines
from drope_jax.metrics import is_training
from drope_jax.model import count_parameters
from drope_jax.serialization import from_dict, load_config
from drope_jax.transitions import Keep
from experiments.plan import ROLES, Arm, Pretrained, Row, run_directory

TEMPERATURE = "drope"  # the method, see drope_jax/evaluate/methods.py


class Figure(NamedTuple):
  """One measured figure, and over how many samples: tokens of a loss, prompts of an accuracy."""

  value: float
  n: int
  low: float | None = None  # of the 95 % bootstrap interval, where there is one
  high: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's config.json and metrics.jsonl; None and empty for a run that has not begun, or is pretrained."""

  name: str
  config: TrainConfig | None
  metrics: tuple[dict[str, Any], ...]
  model: ModelConfig | None  # what it trains, or the pretrained checkpoint holds, with its embedding
  pretrained: Pretrained | None = None

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
  def dropped(self) -> bool:
    """Whether this run began by dropping the positional embedding of the weights it started from."""
    return self.config is not None and self.config.init is not None and self.config.init.transition != Keep()

  def tokens_at(self, step: int | None) -> float | None:
    """Tokens trained on after `step` (None: after all of them)."""
    if step is None or self.last is None:
      return self.tokens
    return self.last["tokens"] / self.last["step"] * step


@dataclasses.dataclass(frozen=True)
class Study:
  """Everything a report is written from."""

  directory: Path
  title: str
  command: str
  seed: int
  train_context: int  # C, in tokens
  machine: str
  versions: dict[str, str]
  seconds: float | None
  tasks: tuple[str, ...]  # that were to be measured
  spread: str  # what is known of other seeds, in a sentence; "": nothing
  arms: tuple[Arm, ...]
  rows: tuple[Row, ...]
  runs: dict[str, Run]
  results: dict[tuple[str, str, str], dict[int, dict[str, Figure]]]  # (run, method, task) -> context -> metric

  @property
  def trained(self) -> bool:
    """Whether anything was, or is to be, trained."""
    return any(run.pretrained is None for run in self.runs.values())

  @property
  def has_temperature(self) -> bool:
    """Whether a temperature is part of it: a row with one, or a fit."""
    return any(row.method == TEMPERATURE for row in self.rows) or any(task == FIT_TASK for _, _, task in self.results)

  def figure(self, row: Row, task: str, context: int, metric: str) -> Figure | None:
    return self.results.get((row.run, row.method, task), {}).get(context, {}).get(metric)

  def figures(self, row: Row, task: str, context: int) -> dict[str, Figure]:
    """Every figure of a row at one length, by metric."""
    return self.results.get((row.run, row.method, task), {}).get(context, {})

  def contexts(self, *tasks: str) -> list[int]:
    """The lengths at which any row was measured, ascending."""
    return sorted({c for (_, _, task), by_context in self.results.items() if task in tasks for c in by_context})

  def extension(self, context: int) -> float:
    return context / self.train_context

  def role(self, row: Row) -> str | None:
    """The role of the arm that ends with the row's run; None for a run in the middle of its arm."""
    return next((arm.role for arm in self.arms if arm.runs[-1] == row.run), None)

  def rows_of(self, role: str, plain: bool | None = None) -> list[Row]:
    """Rows of a role; `plain` True: evaluated as trained, False: with some method, None: both."""
    rows = [row for row in self.rows if self.role(row) == role]
    return rows if plain is None else [row for row in rows if row.plain == plain]

  def offset(self, arm: Arm, position: int) -> float | None:
    """Tokens the arm has seen before its run at `position` begins; None if that is not recorded."""
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


# What study.json must have; it may have `seconds`, `pretrained` and `spread`.
STUDY_FIELDS = ("title", "command", "seed", "train_context", "machine", "versions", "tasks", "arms", "rows")


def _read_study(path: Path) -> dict[str, Any]:
  try:
    data = json.loads(path.read_text())
  except OSError as error:
    raise ReportError(f"{path}: cannot be read ({error.strerror}); is this the workdir of a study?") from error
  except json.JSONDecodeError as error:
    raise ReportError(f"{path}: not JSON ({error})") from error
  missing = [name for name in STUDY_FIELDS if name not in data]
  if missing:
    raise ReportError(f"{path}: {missing[0]} is missing")
  return data


def _read_run(directory: Path, name: str, pretrained: dict[str, Any] | None) -> Run:
  if pretrained is not None:
    fields = dict(pretrained)
    try:
      model = from_dict(ModelConfig, fields.pop("model", {}))
      return Run(name, None, (), model, from_dict(Pretrained, fields))
    except ConfigError as error:
      raise ReportError(f"study.json: pretrained.{name}: {error}") from error
  path, metrics = directory / "config.json", directory / "metrics.jsonl"
  try:
    config = load_config(TrainConfig, path) if path.exists() else None
    records = tuple(filter(is_training, read_json_lines(metrics))) if metrics.exists() else ()
    return Run(name, config, records, None if config is None else config.model)
  except ConfigError as error:
    raise ReportError(str(error)) from error


def _read_results(path: Path) -> dict[tuple[str, str, str], dict[int, dict[str, Figure]]]:
  try:
    records = results.read(path)
  except results.ResultsError as error:
    raise ReportError(str(error)) from error
  if not records:
    raise ReportError(f"{path}: holds no figure; nothing has been evaluated yet")
  empty = next((number for number, record in enumerate(records, 1) if record.n < 1), None)
  if empty is not None:
    raise ReportError(f"{path}:{empty}: n is {records[empty - 1].n}; a figure stands on at least one sample")
  # One measured again replaces the earlier one; with other settings it may have other metrics, so none of that is kept.
  last = {record.measurement._replace(settings=""): record.settings for record in records}
  records = [record for record in records if record.settings == last[record.measurement._replace(settings="")]]
  by_seed: dict[tuple[str, str, str], dict[int, dict[str, dict[int, Figure]]]] = {}
  for record in records:
    by_context = by_seed.setdefault((record.run, record.method, record.task), {})
    seeds = by_context.setdefault(record.context, {}).setdefault(record.metric, {})
    seeds[record.seed] = Figure(record.value, record.n, record.low, record.high)
  return {
    key: {c: {metric: _pool(list(seeds.values())) for metric, seeds in metrics.items()} for c, metrics in found.items()}
    for key, found in by_seed.items()
  }


def _pool(figures: Sequence[Figure]) -> Figure:
  """One figure over the samples of several: those of different evaluation seeds. It has no interval."""
  if len(figures) == 1:
    return figures[0]
  n = sum(figure.n for figure in figures)
  return Figure(sum(figure.value * figure.n for figure in figures) / n, n)


def _check_names(path: Path, arms: Sequence[Arm], rows: Sequence[Row]) -> None:
  known = {run for arm in arms for run in arm.runs}
  for arm in arms:
    if arm.role not in ROLES:
      raise ReportError(f"{path}: the role of arm {arm.label!r} is {arm.role!r}; allowed: {', '.join(ROLES)}")
    if not arm.runs:
      raise ReportError(f"{path}: arm {arm.label!r} has no runs")
  for row in rows:
    if row.run not in known:
      raise ReportError(f"{path}: row {row.label!r} is of run {row.run!r}, which no arm names")


def read_study(directory: Path) -> Study:
  """Reads the workdir of a study.

  Raises:
    ReportError: a file is missing, empty or malformed; runs that have not begun are no error.
  """
  path = directory / "study.json"
  data = _read_study(path)
  try:
    arms = tuple(Arm(arm["label"], tuple(arm["runs"]), arm["role"]) for arm in data["arms"])
    rows = tuple(Row(row["run"], row["method"], row["label"]) for row in data["rows"])
  except KeyError as error:
    raise ReportError(f"{path}: an arm or a row lacks {error}") from error
  _check_names(path, arms, rows)
  names = dict.fromkeys(name for arm in arms for name in arm.runs)
  pretrained = data.get("pretrained", {})
  return Study(
    directory=directory,
    **{name: data[name] for name in ("title", "command", "seed", "train_context", "machine", "versions")},
    seconds=data.get("seconds"),
    tasks=tuple(data["tasks"]),
    spread=data.get("spread", ""),
    arms=arms,
    rows=rows,
    runs={name: _read_run(run_directory(directory, name), name, pretrained.get(name)) for name in names},
    results=_read_results(directory / "results.jsonl"),
  )


def read_evaluation(directory: Path) -> Study:
  """Reads the output of `experiments.evaluate`, a results.jsonl alone: a study without arms, runs or training.

  Raises:
    ReportError: the file is missing, empty or malformed.
  """
  path = directory / "results.jsonl"
  found = _read_results(path)
  records = results.read(path)
  names = dict.fromkeys((record.run, record.method) for record in records if record.task != FIT_TASK)
  several = len({run for run, _ in names}) > 1
  last = records[-1]
  return Study(
    directory=directory,
    title="Measured: " + ", ".join(dict.fromkeys(run for run, _ in names)),
    command=last.command,
    seed=last.seed,
    train_context=round(last.context / last.extension),
    machine="",
    versions={},
    seconds=None,
    tasks=tuple(dict.fromkeys(record.task for record in records if record.task != FIT_TASK)),
    spread="",
    arms=(),
    rows=tuple(Row(run, method, f"{run}, {method}" if several else method) for run, method in names),
    runs={},
    results=found,
  )
