"""The tasks by name, and what they are made from."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from drope_jax.data.corpus import documents
from drope_jax.data.pipeline import evaluation_documents
from drope_jax.data.recall import Lines, sentences
from drope_jax.data.sources import Source
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import longbench, multiple_choice, probes, ruler
from drope_jax.evaluate.haystack import read_essays
from drope_jax.evaluate.needles import Needles
from drope_jax.evaluate.perplexity import Perplexity, concatenated
from drope_jax.evaluate.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalData:
  """What tasks are made from. Each part is read when a task first asks for it, so that no other needs to be there."""

  tokenizer: Tokenizer
  longest: int  # tokens; documents are longer
  # A path of any kind that data/sources/at.py knows, or a source, with the splits `heldout`, whose sentences are a
  # haystack too, and `fit`.
  dataset: str | Source = ""
  num_documents: int = 24  # of each split, at most
  concatenate: bool = False  # whether documents are joined, and so may be short; else each is a text of its own
  block: int | None = None  # positions of a block of the loss by position; None: half the training context
  needles_per_depth: int = 40
  num_samples: int = 100  # of each task that can make as many as one likes
  limit: int | None = None  # of samples from a data set, from its front
  longbench: Path | None = None  # folder of LongBench's released files
  multiple_choice: Path | None = None  # folder of the files of multiple_choice.py
  haystack: Path | None = None  # see haystack.read_essays; None: prose that Python brings along
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
    return Lines(self.tokenizer, [one for text in self._split("heldout") for one in sentences(text)])

  @functools.cached_property
  def material(self) -> ruler.Material:
    """What RULER's prompts are made of."""
    return ruler.Material(self.tokenizer, self._essays)

  @functools.cached_property
  def essay_lines(self) -> Lines:
    """The haystack's sentences, as fillers; for what needs no corpus."""
    return Lines(self.tokenizer, sentences(self._essays))

  @functools.cached_property
  def _essays(self) -> str:
    return read_essays(self.haystack)

  def _long_documents(self, split: str) -> Sequence[np.ndarray]:
    read = concatenated if self.concatenate else evaluation_documents
    return read(self._split(split), self.tokenizer, self.longest + 1, self.num_documents)

  def _split(self, name: str) -> Sequence[str]:
    if not self.dataset:
      raise ConfigError(f"dataset is needed: a task reads its split {name!r}, and an imported model names none")
    return documents(self.dataset, name)


DEFAULT = ("perplexity", "needles")


def _perplexity(data: EvalData, **how: int | None) -> Task:
  return Perplexity(data.documents, data.tokenizer, **how, concatenated=data.concatenate)


def _ruler(name: str, data: EvalData) -> Task:
  return ruler.Ruler(name=name, material=data.material, num_samples=data.num_samples, seed=data.seed)


def _copy(name: str, data: EvalData) -> Task:
  ids = [token for filler in data.essay_lines.fillers for token in filler.ids]
  return probes.copy_probes(ids, data.num_samples, data.seed)[name]


def _longbench(name: str, data: EvalData) -> Task:
  return longbench.make_longbench(name, data.longbench, data.limit)


def _multiple_choice(name: str, data: EvalData) -> Task:
  return multiple_choice.make_multiple_choice(name, data.multiple_choice, data.limit)


_LONGBENCH = tuple(f"longbench_{dataset}" for dataset in longbench.TASKS)
_LONGBENCH_WHOLE = tuple(f"{name}_whole" for name in _LONGBENCH)

_MAKERS: Mapping[str, Callable[[EvalData], Task]] = {
  "perplexity": lambda data: _perplexity(data, block=data.block),
  "needles": lambda data: Needles(lines=data.lines, per_depth=data.needles_per_depth, seed=data.seed),
  "sliding_perplexity": lambda data: _perplexity(data, span=data.longest),
  "order": lambda data: probes.Order(lines=data.essay_lines, num_samples=data.num_samples, seed=data.seed),
  "induction": functools.partial(_copy, "induction"),
  "copy": functools.partial(_copy, "copy"),
  **{name: functools.partial(_ruler, name) for name in ruler.TASKS},
  **{name: functools.partial(_multiple_choice, name) for name in multiple_choice.TASKS},
  **{name: functools.partial(_longbench, name) for name in _LONGBENCH + _LONGBENCH_WHOLE},
}
GROUPS: Mapping[str, tuple[str, ...]] = {
  "ruler": tuple(ruler.TASKS),
  "probes": ("order", "induction", "copy"),
  "multiple_choice": tuple(multiple_choice.TASKS),
  "longbench": _LONGBENCH,
  "longbench_whole": _LONGBENCH_WHOLE,
  "niah": tuple(name for name in ruler.TASKS if name.startswith("niah")),
}

NAMES = (*_MAKERS, *GROUPS)
_OF_A_GROUP = {name for members in GROUPS.values() for name in members}
ALLOWED = ", ".join(name for name in NAMES if name not in _OF_A_GROUP) + ", or one of a group, as niah_single_1"


def make_tasks(names: Sequence[str], data: EvalData) -> list[Task]:
  """The tasks of these names, a group's name standing for all of its tasks; no task twice.

  Raises:
    ConfigError: for an unknown name, or if what a task is made from is missing.
  """
  single: dict[str, None] = {}
  for name in names:
    if name not in NAMES:
      raise ConfigError(f"task is {name!r}; allowed: {ALLOWED}")
    single |= dict.fromkeys(GROUPS.get(name, (name,)))
  return [_MAKERS[name](data) for name in single]
