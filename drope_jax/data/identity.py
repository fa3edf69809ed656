"""What a stream of batches was made from, known by its content, wherever the files lie."""

import functools
import hashlib
import logging
from typing import Any

from drope_jax.data.sources import Documents
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import CheckpointError

# What tokenizers cut differently: spaces, digits, marks, cases, code, scripts, emoji.
_SAMPLE = "  It's 12,345.67 tokens\n\n\tdef f(x): return x**2  # naïve ÉCOLE 北京 привет 👩‍🚀\r\nend of   it."

logger = logging.getLogger(__name__)


def digest(tokenizer: Tokenizer) -> str:
  """What a tokenizer is known by, wherever its files lie: the text of each id, its roles, and how it cuts a sample."""
  known = hashlib.sha256(repr((tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id)).encode())
  known.update(repr([tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]).encode())
  known.update(repr(tokenizer.encode(_SAMPLE)).encode())
  return known.hexdigest()[:16]


class Content:
  """What a stream was made from, known by its content: where the files lie does not matter."""

  def __init__(self, documents: Documents, tokenizer: Tokenizer):
    self._documents, self._tokenizer = documents, tokenizer

  @functools.cached_property
  def record(self) -> dict[str, Any]:
    documents = self._documents
    return {"documents": len(documents), "digest": documents.digest, "tokenizer": digest(self._tokenizer)}

  def check(self, there: dict[str, Any] | None) -> None:
    """Raises CheckpointError if a checkpoint's record (None: of an earlier version) is of other content."""
    if there is None:
      logger.warning("the checkpoint does not say what its data was (it is of an earlier version); is it the same?")
      return
    for name, what in (("documents", "number of documents"), ("digest", "documents"), ("tokenizer", "tokenizer")):
      if there[name] != self.record[name]:
        raise CheckpointError(
          f"{self._documents.name}: the data has changed since the checkpoint was written: the {what} is "
          f"{self.record[name]}, and was {there[name]}; restore it, or start another run"
        )
