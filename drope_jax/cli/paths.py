"""Paths as users write them: `~` is their home, and the URL of a bucket needs the library that reads it."""

import argparse
import importlib.util
import os
import re
import traceback
from typing import Any

from drope_jax.errors import ConfigError

# What etils' epath reads, and the libraries of which one must be there.
_BUCKETS = {
  "gs": ("gcsfs", "tensorflow"),
  "s3": ("s3fs", "tensorflow"),
  "az": ("adlfs", "tensorflow"),
  "hf": ("huggingface_hub",),
}
_SCHEME = re.compile(r"(\w+)://")


def path(text: str, local: bool = False) -> str:
  """A path or URL with the user's home in place of a leading `~`.

  Args:
    local: whether it must lie on this machine. pathlib would take a URL for a folder named `gs:`.

  Raises:
    ConfigError: the path is empty, is a URL where none can be, or needs a library that is missing.
  """
  if not text:
    raise ConfigError("a path is empty")
  scheme = _known_scheme(text)
  if scheme is not None and local:
    raise ConfigError(f"{text}: a URL; it must be a path on this machine, so copy it")
  if scheme is not None and not any(importlib.util.find_spec(name) for name in _BUCKETS[scheme]):
    raise ConfigError(f"{text} needs {_BUCKETS[scheme][0]}, which is not installed: pip install {_BUCKETS[scheme][0]}")
  return os.path.expanduser(text)


def argument(text: str) -> str:
  """`path` of a local one, as the `type` of an argument of argparse."""
  try:
    return path(text, local=True)
  except ConfigError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def expanded(data: Any) -> Any:
  """The plain data of a config, with the user's home in its texts.

  The library that reads a bucket need not be here: `drope_jax.aot` compiles for machines that read it.

  Raises:
    ConfigError: a text is a URL of no bucket that can be read.
  """
  if isinstance(data, dict):
    return {name: expanded(value) for name, value in data.items()}
  if isinstance(data, list):
    return [expanded(value) for value in data]
  if not isinstance(data, str):
    return data
  _known_scheme(data)
  return os.path.expanduser(data)


def lacks_library(error: ImportError) -> bool:
  """Whether fsspec, which reads buckets, has not found the library that it needs."""
  *_, last = traceback.extract_tb(error.__traceback__) or [None]
  return last is not None and "fsspec" in last.filename


def _known_scheme(text: str) -> str | None:
  found = _SCHEME.match(text)
  if found is not None and found[1] not in _BUCKETS:
    raise ConfigError(f"{text}: a URL begins with {', '.join(f'{name}://' for name in _BUCKETS)}")
  return None if found is None else found[1]
