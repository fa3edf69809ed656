"""Logs the answers to the samples of one measurement, so that an interruption loses none of them.

One line per sample: its index, a digest of its prompt, the tokens generated, and the text they spell.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drope_jax.files import append_json_lines, read_json_lines


def digest(tokens: Sequence[int] | np.ndarray) -> str:
  """A short hash that identifies a prompt."""
  return hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()[:16]


def fingerprint(parts: Iterable[str | np.ndarray]) -> str:
  """A hash that identifies a sequence of texts or arrays: 12 hexadecimal digits."""
  known = hashlib.sha256()
  for part in parts:
    data = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
    known.update(len(data).to_bytes(8, "little") + data)
  return known.hexdigest()[:12]


class SampleLog:
  """The file of one measurement; samples in it are not generated again if their prompt is the same."""

  def __init__(self, path: Path):
    self.path = path
    self._known: dict[tuple[int, str], list[int]] = {}
    for record in read_json_lines(path, torn="skip") if path.exists() else []:
      self._known[record["index"], record["prompt"]] = record["tokens"]

  def find(self, index: int, prompt: Sequence[int] | np.ndarray) -> list[int] | None:
    """The tokens generated for sample `index`, if its prompt was the same; else None."""
    return self._known.get((index, digest(prompt)))

  def append(self, records: Iterable[dict[str, Any]]) -> None:
    """Adds records of `index`, `prompt` (its digest), `tokens` and `text`."""
    append_json_lines(records, self.path)
