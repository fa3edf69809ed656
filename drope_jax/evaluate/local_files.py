"""Released data sets, read from a folder on this machine."""

import json
from pathlib import Path
from typing import Any

from drope_jax.errors import ConfigError


def read_jsonl(path: Path, fields: tuple[str, ...], limit: int | None = None) -> list[dict[str, Any]]:
  """The records of a file, at most `limit` of them, each with all of `fields`.

  Raises:
    ConfigError: naming the file, and the line where it is not what it should be.
  """
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path}: cannot be read ({error})") from error
  records: list[dict[str, Any]] = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    if len(records) == limit:
      break
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise ConfigError(f"{path}:{number}: not JSON ({error})") from error
    missing = [field for field in fields if not isinstance(record, dict) or field not in record]
    if missing:
      raise ConfigError(f"{path}:{number}: the field {missing[0]!r} is missing")
    records.append(record)
  if not records:
    raise ConfigError(f"{path}: holds no record")
  return records
