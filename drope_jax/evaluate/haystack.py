"""What needles are hidden in: essays from a folder, or prose that every Python brings along."""

import pydoc_data.topics
import re
from pathlib import Path

from drope_jax.config import ConfigError

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[])")


def read_essays(path: Path | None) -> str:
  """The text of a folder's .txt files in the order of their names, or of one file.

  None: the language reference of the running Python (`pydoc_data.topics`, PSF licence), its prose without the code.

  Raises:
    ConfigError: naming the path, if there is no text.
  """
  if path is None:
    return _python_reference()
  files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
  try:
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path}: cannot be read as text ({error})") from error
  if not text.strip():
    raise ConfigError(f"{path}: holds no text (no .txt file with content)")
  return text


def split_sentences(text: str) -> list[str]:
  """`text` cut after sentence-ending punctuation that is followed by what can begin a sentence."""
  return [one for one in _SENTENCE_END.split(text) if one]


def _python_reference() -> str:
  kept = []
  for text in pydoc_data.topics.topics.values():
    for paragraph in text.split("\n\n"):
      flat = " ".join(paragraph.split())
      code = paragraph.startswith("   ") or "::=" in flat or "***" in flat or "===" in flat
      if not code and len(flat) > 80 and flat[0].isalpha() and flat[-1] in ".!?":
        kept.append(flat)
  return "\n\n".join(kept)
