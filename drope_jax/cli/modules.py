"""A user's own code, imported by module name or by file.

A file is imported under a name that other programs can import as well: its stem, or its dotted name within its package.
A class that it defines is recorded under this name (`module:Class`) in config.json.
"""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from drope_jax.errors import ConfigError, UserError

# Exceptions of a user's code that are reported as such. Others, such as SystemExit, propagate.
FAULTS = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  ImportError,
  LookupError,
  NameError,
  OSError,
  RuntimeError,
  SyntaxError,
  TypeError,
  ValueError,
)

TRACEBACKS = "DROPE_JAX_TRACEBACKS"  # "on": errors in a user's code are printed with their traceback

_LOADED: dict[str, ModuleType] = {}


def load(text: str, flag: str) -> ModuleType:
  """The module of a name (`package.module`) or a file (`PATH.py`), imported once.

  Raises:
    ConfigError: it does not exist, cannot be imported, or its name belongs to another module; the message names `flag`.
  """
  file = Path(os.path.expanduser(text)).resolve() if text.endswith(".py") else None
  if file is not None and not file.is_file():
    raise ConfigError(f"{flag}: {text}: there is no such file")
  name = text if file is None else _name_of(file)
  try:
    module = importlib.import_module(name)
  except FAULTS as error:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
      raise ConfigError(f"{flag}: there is no module {name!r}; a file is given as PATH.py") from error
    raise ConfigError(f"{flag}: {text}: {describe(error, file)}") from error
  if file is not None and (module.__file__ is None or Path(module.__file__).resolve() != file):
    raise ConfigError(f"{flag}: {text}: the name {name} belongs to {module.__file__ or 'Python'}; rename the file")
  _LOADED[name] = module
  return module


def owner(name: str) -> str | None:
  """The loaded module that defines a class of this name; None if there is none."""
  return next((module for module, loaded in _LOADED.items() if isinstance(vars(loaded).get(name), type)), None)


def get_config(text: str, flag: str) -> Any:
  """The result of `get_config(ARG)` of a config file, given as `FILE[:ARG]`.

  Raises:
    ConfigError: as for `load`, or if the function is missing, takes no argument although one is given, or fails.
  """
  path, _, argument = text.partition(":")
  if not path.endswith(".py"):
    raise ConfigError(f"{flag}: {path}: a config file ends in .py")
  module = load(path, flag)
  if not callable(getattr(module, "get_config", None)):
    raise ConfigError(f"{flag}: {path}: it has no function get_config")
  given = [argument] if ":" in text else []
  if given and _accepts(module.get_config) and not _accepts(module.get_config, *given):
    raise ConfigError(f"{flag}: {path} has one config, without sizes or variants; leave out {f':{argument}'!r}")
  try:
    return module.get_config(*given)
  except FAULTS as error:
    raise ConfigError(f"{flag}: {path}: {describe(error, Path(module.__file__ or path))}") from error


def _accepts(function: Callable[..., Any], *arguments: str) -> bool:
  """Whether a function can be called so, by its signature."""
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    return False
  except ValueError:  # a function of C without a signature: a call will tell
    return True
  return True


def describe(error: Exception, file: Path | None) -> str:
  """One line: the error, after its line in `file`; for a UserError only its message, which is complete by itself."""
  said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
  if isinstance(error, UserError):
    return said
  lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == str(file)]
  at = f"line {lines[-1]}: " if lines else ""
  return f"{at}{type(error).__name__}{': ' if said else ''}{said}"


def blamed(error: Exception) -> str | None:
  """One line about an error that passed through a user's code, with the line there; None for other errors.

  With DROPE_JAX_TRACEBACKS=on it is always None, so that Python prints the traceback.
  """
  if os.environ.get(TRACEBACKS) == "on":
    return None
  theirs = [
    (frame.f_code.co_filename, line, frame.f_code.co_name)
    for frame, line in traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__") in _LOADED
    and frame.f_globals["__name__"].partition(".")[0] not in ("drope_jax", "experiments")
  ]
  if not theirs:
    return None
  file, line, function = theirs[-1]
  said = next(iter(str(error).splitlines()), "")  # JAX adds paragraphs
  said = f"{type(error).__name__}{': ' if said else ''}{said}"
  return f"{file}, line {line}, in {function}: {said} ({TRACEBACKS}=on shows the whole traceback)"


def _name_of(file: Path) -> str:
  """The name under which to import a file; adds its folder, or that of its package, to sys.path."""
  name, folder = file.stem, file.parent
  while (folder / "__init__.py").exists():
    name, folder = f"{folder.name}.{name}", folder.parent
  # At the end, so that it does not shadow installed packages. Worker processes that Python spawns get the same path.
  if folder not in [Path(entry or os.curdir).resolve() for entry in sys.path]:
    sys.path.append(str(folder))
  importlib.invalidate_caches()
  return name
