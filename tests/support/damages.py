"""Damage to files, as by disks, broken copies and strangers; each is a function of the file's path."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def cut(path: Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
  path.write_bytes(b"")


def deleted(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink()


def folder(path: Path) -> None:
  deleted(path)
  path.mkdir()


def noise(path: Path) -> None:
  size = path.stat().st_size if path.is_file() else 100
  deleted(path)
  path.write_bytes(random.Random(0).randbytes(size))


def scratched(path: Path) -> None:
  """Random bytes in the middle; the size is unchanged."""
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 40] = random.Random(1).randbytes(len(data[middle : middle + 40]))
  path.write_bytes(data)


def text(content: str) -> Damage:
  def write(path: Path) -> None:
    path.write_text(content)

  write.__name__ = content[:20]
  return write


def field(place: str, value: Any) -> Damage:
  """Another value at a dotted path in a JSON file; `...` removes the field."""

  def change(path: Path) -> None:
    data = json.loads(path.read_text())
    *steps, last = (int(step) if step.isdigit() else step for step in place.split("."))
    inner = data
    for step in steps:
      inner = inner[step]
    if value is ...:
      del inner[last]
    else:
      inner[last] = value
    path.write_text(json.dumps(data))

  change.__name__ = f"{place}={value!r}"
  return change


def record(number: int, changes: Any) -> Damage:
  """Other fields in one record of a file of JSON lines, or another record in its place."""

  def change(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changes} if isinstance(changes, dict) else changes)
    path.write_text("\n".join(lines) + "\n")

  change.__name__ = f"{number}: {changes}"
  return change


def index_naming(file: str) -> Damage:
  """A model.safetensors.index.json that names an existing file outside of the folder."""

  def write(path: Path) -> None:
    weights = path.parent / "model.safetensors"
    outside = weights.rename(path.parent.parent / "outside.safetensors")
    path.write_text(json.dumps({"weight_map": {"model.norm.weight": file.format(outside=outside)}}))

  write.__name__ = file
  return write
