"""Checks a call of lm-evaluation-harness before its libraries are imported, which takes long, as do their retries.

Without a network its data sets cannot be fetched: tasks that need one then fail at once, instead of after minutes.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.evaluate.methods import Method

logger = logging.getLogger(__name__)

SECONDS = 5.0  # timeout of a connection


def _truth(text: str) -> bool:
  return {"true": True, "false": False}[text.lower()]


# The settings of harness.DropeJax that --model_args accepts, with their parsers.
ARGUMENTS: Mapping[str, Callable[[str], Any]] = {
  "checkpoint": str,
  "method": Method.parse,
  "c": float,
  "length": int,
  "step": int,
  "bos": _truth,
  "batch_tokens": int,
}


def runs_our_model(words: Sequence[str]) -> bool:
  """Whether the call evaluates a checkpoint of ours: the harness has other subcommands, and other models."""
  return "run" in words and _value(words, "--model") == "drope_jax"


def check_call(words: Sequence[str]) -> None:
  """Raises ConfigError or CheckpointError for what is wrong in the `--model_args` of a call with our model."""
  if not runs_our_model(words):
    return
  said = dict(part.partition("=")[::2] for part in _value(words, "--model_args").split(",") if part)
  for name, text in said.items():
    if name not in ARGUMENTS:
      raise ConfigError(f"--model_args has {name!r}; allowed: {', '.join(ARGUMENTS)}")
    try:
      ARGUMENTS[name](text)
    except ConfigError:
      raise
    except (KeyError, ValueError) as error:
      raise ConfigError(f"--model_args has {name}={text}, which is not of type {_type_name(name)}") from error
  checkpoint = said.get("checkpoint")
  if not checkpoint:
    raise ConfigError("--model_args needs checkpoint=DIR, the workdir of a run or an imported model")
  if "://" not in checkpoint and not (Path(checkpoint) / "checkpoints").exists():
    raise CheckpointError(f"{checkpoint}: not the workdir of a run (there is no checkpoints/ in it)")


def prepare_network() -> None:
  """Sets the harness's libraries to offline mode if there is no network, and limits their timeouts."""
  import requests
  from huggingface_hub import constants

  socket.setdefaulttimeout(SECONDS)
  if constants.HF_HUB_OFFLINE:
    return
  try:
    requests.head(constants.ENDPOINT, timeout=SECONDS)
  except requests.RequestException:
    logger.warning("no network: only tasks whose data is on this machine can be measured")
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def _value(words: Sequence[str], flag: str) -> str:
  """The value of `--flag VALUE ...` or `--flag=VALUE`; several words are joined with commas."""
  for i, word in enumerate(words):
    if word.startswith(f"{flag}="):
      return word.partition("=")[2]
    if word == flag:
      rest = list(words[i + 1 :])
      end = next((j for j, one in enumerate(rest) if one.startswith("-")), len(rest))
      return ",".join(rest[:end])
  return ""


def _type_name(name: str) -> str:
  return "bool" if name == "bos" else ARGUMENTS[name].__name__
