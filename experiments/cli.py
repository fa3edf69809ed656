"""What the commands share: flags, log lines a person reads, errors of one line, and exit statuses.

Exit status: 0 done, 1 failed, 2 bad usage or config.
"""

import logging
import shlex
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from drope_jax.checkpoint import CheckpointError
from drope_jax.config import ConfigError
from drope_jax.sharding import parse_mesh as parse_mesh
from experiments.reporting.records import ReportError


def run(main: Callable[[], Any], default_config: str | None = None) -> None:
  """Parses the flags (`--config` is `default_config` if not given), runs `main`, and ends with its exit status."""

  def parse(arguments: list[str]) -> list[str]:
    if default_config is not None and not any(a.split("=")[0].lstrip("-") == "config" for a in arguments):
      # Not as the flag's own default: config_flags would read the overrides, and fail, where the flag is defined.
      arguments = [arguments[0], f"--config={default_config}", *arguments[1:]]
    return _parse(arguments)

  app.run(lambda _: sys.exit(_run(main)), flags_parser=parse)


def settings(flag: flags.FlagHolder) -> Any:
  """The value of a config flag. Raises ConfigError if its file could not be read: config_flags keeps that for later."""
  try:
    fields = flag.value.__dataclass_fields__
  except (OSError, AttributeError) as error:
    raise ConfigError(f"--config: {' '.join(str(error).split())}") from error
  assert fields
  return flag.value


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
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    sys.exit(_fail(str(error).strip("'\"").splitlines()[0], 2))


def _run(main: Callable[[], Any]) -> int:
  absl_logging.set_verbosity(absl_logging.ERROR)  # orbax and tfds tell of every file they touch
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
  for name in ("drope_jax", "experiments"):
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
  try:
    main()
  except ConfigError as error:
    return _fail(error, 2)
  except ModuleNotFoundError as error:
    return _fail(error, 1)
  except (CheckpointError, ReportError, FloatingPointError, OSError) as error:
    return _fail(error, 1)
  return 0
