"""Flags that mean the same in every command: `--import`, `--config`, `--mesh`; and types of values that absl lacks."""

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
LARGEST_SEED = 2**32 - 1  # of the data's shuffling, and of JAX's keys without 64-bit integers

IMPORT_HELP = "A module, or a .py file, that defines values of your own (repeatable); nothing else imports it."
IMPORT = flags.DEFINE_multi_string("import", [], IMPORT_HELP)
flags.disclaim_key_flags()  # what is defined through the functions below belongs to the command that calls them


class ConfigFlag(flags.Flag):
  """`--config=FILE[:ARG]`; cli.frame takes `--config.A.B=VALUE` out of the command line and puts it here."""

  overrides: Sequence[tuple[str, str]] = ()


def config_flag() -> ConfigFlag:
  """That of this command."""
  flag = flags.FLAGS[CONFIG]
  assert isinstance(flag, ConfigFlag)
  return flag


def import_modules(texts: Iterable[str]) -> None:
  """Imports what `--import` names. Raises ConfigError as `modules.load`."""
  for text in texts:
    modules.load(text, "--import")


def define_config(help: str, default: str | None = None) -> flags.FlagHolder[Any]:
  """`--config`, which a command needs unless it has a default."""
  flag = ConfigFlag(
    parser=flags.ArgumentParser(), serializer=flags.ArgumentSerializer(), name=CONFIG, default=default, help_string=help
  )
  return flags.DEFINE_flag(flag, required=default is None)


def settings(flag: flags.FlagHolder[Any], wanted: str, is_wanted: Callable[[Any], bool], **fields: Any) -> Any:
  """The config of a file, with the fields that other flags set, and then those of `--config.A.B=VALUE`.

  Args:
    wanted: what the command needs, for the error.
    fields: whole values by field name; None: the flag was not given.

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
  """`--mesh`, with one grammar everywhere (sharding.parse_mesh)."""
  return define_list(
    "mesh", None, f"{what}: {', '.join(PRESETS)}, or sizes as fsdp=4,tensor=2, or both as dp,context=2."
  )


def mesh_config(flag: flags.FlagHolder[list[str]]) -> MeshConfig | None:
  """What `--mesh` says; None if it is not given. Raises ConfigError."""
  return None if flag.value is None else parse_mesh(flag.value)


def define_list(name: str, default: Sequence[str] | None, help: str, **keywords: Any) -> flags.FlagHolder[list[str]]:
  """Values with commas between them, at least one if the flag is given, and none of them empty."""
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
  """A path or URL, or if `local` a path alone; a shell leaves the ~ of `--workdir=~/run` to us."""
  return flags.DEFINE(_PathParser(local), name, default, help, required=required)


def define_path_list(name: str, help: str) -> flags.FlagHolder[list[str]]:
  """A flag that may be given several times, each time with a path on this machine."""
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
  """A finite number."""
  return flags.DEFINE(_FloatParser(lower_bound), name, default, help)


def define_seed(help: str, default: int | None = 0) -> flags.FlagHolder[Any]:
  """`--seed`, of 32 bits: a larger one would be cut off without a word."""
  return flags.DEFINE_integer("seed", default, help, lower_bound=0, upper_bound=LARGEST_SEED)
