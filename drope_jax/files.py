"""Files that are written whole or not at all, and what a directory holds."""

import json
import os
from pathlib import Path
from typing import Any

from etils import epath

DRAFT = ".draft"  # behind the name of a file that is being written


def write_json(data: Any, path: Path) -> None:
  """Writes a file of JSON, or replaces it, whole: whoever reads it meanwhile reads the old one."""
  draft = path.with_name(path.name + DRAFT)
  draft.write_text(json.dumps(data, indent=2) + "\n")
  draft.replace(path)


def holds_something(directory: Path) -> bool:
  """Whether a directory is there and not empty; a draft that a crash has left does not count."""
  return directory.exists() and any(not path.name.endswith(DRAFT) for path in directory.iterdir())


def is_local(path: epath.PathLike) -> bool:
  """Whether a path is one of the operating system's, and not in a bucket (gs://, s3://)."""
  return "://" not in os.fspath(epath.Path(path))
