"""Flags with the same meaning in every command (`--import`, `--config`, `--mesh`), and value types that absl lacks."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from absl import flags

from drope_jax.cli import modules, paths
from drope_jax.cli.overrides import overridden
from drope_jax.errors import ConfigError
from drope_jax.model_config import MeshConfig
from drope_jax.serialization import checked, from_dict, to_dict
from drope_jax.sharding import PRESETS, parse_mesh

T = TypeVar("T")
CONFIG = "config"
LARGEST_SEED = 2**32 - 1  # limit of shuffling in grain, and of JAX's keys without 64-bit integers

IMPORT_HELP = "A module, or a .py file, that defines values of your own (repeatable); nothing else imports it."
IMPORT = flags.DEFINE_multi_string("import", [], IMPORT_HELP)
flags.disclaim_key_flags()  # flags defined by the functions below belong to the command that calls them


class ConfigFlag(flags.Flag):
  """`--config=FILE[:ARG]`; cli.frame stores the `--config.A.B=VALUE` of the command line in `overrides`."""

  overrides: Sequence[tuple[str, str]] = ()


def config_flag() -> ConfigFlag:
  """The `--config` flag of this command."""
  flag = flags.FLAGS[CONFIG]
  assert isinstance(flag, ConfigFlag)
  return flag


def import_modules(texts: Iterable[str]) -> None:
  """Imports the modules given by `--import`. Raises ConfigError as `modules.load` does."""
  for text in texts:
    modules.load(text, "--import")


def define_config(help: str, default: str | None = None) -> flags.FlagHolder[Any]:
  """Defines `--config`, which is required unless it has a default."""
  flag = ConfigFlag(
    parser=flags.ArgumentParser(), serializer=flags.ArgumentSerializer(), name=CONFIG, default=default, help_string=help
  )
  return flags.DEFINE_flag(flag, required=default is None)


def settings(flag: flags.FlagHolder[Any], wanted: str, is_wanted: Callable[[Any], bool], **fields: Any) -> Any:
  """The config from the file, overridden by the fields of other flags and then by `--config.A.B=VALUE`.

  Args:
    wanted: the kind of config that the command needs, for the error message.
    is_wanted: whether a config is of that kind.
    fields: values by field name; None: the flag was not given.

  Raises:
    ConfigError: the file cannot be read, holds the config of another command, or a setting is impossible.
  """
  found = modules.get_config(flag.value, f"--{CONFIG}")
  if not is_wanted(found):
    raise ConfigError(f"--{CONFIG}: the file has a {type(found).__name__}; this command needs {wanted}")
  given = {name: to_dict(value) for name, value in fields.items() if value is not None}
  if given:
    found = from_dict(type(found), to_dict(found) | given)
  set_ = overridden(checked(found), config_flag().overrides)
  return from_dict(type(set_), paths.expanded(to_dict(set_)))


def define_mesh(what: str) -> flags.FlagHolder[list[str]]:
  """Defines `--mesh`, whose syntax is that of sharding.parse_mesh."""
  return define_list(
    "mesh", None, f"{what}: {', '.join(PRESETS)}, or sizes as fsdp=4,tensor=2, or both as dp,context=2."
  )


def mesh_config(flag: flags.FlagHolder[list[str]]) -> MeshConfig | None:
  """The mesh of `--mesh`; None if it is not given. Raises ConfigError if it cannot be parsed."""
  return None if flag.value is None else parse_mesh(flag.value)


def define_list(name: str, default: Sequence[str] | None, help: str, **keywords: Any) -> flags.FlagHolder[list[str]]:
  """Defines a flag of comma-separated values: at least one, and none of them empty."""
  holder = flags.DEFINE_list(name, default if default is None else list(default), help, **keywords)
  flags.register_validator(
    name, lambda items: items is None or (len(items) > 0 and all(items)), "must be a list without gaps, as a,b"
  )
  return holder


class _PathParser(flags.ArgumentParser[str]):
  syntactic_help = "a path; ~ is your home"

  def __init__(self, local: bool):
    self.local = local

  def parse(self, argument: str) -> str:
    return paths.path(argument, self.local)


def define_path(
  name: str, default: str | None, help: str, required: bool = False, local: bool = False
) -> flags.FlagHolder[str]:
  """Defines a flag for a path or URL, or only a path if `local`. `~` is expanded, which shells do not do after `=`."""
  return flags.DEFINE(_PathParser(local), name, default, help, required=required)


def define_path_list(name: str, help: str) -> flags.FlagHolder[list[str]]:
  """Defines a flag that may be given several times, each time with a path on this machine."""
  return flags.DEFINE_multi(_PathParser(local=True), flags.ArgumentSerializer(), name, [], help)


class _FloatParser(flags.FloatParser):
  def convert(self, argument: Any) -> float:
    value = super().convert(argument)
    if not math.isfinite(value):
      raise ValueError("not a finite number")
    return value


def define_float(
  name: str, default: float | None, help: str, lower_bound: float | None = None
) -> flags.FlagHolder[float]:
  """Defines a flag for a finite number."""
  return flags.DEFINE(_FloatParser(lower_bound), name, default, help)


def define_seed(help: str, default: int | None = 0) -> flags.FlagHolder[Any]:
  """Defines `--seed`, limited to 32 bits, because larger seeds would be truncated silently."""
  return flags.DEFINE_integer("seed", default, help, lower_bound=0, upper_bound=LARGEST_SEED)
