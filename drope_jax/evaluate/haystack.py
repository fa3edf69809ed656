"""What needles are hidden in: essays from a folder, a dataset's documents, or prose that every Python brings along."""

import pydoc_data.topics
import re
from pathlib import Path

from drope_jax.data.corpus import documents
from drope_jax.errors import ConfigError

SPLIT = "heldout"  # of a dataset that is named without one
MOST_CHARACTERS = 4_000_000  # of a dataset: about a million tokens, and a haystack repeats it where it ends

_OTHER = re.compile(r"\.(parquet|jsonl|ndjson|array_record)\b")  # what is not files of text, by its name
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(\s+)(?=[A-Z0-9\"'(\[])")


def read_essays(path: Path | None) -> str:
  """The text of a folder's .txt files in the order of their names, of one file, or of a dataset's documents.

  None: the language reference of the running Python (`pydoc_data.topics`, PSF licence), its prose without the code.

  Args:
    path: a dataset is `DIR`, where its dataset_info.json lies (its split SPLIT), or `DIR:SPLIT`, or parquet, JSON lines
      or array_record (data/sources/at.py); of its documents the first MOST_CHARACTERS are taken.

  Raises:
    ConfigError: naming the path, if there is no text.
  """
  if path is None:
    return _python_reference()
  directory, _, split = str(path).partition(":")
  if (Path(directory) / "dataset_info.json").exists():
    return _first_documents(directory, split or SPLIT)
  if _OTHER.search(path.name) or (path.is_dir() and any(_OTHER.search(file.name) for file in path.iterdir())):
    return _first_documents(str(path), "train")
  files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
  try:
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path}: cannot be read as text ({error})") from error
  if not text.strip():
    raise ConfigError(f"{path}: holds no text (no .txt file with content)")
  return text


def split_sentences(text: str) -> list[str]:
  """`text` cut after the end of a sentence, its closing quotes and brackets included, where another can begin."""
  cuts = [match.span(1) for match in _SENTENCE_END.finditer(text)]
  begins, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
  return [text[begin:end] for begin, end in zip(begins, ends, strict=True) if begin < end]


def _first_documents(directory: str, split: str) -> str:
  texts, size = [], 0
  for text in documents(directory, split):
    texts.append(text)
    size += len(text)
    if size >= MOST_CHARACTERS:
      break
  joined = "\n\n".join(texts)[:MOST_CHARACTERS]
  if not joined.strip():
    raise ConfigError(f"{directory}: the documents of its split {split!r} hold no text")
  return joined


def _python_reference() -> str:
  kept = []
  for text in pydoc_data.topics.topics.values():
    for paragraph in text.split("\n\n"):
      flat = " ".join(paragraph.split())
      code = paragraph.startswith("   ") or "::=" in flat or "***" in flat or "===" in flat
      if not code and len(flat) > 80 and flat[0].isalpha() and flat[-1] in ".!?":
        kept.append(flat)
  return "\n\n".join(kept)
