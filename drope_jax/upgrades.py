"""Converts configs written by earlier versions, so that their checkpoints and workdirs can still be used.

There is one function per class that has changed; it maps the fields of a recorded config to the current ones.
"""

import re
from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]


def upgraded(name: str, fields: Fields) -> Fields:
  """The recorded fields of class `name` in their current form."""
  return _UPGRADES[name](dict(fields)) if name in _UPGRADES else fields


def _init_config(fields: Fields) -> Fields:
  """Until 0.1 `drop` was a bool."""
  if "drop" in fields and "transition" not in fields:
    fields["transition"] = {"type": "Drop" if fields.pop("drop") else "Keep"}
  return fields


def _pretrained(fields: Fields) -> Fields:
  """In study.json, likewise; a missing `drop` meant False."""
  if "transition" not in fields:
    fields["transition"] = {"type": "Drop" if fields.pop("drop", False) else "Keep"}
  return fields


_PART = re.compile(r"(?P<metric>[^@]+)@(?:(?P<by>[a-z]+)=)?(?P<at>.+)")
_BETTER = {"loss": "lower", "bits_per_byte": "lower", "first": "lower", "p_first": "lower", "beta": None, "c": None}


def _result(fields: Fields) -> Fields:
  """In results.jsonl, until 0.1 the part was in `metric`: loss@128-192, accuracy@depth=0.25, score@words=8000-."""
  if "by" in fields:
    return fields
  part = _PART.fullmatch(fields["metric"]) if isinstance(fields.get("metric"), str) else None
  if part is not None:
    fields |= {"metric": part["metric"], "by": part["by"] or "position", "at": _at(part["at"])}
  return {"better": _BETTER.get(str(fields.get("metric")), "higher"), **fields}


def _at(text: str) -> Any:
  """A number, or the interval `start-stop`, whose stop may be missing."""
  start, dash, stop = text.partition("-")
  return [_number(start), _number(stop) if stop else None] if dash else _number(start)


def _number(text: str) -> float:
  return int(text) if text.isdigit() else float(text)


def _optim_config(fields: Fields) -> Fields:
  """Until 0.1 AdamW was the only optimizer, and its settings stood beside those of the schedule."""
  moved = {name: fields.pop(name) for name in ("beta1", "beta2", "eps", "weight_decay") if name in fields}
  if moved and "optimizer" not in fields:
    fields["optimizer"] = {"type": "AdamW", **moved}
  return fields


def _train_config(fields: Fields) -> Fields:
  """Until 0.1 cross-entropy was the only objective, and the weight of its z-loss stood in OptimConfig."""
  optim = fields.get("optim")
  if isinstance(optim, dict) and "z_loss" in optim and "objective" not in fields:
    fields["objective"] = {"type": "NextToken", "z_loss": optim["z_loss"]}
    fields["optim"] = {name: value for name, value in optim.items() if name != "z_loss"}
  # Documents were read one by one, and TrainConfig.seed decided their order.
  if isinstance(fields.get("data"), dict):
    fields["data"] = {"interleave": 1, "seed": fields.get("seed", 0), **fields["data"]}
  return fields


_UPGRADES: dict[str, Callable[[Fields], Fields]] = {
  "InitConfig": _init_config,
  "Pretrained": _pretrained,
  "Result": _result,
  "OptimConfig": _optim_config,
  "TrainConfig": _train_config,
}
