"""The `--help` of a command: its module's docstring, which has an example, and its flags with their defaults."""

import argparse
import inspect
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from absl import flags

from drope_jax.cli.flags import CONFIG, IMPORT

OVERRIDES = "Sets a field of the config: a literal, None, or a value as RoPE(theta=1e5)."


class Declared(NamedTuple):
  """A flag, or a positional argument, as a command declares it."""

  shown: str  # as it is typed, with its default: --lengths=1x,2x
  help: str
  required: bool
  names: tuple[str, ...]  # spellings on the command line, such as --lengths; empty for a positional argument
  subcommand: str = ""


def absl_flags(module: str) -> list[Declared]:
  """The absl flags that a module declares, and `--import`, which all commands have.

  Args:
    module: its name, or `sys.argv[0]` for the running one.
  """
  found = []
  for flag in [*flags.FLAGS.get_key_flags_for_module(module), flags.FLAGS[IMPORT.name]]:
    said = " ".join((flag.help or "").split())
    # absl appends notes on how to write lists.
    for added in ("(a comma separated list)", "; repeat this option to specify a list of values"):
      said = said.replace(added, "").rstrip()
    names = (f"--{flag.name}", *((f"--no{flag.name}",) if flag.boolean else ()))
    found.append(Declared(_shown(flag), said, _is_required(flag), names))
    if flag.name == CONFIG:
      found.append(Declared("--config.A.B=VALUE", OVERRIDES, False, ()))
  return found


def parser_flags(parser: argparse.ArgumentParser, subcommand: str = "") -> Iterator[Declared]:
  """The arguments of a parser, and of its subcommands."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for name, below in action.choices.items():
        yield from parser_flags(below, name)
    elif not isinstance(action, argparse._HelpAction):
      yield Declared(_typed(action), " ".join((action.help or "").split()), action.required, _names(action), subcommand)


def _names(action: argparse.Action) -> tuple[str, ...]:
  """The spellings with hyphens, and with underscores as in absl's flags (frame.run_parsed accepts both)."""
  return tuple(
    dict.fromkeys(way for name in action.option_strings for way in (name, f"--{name[2:].replace('-', '_')}"))
  )


def _typed(action: argparse.Action) -> str:
  metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
  if not action.option_strings:
    return f"{metavar} ..." if action.nargs == "+" else metavar
  if action.nargs == 0:
    return action.option_strings[0]
  return f"{action.option_strings[0]}={metavar if action.default in (None, []) else action.default}"


def screen_width() -> int:
  """Columns of the terminal (or the variable COLUMNS), at most 120."""
  return min(shutil.get_terminal_size((120, 50)).columns, 120)


def help_text(about: str, declared: Iterable[Declared], width: int) -> str:
  """The text that `--help` prints."""
  lines = [inspect.cleandoc(about), "", "Flags:"]
  for flag in declared:
    text = f"{flag.shown}  {flag.help}{' (required)' if flag.required else ''}"
    lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
  return "\n".join(lines)


def _shown(flag: flags.Flag) -> str:
  """A flag with its default."""
  if flag.boolean:
    return f"--[no]{flag.name}"
  default = "..." if flag.default in (None, []) else flag.default
  return f"--{flag.name}={','.join(map(str, default)) if isinstance(default, list) else default}"


def _is_required(flag: flags.Flag) -> bool:
  """Whether a flag is required, which absl only records in a validator."""
  return any("must have a value other than None" in validator.message for validator in flag.validators)
