"""Answers to the samples of one measurement, kept as they come so that an interruption loses none of them.

One line per sample: its index, a digest of its prompt, the tokens generated, and the text they spell.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


def digest(tokens: Sequence[int] | np.ndarray) -> str:
  """A short hash that identifies a prompt."""
  return hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()[:16]


def fingerprint(parts: Iterable[str | np.ndarray]) -> str:
  """A hash that identifies texts, or arrays of numbers, together: 12 hexadecimal digits."""
  known = hashlib.sha256()
  for part in parts:
    data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
    known.update(len(data).to_bytes(8, "little") + data)
  return known.hexdigest()[:12]


class SampleLog:
  """The file of one measurement: what it holds is not asked for again, as long as the prompt is the same."""

  def __init__(self, path: Path):
    self.path = path
    self._known: dict[tuple[int, str], list[int]] = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
      try:
        record = json.loads(line)
        self._known[record["index"], record["prompt"]] = record["tokens"]
      except (json.JSONDecodeError, KeyError, TypeError):  # an interruption cut it off
        logger.warning("%s:%d is not a whole record; it is left out", path, number)

  def find(self, index: int, prompt: Sequence[int] | np.ndarray) -> list[int] | None:
    """The tokens generated for sample `index`, if it was asked with this prompt."""
    return self._known.get((index, digest(prompt)))

  def append(self, records: Iterable[dict[str, Any]]) -> None:
    """Adds records of `index`, `prompt` (its digest), `tokens` and `text`."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self.path.open("a+b") as file:
      if file.tell():
        file.seek(-1, 2)
        if file.read(1) != b"\n":
          file.write(b"\n")
      file.write("".join(json.dumps(record) + "\n" for record in records).encode())
