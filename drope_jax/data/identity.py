"""Identifies the data of a stream of batches by content, independent of where its files are."""

import functools
import hashlib
import logging
from typing import Any

from drope_jax.data.sources import Documents
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import CheckpointError

# Text that tokenizers split differently: spaces, digits, punctuation, case, code, scripts, emoji.
_SAMPLE = "  It's 12,345.67 tokens\n\n\tdef f(x): return x**2  # naïve ÉCOLE 北京 привет 👩‍🚀\r\nend of   it."

logger = logging.getLogger(__name__)


def digest(tokenizer: Tokenizer) -> str:
  """Identifies a tokenizer by content: the text of each id, its special tokens, and the tokens of a sample."""
  known = hashlib.sha256(repr((tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id)).encode())
  known.update(repr([tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]).encode())
  known.update(repr(tokenizer.encode(_SAMPLE)).encode())
  return known.hexdigest()[:16]


class Content:
  """Identifies the documents and the tokenizer of a stream, independent of where the files are.

  It compares the number of documents; the size of each file; SAMPLED documents, evenly spread, or all documents of
  sources of at most SMALL bytes (sources/source.py); the tokenizer; and for JSON lines a checksum of every file. If not
  all documents are compared, and files have other names or modification times, a warning says so: they may be copies.

  Args:
    warns: whether this process logs that warning; of several processes, only the first does.
  """

  def __init__(self, documents: Documents, tokenizer: Tokenizer, warns: bool = True):
    self._documents, self._tokenizer, self._warns = documents, tokenizer, warns

  @functools.cached_property
  def record(self) -> dict[str, Any]:
    documents = self._documents
    return {"documents": len(documents), "digest": documents.digest, "tokenizer": digest(self._tokenizer)}

  @functools.cached_property
  def state(self) -> dict[str, Any]:
    """The record, and digests of the files' names, times and checksums; this is stored in checkpoints."""
    files = self._documents.stored
    if not files:
      return self.record
    sums = [file.sum for file in files]
    return {
      **self.record,
      "files": {
        "count": len(files),
        "names": _short([(file.name, file.size) for file in files]),
        "written": _short([file.written for file in files]),
        "sums": None if None in sums else _short(sums),
      },
    }

  def check(self, there: dict[str, Any] | None) -> None:
    """Raises CheckpointError if a checkpoint's record (None: of an earlier version) has other content."""
    if there is None:
      logger.warning("the checkpoint does not say what its data was (it is of an earlier version); is it the same?")
      return
    for name, what in (("documents", "number of documents"), ("digest", "documents"), ("tokenizer", "tokenizer")):
      if there[name] != self.record[name]:
        raise CheckpointError(
          f"{self._documents.name}: the data has changed since the checkpoint was written: the {what} is "
          f"{self.record[name]}, and was {there[name]}; restore it, or start another run"
        )
    self._check_files(there.get("files"), self.state.get("files"))

  def _check_files(self, there: dict[str, Any] | None, here: dict[str, Any] | None) -> None:
    if there is None or here is None:  # of an earlier version, or a source without files
      return
    if None not in (there["sums"], here["sums"]):
      if there["sums"] != here["sums"]:
        raise CheckpointError(
          f"{self._documents.name}: the data has changed since the checkpoint was written: the content of its files is "
          "another, by their checksums; restore it, or start another run"
        )
      return
    count = self._documents.sampled
    other = [what for what in ("names", "written") if there[what] != here[what]]
    if other and count < len(self._documents) and self._warns:
      logger.warning(
        "%s: its %d files %s; their sizes and %d documents spread over them are the same as in the checkpoint, and the "
        "others were not compared: were they copied, or edited?",
        self._documents.name,
        here["count"],
        "have other names than before" if "names" in other else "were written at another time than before",
        count,
      )


def _short(data: Any) -> str:
  return hashlib.sha256(repr(data).encode()).hexdigest()[:16]
