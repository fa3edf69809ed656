"""What tasks are made from."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from drope_jax.data.pipeline import NOTHING_HELD_OUT, evaluation_documents
from drope_jax.data.recall import Lines, sentences
from drope_jax.data.sources import Cut, Source, source_at
from drope_jax.data.splits import cut_share, documents, naming_split
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.haystack import read_essays
from drope_jax.evaluate.ruler_prompts import Material

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalData:
  """Each part is read when a task first asks for it, so that parts which no task needs may be missing."""

  tokenizer: Tokenizer
  longest: int  # tokens; documents are longer
  # A source, or a path that data/sources/at.py knows, with the splits `heldout`, whose sentences are a haystack too,
  # and `fit`.
  dataset: str | Source = ""
  num_documents: int = 24  # of each split, at most
  concatenate: bool = False  # joins documents, which then may be short; else each is a text of its own
  block: int | None = None  # positions of a block of the loss by position; None: half the training context
  needles_per_depth: int = 40
  num_samples: int = 100  # of each task that makes its own samples
  limit: int | None = None  # samples of a data set, from its front; None: all
  longbench: Path | None = None  # folder of LongBench's released files
  multiple_choice: Path | None = None  # folder of the files that tasks/multiple_choice.py names
  haystack: str | Path | None = None  # see haystack.read_essays; None: prose that Python comes with
  seed: int = 0

  @functools.cached_property
  def documents(self) -> Sequence[np.ndarray]:
    """Token ids of held-out documents. Raises ConfigError if there is none that is long enough."""
    return self._long_documents("heldout")

  @functools.cached_property
  def fit_documents(self) -> Sequence[np.ndarray]:
    """Token ids of other documents, to fit the temperature on."""
    return self._long_documents("fit")

  @functools.cached_property
  def lines(self) -> Lines:
    """Held-out sentences, and facts to hide among them."""
    split = self._split("heldout")
    texts = list(split)
    fillers = [one for text in texts for one in sentences(text)]
    with naming_split(self.dataset, "heldout"):
      if not texts:
        raise ConfigError(NOTHING_HELD_OUT)
      if not fillers:
        raise ConfigError(f"none of its {len(texts)} documents has a sentence to hide facts among; name other text")
    self._say_what_is_held_out(f"the sentences of {len(texts)} documents are read", len(split))
    return Lines(self.tokenizer, fillers)

  @functools.cached_property
  def material(self) -> Material:
    """What RULER's prompts are made of: the tokenizer and the haystack."""
    return Material(self.tokenizer, self._essays)

  @functools.cached_property
  def essay_lines(self) -> Lines:
    """The haystack's sentences, as fillers, for tasks without a corpus."""
    return Lines(self.tokenizer, sentences(self._essays))

  @functools.cached_property
  def _essays(self) -> str:
    return read_essays(self.haystack)

  def _long_documents(self, split: str) -> Sequence[np.ndarray]:
    read = concatenated if self.concatenate else evaluation_documents
    texts = self._split(split)
    with naming_split(self.dataset, split):
      found = read(texts, self.tokenizer, self.longest + 1, self.num_documents)
    if split == "heldout":
      self._say_what_is_held_out(f"{len(found)} {'rows' if self.concatenate else 'documents'} are read", len(texts))
    return found

  def _say_what_is_held_out(self, read: str, documents: int) -> None:
    """A line where nobody named the held-out documents, so that a user does not take them for all."""
    source = source_at(self.dataset) if isinstance(self.dataset, str) and self.dataset else self.dataset
    if not isinstance(source, Cut):
      return
    whole = ""
    if isinstance(self.dataset, str):
      whole = f"; if no run was trained on it, read all by --data={self.dataset},heldout={self.dataset}"
    share = cut_share(source, "heldout")
    logger.info("%s: %s, of the %s of %s documents held out by hash%s", self.dataset, read, share, documents, whole)

  def _split(self, name: str) -> Sequence[str]:
    if not self.dataset:
      raise ConfigError(f"dataset is needed: a task reads its split {name!r}, and an imported model names none")
    return documents(self.dataset, name)


def concatenated(texts: Iterable[str], tokenizer: Tokenizer, size: int, limit: int) -> list[np.ndarray]:
  """Texts one after another, EOS behind each, cut into rows of `size` tokens: int32, the first `limit` of them.

  Raises:
    ConfigError: if all the texts together are shorter than a row.
  """
  rows: list[np.ndarray] = []
  tokens: list[int] = []
  for text in texts:
    tokens += [*tokenizer.encode(text), tokenizer.eos_id]
    while len(tokens) >= size and len(rows) < limit:
      rows.append(np.asarray(tokens[:size], np.int32))
      del tokens[:size]
    if len(rows) == limit:
      break
  if not rows and not tokens:
    raise ConfigError(NOTHING_HELD_OUT)
  if not rows:
    raise ConfigError(
      f"all documents together have {len(tokens)} tokens; {size} are needed: evaluate at a shorter length"
    )
  return rows
