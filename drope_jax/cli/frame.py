"""Running a command: parsing flags, logging for people, `--help`, one-line errors, and exit statuses.

Exit status: 0 done, or stopped by a signal (SIGTERM, Ctrl-C); 1 failed; 2 bad usage or config. A command of RESUMABLE
that was stopped keeps its work, and the same command resumes it; any other leaves nothing half done, and starts over.
For signals at other moments, and a second Ctrl-C, see interrupts.py.
"""

import argparse
import contextlib
import gc
import logging
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from absl import flags
from absl import logging as absl_logging

from drope_jax import cpu
from drope_jax.cli import compiled, memory, modules, paths
from drope_jax.cli.flags import CONFIG, IMPORT, IMPORT_HELP, config_flag, import_modules
from drope_jax.cli.help import absl_flags, help_text, screen_width
from drope_jax.cli.signals import Terminated, terminable
from drope_jax.errors import ConfigError, ToolError, UserError

logger = logging.getLogger(__name__)

# Exceptions of others whose messages are useful as they are.
FAILURES = (ModuleNotFoundError, FloatingPointError, OSError)
RESUMABLE = (
  "drope_jax.data.tokenize",
  "experiments.evaluate",
  "experiments.quickstart",
  "experiments.study",
  "experiments.train",
)
HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def run(
  main: Callable[[], Any],
  stopped_status: flags.FlagHolder[int] | None = None,
  computes: bool = False,
  saves_memory: str = "",
  leave: Callable[[int], None] | None = None,
) -> NoReturn:
  """Parses absl's flags, imports the modules of `--import`, runs `main`, and ends with its exit status.

  Args:
    stopped_status: the flag with the exit status for a command that a signal stopped; 0 if there is none.
    computes: whether the command runs models: compiled programs are then cached (compiled.py), and on a CPU it restarts
      itself (cpu.py).
    saves_memory: the setting that halves the memory needed, for the message if there is too little.
    leave: called with the exit status before the process ends; it may end the process itself.
  """

  def parsed() -> None:
    _parse(sys.argv)
    import_modules(IMPORT.value)
    main()

  if _asks_for_help(sys.argv[1:]):
    print(_help())
    sys.exit(0)
  if computes:
    _prepare_to_compute()
  gc.freeze()  # what is imported stays: it need not be looked through again with all that tracing makes
  status = _framed(parsed, stopped_status, _resumes(main), saves_memory)
  if leave is not None:
    leave(status)
  gc.freeze()  # skips freeing objects one by one at exit, which takes Python half a second
  sys.exit(status)


class Parser(argparse.ArgumentParser):
  """For commands with positional arguments or several subcommands; use with `run_parsed`.

  `about` is the docstring of the command's module, which `--help` prints before the flags.
  """

  def __init__(self, *, about: str | None = None, **keywords: Any):
    super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)
    self.add_argument(f"--{IMPORT.name}", metavar="MODULE", help=IMPORT_HELP)

  def error(self, message: str) -> NoReturn:
    raise ConfigError(f"{message} ({self.prog} --help)")


def run_parsed(
  parser: Parser,
  main: Callable[[argparse.Namespace], Any],
  arguments: Sequence[str] | None = None,
  computes: bool = False,
) -> int:
  """Parses `arguments` (default: the command line), imports the modules of `--import`, and runs `main` on them.

  `computes` is as for `run`, and counts where `arguments` are those of the command line.

  Returns:
    The exit status.
  """
  given = sys.argv[1:] if arguments is None else list(arguments)

  def parsed() -> None:
    # --target_length, in the style of absl, means --target-length.
    dashed = [re.sub(r"^--\w+", lambda match: match[0].replace("_", "-"), word) for word in given]
    imported, rest = _take_imports(dashed)
    found = parser.parse_args(rest)
    import_modules(imported)
    main(found)

  if arguments is None and computes and not _asks_for_help(given):
    _prepare_to_compute()
  return _framed(parsed, None, _resumes(main))


def run_foreign(main: Callable[[], Any]) -> NoReturn:
  """Runs a command of another library, which parses `sys.argv` itself; our `--import` is removed first.

  Exceptions raised by that library are reported in one line, since it uses them for usage errors; ours are not.
  """

  def imported() -> None:
    texts, rest = _take_imports(sys.argv)
    import_modules(texts)
    sys.argv[:] = rest
    try:
      main()
    except modules.FAULTS as error:
      innermost = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
      if innermost.partition(".")[0] in ("drope_jax", "__main__", "jax", "numpy"):
        raise
      raise ToolError(modules.describe(error, None)) from error

  sys.exit(_framed(imported, None, _resumes(main)))


def run_first(*parts: Callable[[], Any]) -> None:
  """Runs the first parts of a command, before slow imports; ends the program if a part fails."""

  def every() -> None:
    for part in parts:
      part()

  status = _framed(every, None, False)
  if status:
    sys.exit(status)


def command_line() -> str:
  """The running command, as one would type it in a shell."""
  return f"{_program()} {shlex.join(sys.argv[1:])}".rstrip()


def _asks_for_help(words: Sequence[str]) -> bool:
  return any(word in HELP for word in words)


def _prepare_to_compute() -> None:
  """Starts the command once more where that is faster (cpu.py), and keeps what it compiles (compiled.py)."""
  cpu.restart(command=True)
  compiled.keep()


