"""What the commands share: flags, log lines a person reads, errors of one line, and exit statuses.

Exit status: 0 done, or stopped by SIGTERM with what was done kept; 1 failed; 2 bad usage or config.
"""

import contextlib
import dataclasses
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from drope_jax.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

FAILURES = (ModuleNotFoundError, FloatingPointError, OSError)  # not ours, and yet of use to the user as they are


class Terminated(BaseException):
  """SIGTERM came, and this is where it stopped us ("at step 3").

  Like KeyboardInterrupt no Exception, which a library might take for an error of its own.
  """


def run(
  main: Callable[[], Any], default_config: str | None = None, stopped_status: flags.FlagHolder[int] | None = None
) -> None:
  """Parses the flags (`--config` is `default_config` if not given), runs `main`, and ends with its exit status.

  That of a command that SIGTERM stopped is the value of the flag `stopped_status`, or 0.
  """

  def parse(arguments: list[str]) -> list[str]:
    if default_config is not None and not any(a.split("=")[0].lstrip("-") == "config" for a in arguments):
      # Not as the flag's own default: config_flags would read the overrides, and fail, where the flag is defined.
      arguments = [arguments[0], f"--config={default_config}", *arguments[1:]]
    return _parse(arguments)

  app.run(lambda _: sys.exit(_run(main, stopped_status)), flags_parser=parse)


def settings(flag: flags.FlagHolder, wanted: str, is_wanted: Callable[[Any], bool]) -> Any:
  """The value of a config flag.

  Raises:
    ConfigError: its file could not be read (config_flags keeps that for later), or holds the config of another command.
  """
  try:
    found = flag.value
    dataclasses.fields(found)  # where the file could not be read, this raises its error
  except (OSError, AttributeError, TypeError) as error:
    raise ConfigError(f"--config: {' '.join(str(error).split())}") from error
  if not is_wanted(found):
    raise ConfigError(f"--config: the file has a {type(found).__name__}; this command needs {wanted}")
  return found


def command_line() -> str:
  """The command that runs, as one would type it."""
  module = getattr(sys.modules["__main__"], "__spec__", None)
  name = ["python", "-m", module.name] if module else ["python", sys.argv[0]]
  return shlex.join([*name, *sys.argv[1:]])


def _fail(message: object, status: int) -> int:
  print(f"error: {message}", file=sys.stderr)
  return status


def _parse(arguments: list[str]) -> list[str]:
  try:
    positional = flags.FLAGS(arguments)
    if len(positional) > 1:
      raise flags.UnrecognizedFlagError(positional[1])
    return positional
  # config_flags reports an unknown field or a bad value by whatever setting it raised.
  except (flags.Error, AttributeError, ImportError, KeyError, TypeError, ValueError, OSError) as error:
    sys.exit(_fail(_one_line(error), 2))


def _one_line(error: Exception) -> str:
  """What an error says; of one that quotes the traceback of another, as config_flags' of a config file, the end too."""
  said = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of one puts it into quotes
  lines = [line for line in str(said).splitlines() if line] or [repr(error)]
  if not any(line.startswith("Traceback") for line in lines):
    return lines[0]
  return f"{lines[0]} {lines[-1].removeprefix('drope_jax.errors.ConfigError: ')}"


def _run(main: Callable[[], Any], stopped_status: flags.FlagHolder[int] | None) -> int:
  absl_logging.set_verbosity(absl_logging.ERROR)  # orbax and tfds tell of every file they touch
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
  for name in ("drope_jax", "experiments"):
    ours = logging.getLogger(name)
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
  try:
    with _terminable():
      main()
  except Terminated as stopped:
    logger.info("stopped %s; run the same command to go on from there", stopped)
    return 0 if stopped_status is None else stopped_status.value
  except UserError as error:
    return _fail(error, error.exit_status)
  except FAILURES as error:
    return _fail(error, 1)
  return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
  """SIGTERM raises Terminated, except where someone listens in our place, as the training loop does to save first.

  A timer raises it again until it is heard: a callback from C, such as a `__del__`, lets no error out of it.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def terminate(number: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    if not _deaf(frame) and not _heard(sys.exc_info()[1]):
      raise Terminated("by SIGTERM")

  before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGALRM)}
  try:
    yield
  finally:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
      signal.signal(number, handler)


def _deaf(frame: FrameType | None) -> bool:
  """Is it in code that would only log what is raised: asyncio, where orbax reads, or JAX's in a garbage collection?"""
  while frame is not None:
    if frame.f_globals.get("__name__", "").startswith(("asyncio.", "jax._src.lib")):
      return True
    frame = frame.f_back
  return False


def _heard(error: BaseException | None) -> bool:
  """Does Terminated go up, so that what runs is the cleaning up?"""
  while error is not None:
    if isinstance(error, Terminated):
      return True
    error = error.__context__
  return False
