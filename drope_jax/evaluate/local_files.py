"""Released data sets, read from a folder on this machine."""

from pathlib import Path
from typing import Any

from drope_jax.errors import FileError
from drope_jax.files import read_json_lines


def read_jsonl(path: Path, fields: tuple[str, ...], limit: int | None = None) -> list[dict[str, Any]]:
  """The records of a file, at most `limit` of them, each with all of `fields`.

  Raises:
    FileError: naming the file, and the line or record that is invalid.
  """
  records = read_json_lines(path, torn="read")[:limit]
  for number, record in enumerate(records, start=1):
    missing = [field for field in fields if not isinstance(record, dict) or field not in record]
    if missing:
      raise FileError(f"{path}: record {number} has no field {missing[0]!r}")
  if not records:
    raise FileError(f"{path}: holds no record")
  return records
