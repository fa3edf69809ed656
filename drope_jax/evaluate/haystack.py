"""The haystack of needle tasks: essays from a folder, documents of a dataset, or prose that is part of Python."""

import pydoc_data.topics
import re
from pathlib import Path

from etils import epath

from drope_jax.data.sources.prepared import prepared_directory
from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError
from drope_jax.files import is_local

SPLIT = "heldout"  # the split of a TFDS dataset that is named without one
MOST_CHARACTERS = 4_000_000  # taken from a dataset: about a million tokens; longer haystacks repeat them

# Names of files or patterns that are not plain text.
_OTHER = re.compile(r"\.(parquet|jsonl|ndjson|array_record|gz|zst)\b|[*?\[#]")
_DIR_AND_SPLIT = re.compile(r"(.*[^:]):(\w+(?:\[.*\])?)")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(\s+)(?=[A-Z0-9\"'(\[])")


def read_essays(path: epath.PathLike | None) -> str:
  """The text of a folder's .txt files (sorted by name), of one file, or of a dataset's documents.

  Args:
    path: a folder, a file, or any dataset that data/sources/at.py recognises; one prepared by TFDS is given as `DIR`
      (its split SPLIT) or `DIR:SPLIT`. Of a dataset, the first MOST_CHARACTERS are taken. None: the prose of the
      language reference of the running Python (`pydoc_data.topics`, PSF licence), without code.

  Raises:
    ConfigError: naming the path, if there is no text.
  """
  if path is None:
    return _python_reference()
  named = str(path)
  with_split = _DIR_AND_SPLIT.fullmatch(named)
  if with_split and prepared_directory(with_split[1]):
    return _first_documents(with_split[1], with_split[2])
  if prepared_directory(named):
    return _first_documents(named, SPLIT)
  here = Path(named).expanduser()
  if not is_local(named) or _OTHER.search(here.name) or not (here.is_dir() or here.is_file()):
    return _first_documents(named, "train")
  if here.is_dir() and (any(_OTHER.search(file.name) for file in here.iterdir()) or not any(here.rglob("*.txt"))):
    return _first_documents(named, "train")
  files = sorted(here.rglob("*.txt")) if here.is_dir() else [here]
  try:
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path}: cannot be read as text ({error})") from error
  if not text.strip():
    raise ConfigError(f"{path}: holds no text (no .txt file with content)")
  return text


def split_sentences(text: str) -> list[str]:
  """Splits `text` into sentences; closing quotes and brackets belong to the sentence before them."""
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
