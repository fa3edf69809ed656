"""Validation of the `meta` of a checkpoint, so that a damaged one is reported as such."""

from typing import Any

from drope_jax.errors import CheckpointError

_NUMBER = int | float
_OF_ALL: dict[str, Any] = {"step": int, "tokens": int, "seconds": _NUMBER, "versions": dict}
_OF_A_RUN: dict[str, Any] = {"config": dict}
_OF_AN_IMPORT: dict[str, Any] = {"model": dict, "context": int, "origin": dict}


def check_meta(meta: Any, path: Any) -> dict[str, Any]:
  """Returns `meta`. Raises CheckpointError naming `path` if a field is missing or has the wrong type."""
  if not isinstance(meta, dict):
    raise CheckpointError(f"{path}: its meta is no object of JSON")
  for name, kind in {**_OF_ALL, **(_OF_AN_IMPORT if "origin" in meta else _OF_A_RUN)}.items():
    if name not in meta:
      raise CheckpointError(f"{path}: its meta has no {name!r}")
    value = meta[name]
    if not isinstance(value, kind) or isinstance(value, bool):
      raise CheckpointError(f"{path}: its meta has {name} = {str(value)[:100]!r}, which is of another type")
    if kind is int and value < (name == "context"):
      raise CheckpointError(f"{path}: its meta has {name} = {value}")
  return meta
