"""What study.json and the records of metrics.jsonl must hold for a report, with errors that name what is wrong."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drope_jax.errors import ConfigError, ReportError
from drope_jax.metrics import is_training
from drope_jax.serialization import from_dict
from experiments.plan import Arm, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
  """The fields of study.json that a report reads; there may be more."""

  title: str
  command: str
  seed: int
  train_context: int
  machine: str
  versions: dict
  arms: tuple[Arm, ...]
  rows: tuple[Row, ...]
  seconds: float | None = None
  pretrained: dict = dataclasses.field(default_factory=dict)
  figures: dict = dataclasses.field(default_factory=dict)  # captions of the study's own pictures, by their names
  spread: str = ""

  def __post_init__(self) -> None:
    if self.train_context < 1:
      raise ConfigError(f"train_context is {self.train_context}; it must be at least 1")


# The fields of a record of training steps, and of one on held-out text.
_NUMBER = int | float
_TRAINING: dict[str, Any] = {"step": int, "tokens": int, "loss": _NUMBER, "seconds": _NUMBER}
_HELDOUT: dict[str, Any] = {"step": int, "extension": _NUMBER, "loss": _NUMBER}
_LOSSES = ("loss", "loss_by_group")


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file. Raises ReportError for a file that does not hold one."""
  try:
    data = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise ReportError(f"{path}: cannot be read ({error.strerror}); is this the workdir of a study?") from error
  except (ValueError, RecursionError) as error:
    raise ReportError(f"{path}: not JSON ({error})") from error
  if not isinstance(data, dict):
    raise ReportError(f"{path}: holds no JSON object")
  return data


def read_description(path: Path) -> Description:
  """Reads study.json. Raises ReportError naming the file, and a field that is missing or has another type."""
  data = _known(Description, read_json(path))
  for name, cls in (("arms", Arm), ("rows", Row)):  # earlier versions wrote more fields
    if isinstance(data.get(name), list):
      data[name] = [_known(cls, one) for one in data[name]]
  try:
    found = from_dict(Description, data, "study")
  except ConfigError as error:
    raise ReportError(f"{path}: {str(error).removeprefix('study.')}") from error
  _check_names(path, found.arms, found.rows)
  for name, run in found.pretrained.items():
    if not isinstance(run, dict):
      raise ReportError(f"{path}: pretrained.{name} is {run!r}; it must be an object")
  return found


def _known(cls: type[Any], data: Any) -> Any:
  """An object reduced to the fields of a class; anything else unchanged."""
  if not isinstance(data, dict):
    return data
  return {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}


def _check_names(path: Path, arms: Sequence[Arm], rows: Sequence[Row]) -> None:
  known = {run for arm in arms for run in arm.runs}
  for arm in arms:
    if not arm.runs:
      raise ReportError(f"{path}: arm {arm.label!r} has no runs")
  for row in rows:
    if row.run not in known:
      raise ReportError(f"{path}: row {row.label!r} is of run {row.run!r}, which no arm names")


def checked_record(path: Path, number: int, record: Any) -> dict[str, Any]:
  """A record of metrics.jsonl; a held-out loss that was not finite, null in the file, is NaN.

  Raises:
    ReportError: it is of training or on held-out text, and a report cannot use it.
  """
  if not isinstance(record, dict):
    raise ReportError(f"{path}: record {number} is not an object")
  if not is_training(record) and record["kind"] != "eval":
    return record
  if not is_training(record):
    record = {name: _number(value) if name in _LOSSES else value for name, value in record.items()}
  for name, kind in (_TRAINING if is_training(record) else _HELDOUT).items():
    value: Any = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or (name != "loss" and value < 0):
      raise ReportError(f"{path}: record {number} has {name} = {value!r}; it must be a number")
  groups = record.get("loss_by_group", [])
  if not isinstance(groups, list) or not all(isinstance(loss, _NUMBER) for loss in groups):
    raise ReportError(f"{path}: record {number} has loss_by_group = {groups!r}; it must be a list of numbers")
  return record


def _number(value: Any) -> Any:
  """Null as NaN, in a list too."""
  return list(map(_number, value)) if isinstance(value, list) else math.nan if value is None else value