def _program() -> str:
  module = _module()
  return shlex.join(["python", "-m", module] if module else ["python", sys.argv[0]])


def _module() -> str:
  """The MODULE of `python -m MODULE`; empty if a file or a string is run."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  return spec.name.removesuffix(".__main__") if spec else ""


def _resumes(main: Callable[..., Any]) -> bool:
  """Whether the command with this main function is one of RESUMABLE."""
  return (_module() if main.__module__ == "__main__" else main.__module__) in RESUMABLE


def _framed(
  main: Callable[[], Any], stopped_status: flags.FlagHolder[int] | None, resumes: bool, saves_memory: str = ""
) -> int:
  """Runs `main`, reports its errors, and returns the exit status."""
  absl_logging.set_verbosity(absl_logging.ERROR)  # orbax and tfds report every file they touch
  with _logging():
    try:
      with terminable():
        main()
    except Terminated as stopped:
      goes_on = "to go on from there" if resumes else "to start over: nothing half done is left"
      logger.info("stopped %s; run the same command %s", stopped, goes_on)
      return 0 if stopped_status is None else stopped_status.value
    except UserError as error:
      return _fail(error, error.exit_status)
    except FAILURES as error:
      return _fail(error, 1)
    except ImportError as error:
      if not paths.lacks_library(error):
        raise
      return _fail(f"a path of a bucket needs the library that reads it ({error})", 1)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
      line = memory.said(error, saves_memory)
      if line is None:
        raise
      return _fail(line, 1)
    except modules.FAULTS as error:
      line = modules.blamed(error)
      if line is None:
        raise
      return _fail(line, 1)
  return 0


@contextlib.contextmanager
def _logging() -> Iterator[None]:
  """Sends log lines of this project to stderr, with the time."""
  handler = logging.StreamHandler()
  handler.setFormatter(_Line("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
  loggers = [logging.getLogger(name) for name in ("drope_jax", "experiments")]
  before = [(ours.handlers, ours.propagate, ours.level) for ours in loggers]
  for ours in loggers:
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
  try:
    yield
  finally:
    for ours, (handlers, propagate, level) in zip(loggers, before, strict=True):
      ours.handlers, ours.propagate = handlers, propagate
      ours.setLevel(level)


class _Line(logging.Formatter):
  """Formats log lines, with "warning: " before the message of a warning."""

  def formatMessage(self, record: logging.LogRecord) -> str:
    if record.levelno >= logging.WARNING:
      record.message = f"warning: {record.message}"
    return super().formatMessage(record)


def _fail(message: object, status: int) -> int:
  print(f"error: {' '.join(str(message).splitlines())}", file=sys.stderr)
  return status


def _parse(argv: Sequence[str]) -> None:
  """Parses the flags. Raises ConfigError for an unknown flag, a bad value, or a word that is not a flag."""
  words = [_underscored(word) for word in flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)]
  words, overrides = _split(words)
  try:
    positional = flags.FLAGS(words)[1:]
  except flags.Error as error:
    said = " ".join(str(error).split())
    said = re.sub(r"^flag (--\w+)=None: Flag .*", r"\1 is required (--help lists the flags)", said)
    raise ConfigError(said) from error
  if positional:
    raise ConfigError(f"unknown argument {positional[0]!r}: this command takes flags alone (--help lists them)")
  if overrides:
    config_flag().overrides = overrides


def _take_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """The values of `--import=...` or `--import ...`, and the other words."""
  texts, rest = [], []
  remaining = iter(words)
  for word in remaining:
    name, is_set, value = word.partition("=")
    if name == f"--{IMPORT.name}":
      texts.append(value if is_set else next(remaining, ""))
    else:
      rest.append(word)
  return texts, rest


def _underscored(word: str) -> str:
  """Turns --find-batch=3 into --find_batch=3; other words and --config.A.B paths are unchanged."""
  name, is_set, value = word.partition("=")
  if not re.fullmatch(r"--[a-z][a-z-]*", name):
    return word
  name = name.replace("-", "_").removeprefix("__")
  negated = name.startswith("no_") and name not in flags.FLAGS
  return f"--{'no' + name[3:] if negated else name}{is_set}{value}"


def _split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """The words without `--config.A.B=VALUE` (or `--config.A.B VALUE`), and those as pairs of path and value."""
  if CONFIG not in flags.FLAGS:
    return list(words), []
  rest: list[str] = []
  overrides: list[tuple[str, str]] = []
  remaining = list(words)
  while remaining:
    word = remaining.pop(0)
    if word == "--":
      return [*rest, word, *remaining], overrides
    match = re.fullmatch(rf"--?{CONFIG}\.([^=]+)(?:=(.*))?", word, re.DOTALL)
    if match is None:
      rest.append(word)
    elif match[2] is not None:
      overrides.append((match[1], match[2]))
    else:  # without a value it sets a bool to True
      has_value = remaining and not remaining[0].startswith("--")
      overrides.append((match[1], remaining.pop(0) if has_value else "True"))
  return rest, overrides


def _help() -> str:
  """The docstring of the command's module, and its flags."""
  return help_text(sys.modules["__main__"].__doc__ or _program(), absl_flags(sys.argv[0]), screen_width())
