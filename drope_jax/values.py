"""Settings that are values: classes whose instances stand in a config, and that a user may add to without a fork.

A *kind* of setting (an embedding, a scaling, a transition, an objective, an optimizer, a source, a task) is a class
that derives from `Value` directly; its members are the dataclasses that derive from the kind. A member of this library
is recorded in config.json by its class name, one that a user has defined as `module:Class`. Reading a config never
imports code: the program that reads it imports that module first.
"""

from collections.abc import Mapping
from typing import Any

from drope_jax.errors import ConfigError

_LIBRARY = __name__.partition(".")[0]


class Value:
  """The base of every kind.

  Members are dataclasses with `unsafe_hash=True`, so that equal settings share one compiled program.
  """


def recorded_name(cls: type) -> str:
  """What config.json calls a class: its name, or `module:Class` if it is a user's."""
  ours = cls.__module__.partition(".")[0] == _LIBRARY
  return cls.__name__ if ours or not issubclass(cls, Value) else f"{cls.__module__}:{cls.__qualname__}"


def members(kind: type[Value]) -> dict[str, type[Any]]:
  """The imported members of a kind by their recorded names; a class that is defined again replaces the first."""
  found: dict[str, type[Any]] = {}
  for cls in kind.__subclasses__():
    if "__dataclass_fields__" in vars(cls):
      found[recorded_name(cls)] = cls
    found |= members(cls)
  return found


def find(classes: Mapping[str, type[Any]], name: Any, path: str) -> type[Any]:
  """The class of this recorded name. Raises ConfigError, which says how to make a user's class known."""
  if name in classes:
    return classes[name]
  if isinstance(name, str) and ":" in name:
    module = name.partition(":")[0]
    raise ConfigError(
      f"{path}.type is {name!r}, which is not imported: import {module} first (in commands, --import={module})"
    )
  raise ConfigError(f"{path}.type is {name!r}; allowed: {', '.join(classes)}")
