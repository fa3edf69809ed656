"""Paths as users write them: expands `~`, and checks that URLs of buckets can be read."""

import argparse
import importlib.util
import os
import re
import traceback
from typing import Any

from drope_jax.errors import ConfigError

# The URL schemes that etils' epath reads, and the libraries of which one must be installed.
_BUCKETS = {
  "gs": ("gcsfs", "tensorflow"),
  "s3": ("s3fs", "tensorflow"),
  "az": ("adlfs", "tensorflow"),
  "hf": ("huggingface_hub",),
}
_SCHEME = re.compile(r"(\w+)://")


def path(text: str, local: bool = False) -> str:
  """A path or URL, with a leading `~` expanded.

  Args:
    local: whether it must be on this machine; pathlib would take a URL for a folder named `gs:`.

  Raises:
    ConfigError: the path is empty, is a URL although it must be local, or needs a library that is missing.
  """
  if not text:
    raise ConfigError("a path is empty")
  scheme = _known_scheme(text)
  if scheme is not None and local:
    raise ConfigError(f"{text}: a URL; it must be a path on this machine, so copy it")
  if scheme is not None and not any(importlib.util.find_spec(name) for name in _BUCKETS[scheme]):
    raise ConfigError(f"{text} needs {_BUCKETS[scheme][0]}, which is not installed: pip install {_BUCKETS[scheme][0]}")
  return os.path.expanduser(text)


def argument(text: str, local: bool = True) -> str:
  """`path`, for the `type` of an argparse argument."""
  try:
    return path(text, local)
  except ConfigError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def expanded(data: Any) -> Any:
  """The plain data of a config, with `~` expanded in its strings.

  Libraries for buckets are not required: `drope_jax.aot` compiles for other machines.

  Raises:
    ConfigError: a string is a URL with an unknown scheme.
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
  """Whether the error comes from fsspec, which reads buckets, because it lacks a library."""
  *_, last = traceback.extract_tb(error.__traceback__) or [None]
  return last is not None and "fsspec" in last.filename


def _known_scheme(text: str) -> str | None:
  found = _SCHEME.match(text)
  if found is not None and found[1] not in _BUCKETS:
    raise ConfigError(f"{text}: a URL begins with {', '.join(f'{name}://' for name in _BUCKETS)}")
  return None if found is None else found[1]
