"""The tasks by name, and what they are made from."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from drope_jax.config import ConfigError
from drope_jax.data.corpus import documents
from drope_jax.data.pipeline import evaluation_documents
from drope_jax.data.recall import Lines, sentences
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.evaluate import ruler
from drope_jax.evaluate.haystack import read_essays
from drope_jax.evaluate.needles import Needles
from drope_jax.evaluate.perplexity import Perplexity
from drope_jax.evaluate.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalData:
  """What tasks are made from. Each part is read when a task first asks for it, so that no other needs to be there."""

  tokenizer: Tokenizer
  longest: int  # tokens; documents are longer
  dataset: str = ""  # a corpus with the splits `heldout`, whose sentences are a haystack too, and `fit`
  num_documents: int = 24  # of each split, at most
  needles_per_depth: int = 40
  num_samples: int = 100  # of each task that can make as many as one likes
  haystack: Path | None = None  # a folder of essays; None: prose that Python brings along
  seed: int = 0

  @functools.cached_property
  def documents(self) -> Sequence[np.ndarray]:
    """Token ids of held-out documents. Raises ConfigError if there is none that is long enough."""
    return self._long_documents("heldout")

  @functools.cached_property
  def fit_documents(self) -> Sequence[np.ndarray]:
    """Others, to fit the temperature on."""
    return self._long_documents("fit")

  @functools.cached_property
  def lines(self) -> Lines:
    """Held-out sentences, and facts to hide among them."""
    return Lines(self.tokenizer, [one for text in documents(self.dataset, "heldout") for one in sentences(text)])

  @functools.cached_property
  def material(self) -> ruler.Material:
    """What RULER's prompts are made of."""
    return ruler.Material(self.tokenizer, read_essays(self.haystack))

  def _long_documents(self, split: str) -> Sequence[np.ndarray]:
    return evaluation_documents(documents(self.dataset, split), self.tokenizer, self.longest + 1, self.num_documents)


DEFAULT = ("perplexity", "needles")


def _ruler(name: str, data: EvalData) -> Task:
  return ruler.Ruler(name=name, material=data.material, num_samples=data.num_samples, seed=data.seed)


_MAKERS: Mapping[str, Callable[[EvalData], Task]] = {
  "perplexity": lambda data: Perplexity(data.documents, data.tokenizer),
  "needles": lambda data: Needles(lines=data.lines, per_depth=data.needles_per_depth, seed=data.seed),
  "sliding_perplexity": lambda data: Perplexity(data.documents, data.tokenizer, span=data.longest),
  **{name: functools.partial(_ruler, name) for name in ruler.TASKS},
}
GROUPS: Mapping[str, tuple[str, ...]] = {
  "ruler": tuple(ruler.TASKS),
  "niah": tuple(name for name in ruler.TASKS if name.startswith("niah")),
}

NAMES = (*_MAKERS, *GROUPS)


def make_tasks(names: Sequence[str], data: EvalData) -> list[Task]:
  """The tasks of these names, a group's name standing for all of its tasks; no task twice.

  Raises:
    ConfigError: for an unknown name, or if what a task is made from is missing.
  """
  single: dict[str, None] = {}
  for name in names:
    if name not in NAMES:
      raise ConfigError(f"task is {name!r}; allowed: {', '.join(NAMES)}")
    single |= dict.fromkeys(GROUPS.get(name, (name,)))
  return [_MAKERS[name](data) for name in single]
