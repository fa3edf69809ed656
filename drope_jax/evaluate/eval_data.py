"""The data that tasks are made from."""

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
  """The data of an evaluation; each part is read on first use, so that parts which no task needs may be missing."""

  tokenizer: Tokenizer
  longest: int  # the longest length to evaluate, in tokens; documents must be longer
  # A source, or a path that data/sources/at.py recognises, with the splits `heldout`, whose sentences also serve as a
  # haystack, and `fit`.
  dataset: str | Source = ""
  num_documents: int = 24  # maximum number of each split
  concatenate: bool = False  # whether documents, which may then be short, are concatenated
  block: int | None = None  # positions per block of the loss by position; None: half the training context
  needles_per_depth: int = 40
  num_samples: int = 100  # of each task that generates its samples
  limit: int | None = None  # number of samples of a data set, from its start; None: all
  longbench: Path | None = None  # folder of LongBench's released files
  multiple_choice: Path | None = None  # folder of the files that tasks/multiple_choice.py names
  haystack: str | Path | None = None  # see haystack.read_essays; None: prose that is part of Python
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
    """The material of RULER's prompts: the tokenizer and the haystack."""
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
    """Logs which share of the documents is held out by hash, so that a user does not take them for all."""
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
  """The first `limit` rows of `size` tokens from the concatenated texts, each followed by EOS: int32.

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
