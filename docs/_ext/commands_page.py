"""docs/reference/commands.md: every command with its docstring, which has an example, and its flags."""

import ast
import inspect
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from absl import flags

from drope_jax import cli
from drope_jax.cli.help import Declared, absl_flags, parser_flags
from experiments.commands import COMMANDS, HARNESS

ROOT = Path(__file__).parents[2]
HEAD = """# Commands

Generated from the code by `python docs/_ext/reference.py`; `--help` of a command prints the same.

Flags are written `--name=VALUE`; hyphens and underscores in a name mean the same. Every command takes
`--import=FILE.py` (or `--import=MODULE`, repeatable), which imports classes of your own. `--config=FILE[:ARG]` is a
Python file whose `get_config(ARG)` returns the settings, and `--config.A.B=VALUE` sets one of their fields
([config](config.md)).

A command ends with status 0 if it is done, or was stopped by SIGTERM or Ctrl-C and has kept its work; with 1 and one
line if it failed; with 2 if its flags or its config are wrong.
"""


class Command(NamedTuple):
  """What a command says of itself."""

  about: str
  declared: list[Declared]


class _Shown(Exception):
  """Ends a command in the place of its work."""


def collect() -> dict[str, Command]:
  """Every command of experiments.commands, started as `python -m` starts it, up to where it would parse its flags."""
  return {module: _command(module) for group in COMMANDS.values() for module in group}


def _command(module: str) -> Command:
  if module == HARNESS:  # whose library need not be installed
    return Command(_docstring(ROOT / f"{module.replace('.', '/')}.py"), [])
  found: list[Declared] = []
  main: dict[str, Any] = {}

  def run(*_: Any, **__: Any) -> None:
    main.update(vars(sys.modules["__main__"]))
    found.extend(absl_flags(sys.argv[0]))
    raise _Shown

  def run_parsed(parser: Any, *_: Any, **__: Any) -> None:
    main.update(vars(sys.modules["__main__"]))
    found.extend(parser_flags(parser))
    raise _Shown

  before = set(flags.FLAGS)
  sys.modules.pop(module, None)  # where another command has imported it, which runpy would warn of
  with mock.patch.object(cli, "run", run), mock.patch.object(cli, "run_parsed", run_parsed):
    _until_shown(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))
  for name in set(flags.FLAGS) - before:  # the next command may have one of the same name
    delattr(flags.FLAGS, name)
  return Command(inspect.cleandoc(main["__doc__"]), [flag._replace(shown=_relative(flag.shown)) for flag in found])


def _until_shown(start: Callable[[], Any]) -> None:
  try:
    start()
  except _Shown:
    return
  raise AssertionError("a command ended without cli.run or cli.run_parsed")


def _docstring(path: Path) -> str:
  return ast.get_docstring(ast.parse(path.read_text())) or ""


def _relative(text: str) -> str:
  """Without the place of this checkout."""
  return text.replace(f"{ROOT}/", "")


def page(commands: dict[str, Command]) -> str:
  """The whole page."""
  parts = [HEAD]
  for title, modules in COMMANDS.items():
    parts.append(f"## {title}\n")
    for module in modules:
      parts += [f"### {module}\n", markdown(commands[module].about), *_tables(commands[module].declared)]
  return "\n".join(parts)


def _tables(declared: Iterable[Declared]) -> list[str]:
  """The flags of a command, and those of each of its subcommands."""
  shown = [flag for flag in declared if "--import" not in flag.names]
  tables = []
  for subcommand in dict.fromkeys(flag.subcommand for flag in shown):
    rows = [flag for flag in shown if flag.subcommand == subcommand]
    title = [f"Flags of `{subcommand}`:\n"] if subcommand else []
    tables += [*title, "| flag | meaning |\n|---|---|", *(_row(flag) for flag in rows), ""]
  return tables


def _row(flag: Declared) -> str:
  meaning = f"{flag.help}{' **Required.**' if flag.required and flag.names else ''}"
  return f"| `{flag.shown.removesuffix('=...')}` | {in_cell(meaning)} |"


def in_cell(text: str) -> str:
  """Text for a cell of a table in Markdown."""
  return re.sub(r"(?<!\\)\|", r"\\|", text).replace("<", "&lt;")


def markdown(docstring: str) -> str:
  """A docstring as Markdown: what is indented below a blank line is an example, to be typed."""
  result: list[str] = []
  for paragraph in re.split(r"\n\n+(?=\S)", docstring.strip()):
    head, *examples = re.split(r"\n\n+(?= )", paragraph)
    result.append(f"{head}\n")
    if examples:
      code = inspect.cleandoc("\n\n".join(examples).join(("\n", "")))
      result.append(f"```{'bash' if code.startswith('python -m') else 'text'}\n{code}\n```\n")
  return "\n".join(result)
