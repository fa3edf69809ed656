"""The errors that a user can act on: each message is one line that names the field or the file.

Commands print that line and exit with the error's `exit_status`. Any other exception is a bug of this library.
"""

import dataclasses
import math
import numbers
from typing import Any

# Metadata of a field that may be infinite: dataclasses.field(metadata=MAY_BE_INFINITE).
MAY_BE_INFINITE = {"may_be_infinite": True}


class UserError(Exception):
  """Something that the user can fix; the message says what and where."""

  exit_status = 1

  def __str__(self) -> str:
    """The message on one line, with control characters from files escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in super().__str__())


class ConfigError(UserError, ValueError):
  """An impossible setting: the message names the field, its value and what is allowed."""

  exit_status = 2


class CheckpointError(UserError, RuntimeError):
  """A checkpoint or workdir that cannot be used: the message names the path, and the field where there is one."""


class BusyError(UserError, RuntimeError):
  """A directory that another process writes to: the message names both."""


class DataError(UserError, ValueError):
  """Text or tokens that cannot be read or trained on: the message names the file and row, and says what to do."""


class FileError(UserError, RuntimeError):
  """A file that cannot be read or written, or has the wrong content: the message names it, and any line."""


class ToolError(UserError, RuntimeError):
  """Another program that is missing or fails: the message names it, and says what to install or use instead."""


class ResultsError(UserError, RuntimeError):
  """A results.jsonl that cannot be read, or a figure that cannot be written: the message names it."""


class ReportError(UserError, RuntimeError):
  """Records from which no report can be made: the message names the file."""


def check(holds: bool, message: str) -> None:
  """Raises ConfigError with this message unless `holds`."""
  if not holds:
    raise ConfigError(message)


def check_choice(config: Any, field: str, allowed: tuple[str, ...]) -> None:
  """Raises ConfigError naming the field unless its value is one of `allowed`."""
  value = getattr(config, field)
  check(value in allowed, f"{type(config).__name__}.{field} is {value!r}; allowed: {', '.join(allowed)}")


def check_at_least(config: Any, minimum: float, *fields: str) -> None:
  """Raises ConfigError naming the first field that is not a number of at least `minimum`."""
  for field in fields:
    value = getattr(config, field)
    check(isinstance(value, numbers.Real), f"{type(config).__name__}.{field} is {value!r}; it must be a number")
    check(value >= minimum, f"{type(config).__name__}.{field} is {value}; it must be at least {minimum}")


def check_finite(config: Any) -> None:
  """Raises ConfigError naming a field of a dataclass, or of one nested in it, that is infinite or NaN.

  Infinity is allowed in fields with the metadata MAY_BE_INFINITE; NaN is allowed nowhere.
  """
  for field in dataclasses.fields(config):
    _check_finite(getattr(config, field.name), f"{type(config).__name__}.{field.name}", **field.metadata)


def _check_finite(value: Any, where: str, may_be_infinite: bool = False, **_: Any) -> None:
  if isinstance(value, float):
    fits = math.isfinite(value) or (may_be_infinite and not math.isnan(value))
    check(fits, f"{where} is {value}; it must be {'a number' if may_be_infinite else 'finite'}")
  elif isinstance(value, tuple | list):
    for index, item in enumerate(value):
      _check_finite(item, f"{where}[{index}]")
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    check_finite(value)
