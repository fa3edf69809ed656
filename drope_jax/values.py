"""Settings that are values: instances of classes, to which users can add their own without a fork.

A *kind* of setting (an embedding, a scaling, a transition, an objective, an optimizer, a source, a task) is a class
that derives directly from `Value`; its members are the dataclasses that derive from the kind. In config.json, a member
of this library is recorded by its class name, and a user's as `module:Class`. Reading a config never imports code: the
program must have imported that module before.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from drope_jax.errors import ConfigError

_LIBRARY = __name__.partition(".")[0]


class Value:
  """The base of every kind.

  Members are dataclasses with `unsafe_hash=True`: they are static arguments of jitted functions, so that equal settings
  share one compiled program.
  """


def recorded_name(cls: type) -> str:
  """The name of a class in config.json: its own name, or `module:Class` for a user's."""
  ours = cls.__module__.partition(".")[0] == _LIBRARY
  return cls.__name__ if ours or not issubclass(cls, Value) else f"{cls.__module__}:{cls.__qualname__}"


def members(kind: type[Value]) -> dict[str, type[Any]]:
  """The imported members of a kind by their recorded names; a later definition replaces an earlier one."""
  found: dict[str, type[Any]] = {}
  for cls in kind.__subclasses__():
    if "__dataclass_fields__" in vars(cls):
      found[recorded_name(cls)] = cls
    found |= members(cls)
  return found


def find(classes: Mapping[str, type[Any]], name: Any, path: str) -> type[Any]:
  """The class with a recorded name, for the config field at `path`.

  Raises:
    ConfigError: there is none; the message names `path`, and says how to import a user's class.
  """
  if name in classes:
    return classes[name]
  if any(name in (cls.__name__, recorded_name(cls)) for cls in _undecorated(Value)):
    raise ConfigError(
      f"{path} is {name!r}, which is not a dataclass: write @dataclasses.dataclass(unsafe_hash=True) above it"
    )
  kinds = " or ".join(_kinds(classes))
  if is_recorded_name(name):
    module, _, cls = name.partition(":")
    if kinds and isinstance(getattr(sys.modules.get(module), cls, None), type):
      raise ConfigError(f"{path} is {name!r}, which does not derive from {kinds}")
    raise ConfigError(f"{path} is {name!r}, which is not imported: {how_to_import(name)}")
  own = (
    f"; the file of a class of your own is given with --import=PATH.py, and it derives from {kinds}" if kinds else ""
  )
  raise ConfigError(f"{path} is {name!r}; allowed: {', '.join(classes)}{own}")


def _kinds(classes: Mapping[str, type[Any]]) -> list[str]:
  """The names of the kinds of these classes."""
  bases = (base for cls in classes.values() for base in cls.__mro__ if Value in base.__bases__)
  return list(dict.fromkeys(base.__name__ for base in bases if "__dataclass_fields__" not in vars(base)))


def is_recorded_name(name: Any) -> bool:
  """Whether `name` has the form of a user's class, `module:Class`."""
  return isinstance(name, str) and all(name.partition(":"))


def how_to_import(name: str) -> str:
  """Instructions for importing the class with a recorded name."""
  module = name.partition(":")[0]
  return f"import {module} first (in commands, --import={module}, or its file: --import=PATH.py)"


def check_found_again(data: Any, path: str = "") -> None:
  """Raises ConfigError if the plain data of a config has a class that no other program can import."""
  if isinstance(data, dict):
    name = data.get("type")
    if is_recorded_name(name) and re.search("^__main__:|<locals>", str(name)):
      raise ConfigError(
        f"{path or 'config'} is of class {name}, which no other program can import: define it at the top of a module"
      )
    for field, value in data.items():
      check_found_again(value, f"{path}.{field}" if path else str(field))
  elif isinstance(data, list):
    for i, value in enumerate(data):
      check_found_again(value, f"{path}[{i}]")


def _undecorated(kind: type[Any]) -> Iterator[type[Any]]:
  """The subclasses of a kind that are not decorated as dataclasses, and so are not members."""
  for cls in kind.__subclasses__():
    if "__dataclass_fields__" not in vars(cls) and Value not in cls.__bases__:
      yield cls
    yield from _undecorated(cls)
