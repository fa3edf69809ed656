"""Configs to and from plain data, and config.json, which describes a run readably without this library."""

import dataclasses
import importlib.metadata
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from drope_jax.errors import ConfigError, check, check_finite
from drope_jax.files import write_json
from drope_jax.upgrades import upgraded
from drope_jax.values import Value, check_found_again, find, members, recorded_name

T = TypeVar("T")


def to_dict(config: Any) -> Any:
  """A config as plain data (dict, list, str, number, bool, None); a dataclass has its recorded name as "type"."""
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    fields = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"type": recorded_name(type(config)), **fields}
  if isinstance(config, tuple | list):
    return [to_dict(item) for item in config]
  return config


def alternatives(annotation: Any) -> tuple[Any, ...]:
  """The members of a union type, flattened; the annotation itself if it is not a union."""
  if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
    return typing.get_args(annotation)
  return (annotation,)


def classes_of(annotation: Any) -> dict[str, type[Any]]:
  """The dataclasses that a field of this type may hold, by recorded names; for a kind of `Value`, all its members."""
  found: dict[str, type[Any]] = {}
  for item in alternatives(annotation):
    if isinstance(item, type) and Value in item.__bases__:
      found |= members(item)
    elif isinstance(item, type) and dataclasses.is_dataclass(item):
      found[recorded_name(item)] = item
  return found


def _read(annotation: Any, data: Any, path: str) -> Any:
  """Converts plain `data` to a value of type `annotation`; `path` names it in errors."""
  allowed = alternatives(annotation)
  if data is None:
    check(type(None) in allowed, f"{path} is None; it must have a value")
    return None
  classes = classes_of(annotation)
  if classes:
    names = [*classes, *(["None"] if type(None) in allowed else [])]
    check(isinstance(data, dict), f"{path} is {data!r}; it must be an object: {', '.join(names)}")
    only = next(iter(classes)) if len(classes) == 1 and next(iter(classes.values())) in allowed else None
    return from_dict(find(classes, data.get("type", only), f"{path}.type"), data, path)
  expected = next(item for item in allowed if item is not type(None))
  if typing.get_origin(expected) is tuple:
    check(isinstance(data, list), f"{path} is {data!r}; it must be a list")
    return tuple(_read(typing.get_args(expected)[0], item, f"{path}[{i}]") for i, item in enumerate(data))
  if expected is float and isinstance(data, int) and not isinstance(data, bool):
    return float(data)
  matches = isinstance(data, expected) and isinstance(data, bool) == (expected is bool)
  check(matches, f"{path} is {data!r}; it must be of type {expected.__name__}")
  return data


def required(cls: type[Any]) -> list[str]:
  """The fields of a dataclass that have no default."""
  return [
    field.name
    for field in dataclasses.fields(cls)
    if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
  ]


def from_dict(cls: type[T], data: dict[str, Any], path: str = "") -> T:
  """The inverse of `to_dict`. Raises ConfigError naming an unknown, missing or mistyped field."""
  path = path or cls.__name__
  check(isinstance(data, dict), f"{path} is {data!r}; it must be an object")
  name = data.get("type", recorded_name(cls))
  check(name == recorded_name(cls), f"{path}.type is {name!r}; it must be {recorded_name(cls)!r}")
  data = upgraded(recorded_name(cls), data)
  hints = typing.get_type_hints(cls)
  names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
  unknown = sorted(set(data) - {"type", *names})
  check(not unknown, f"{path}.{unknown[0] if unknown else ''} is not a field; fields: {', '.join(names)}")
  missing = [name for name in required(cls) if name not in data]
  check(not missing, f"{path}.{missing[0] if missing else ''} is missing")
  values = {name: _read(hints[name], data[name], f"{path}.{name}") for name in names if name in data}
  try:
    config = cls(**values)
    check_finite(config)
    return config
  except ConfigError:
    raise
  except (TypeError, ValueError) as error:  # raised by the class itself
    raise ConfigError(f"{path}: {error}") from error


def checked(config: T) -> T:
  """A deep copy of the config, rebuilt so that fields set in place are checked."""
  return from_dict(type(config), to_dict(config))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """The dotted paths at which two results of `to_dict` differ, each with both values."""
  if isinstance(old, dict) and isinstance(new, dict):
    keys = [*old, *(key for key in new if key not in old)]
    found = [differences(old.get(key), new.get(key), f"{path}.{key}" if path else key) for key in keys]
    return [line for lines in found for line in lines]
  return [] if old == new else [f"{path}: {old!r} there, {new!r} here"]


LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def library_versions() -> dict[str, str]:
  """Versions of the libraries whose behaviour a run depends on."""
  return {name: importlib.metadata.version(name) for name in LIBRARIES}


def save_config(config: Any, path: Path) -> None:
  """Writes `config` as JSON, with the library versions; an existing file keeps its versions.

  The file is replaced atomically, and only if it would change.

  Raises:
    ConfigError: the config holds a value of a class that no other program can import.
  """
  try:
    there = json.loads(path.read_text())
  except (OSError, ValueError):  # missing, or truncated
    there = {}
  data = to_dict(config)
  check_found_again(data)
  data["versions"] = there.get("versions", library_versions()) if isinstance(there, dict) else library_versions()
  if data != there:
    write_json(data, path)


def is_cut_off(path: Path, cls: type) -> bool:
  """Whether a file is only the beginning of what `save_config` writes for a `cls`."""
  text, head = path.read_bytes().decode(errors="replace"), f'{{\n  "type": "{cls.__name__}"'
  return text[: len(head)] == head[: len(text)] and not text.rstrip().endswith("\n}")


def load_config(cls: type[T], path: Path) -> T:
  """Reads what `save_config` wrote. Raises ConfigError naming the file, and the field if there is one."""
  try:
    data = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:  # missing, not UTF-8, or not JSON
    raise ConfigError(f"{path}: not a readable config ({error})") from error
  if isinstance(data, dict):
    data.pop("versions", None)
  try:
    return from_dict(cls, data)
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error
