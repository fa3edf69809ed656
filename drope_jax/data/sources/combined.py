"""Sources made of others: a mixture, splits that the user names, and splits drawn by the hash of each document."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from drope_jax.data.sources.files import StoredFile
from drope_jax.data.sources.source import Document, Documents, Source, key
from drope_jax.errors import ConfigError, check

PARTS = ("train", "heldout", "fit")


@dataclasses.dataclass(unsafe_hash=True)
class Mixture(Source):
  """Documents of several sources in turn; a source's weight is its share of the documents (not of the tokens).

  Each source has its own epochs, each in its own order; the order in which sources take turns is fixed.
  """

  sources: tuple[Source, ...]  # the sources to mix
  weights: tuple[float, ...]  # one per source; they need not sum to 1

  def __post_init__(self) -> None:
    check(len(self.sources) > 0, "Mixture.sources is empty")
    check(
      len(self.sources) == len(self.weights) and all(weight > 0 for weight in self.weights),
      f"Mixture.weights is {self.weights}; it must have one positive number for each of {len(self.sources)} sources",
    )

  def part(self, name: str) -> Source:
    return dataclasses.replace(self, sources=tuple(source.part(name) for source in self.sources))

  def open(self) -> Sequence[Any]:
    return _Mixed([source.documents() for source in self.sources], self.weights, str(self))


@dataclasses.dataclass(unsafe_hash=True)
class Splits(Source):
  """Splits that the user names, without overlap: a document is only in the first of heldout, fit and train that has it.

  To find duplicates, opening a split reads the splits before it in that order.
  """

  train: Source  # to train on
  heldout: Source | None = None  # to measure on
  fit: Source | None = None  # to fit temperatures on
  chosen: str = "train"  # the part that is read: train, heldout or fit

  def __post_init__(self) -> None:
    check(self.chosen in PARTS, f"Splits.chosen is {self.chosen!r}; allowed: {', '.join(PARTS)}")
    check(getattr(self, self.chosen) is not None, f"Splits.{self.chosen} is None; name a source")

  def part(self, name: str) -> Source:
    if name not in PARTS or getattr(self, name) is None:
      raise ConfigError(f"{self}: has no split {name!r}; name it in the path, as PATH,{name}=OTHER")
    return dataclasses.replace(self, chosen=name)

  def open(self) -> Sequence[Any]:
    order = ("heldout", "fit", "train")
    before = [getattr(self, name) for name in order[: order.index(self.chosen)]]
    elsewhere = [_keys(source, source.documents().digest) for source in before if source is not None]
    return _Without(getattr(self, self.chosen).documents(), frozenset().union(*elsewhere))


@dataclasses.dataclass(unsafe_hash=True)
class Cut(Source):
  """A split of a source that has no splits of its own, drawn by the hash of each document's text.

  So equal documents are in the same split, and a document stays in its split when others are added or removed.
  """

  source: Source  # the source to split
  heldout: float = 0.01  # share of the documents that are held out
  fit: float = 0.01  # share of the documents to fit temperatures on
  chosen: str = "train"  # the part that is read: train, heldout or fit

  def __post_init__(self) -> None:
    check(self.chosen in PARTS, f"Cut.chosen is {self.chosen!r}; allowed: {', '.join(PARTS)}")
    shares = self.heldout, self.fit
    check(
      min(shares) >= 0 and sum(shares) < 1, f"Cut.heldout and Cut.fit are {shares}; they must leave a part to train on"
    )

  def part(self, name: str) -> Source:
    if name not in PARTS:
      raise ConfigError(f"{self}: has no split {name!r}; splits: {', '.join(PARTS)}")
    return dataclasses.replace(self, chosen=name)

  def open(self) -> Sequence[Any]:
    bounds = {"heldout": (0.0, self.heldout), "fit": (self.heldout, self.heldout + self.fit)}
    begin, end = bounds.get(self.chosen, (self.heldout + self.fit, 1.0))
    return _Within(self.source.documents(), int(begin * 2**64), int(end * 2**64))


@functools.lru_cache(maxsize=8)
def _keys(source: Source, digest: str) -> frozenset[int]:
  """The keys of all documents of a source; `digest` only makes changed documents miss the cache."""
  return frozenset(source.documents().keys())


class _Mixed(Documents):
  """Its places are pairs (source, place in it); as a sequence, the sources follow each other."""

  def __init__(self, members: list[Documents], weights: Sequence[float], name: str):
    super().__init__(range(sum(map(len, members))), name)
    self.members, self.weights = members, weights

  def at(self, place: Any) -> Document | None:
    number, inner = place if isinstance(place, tuple) else self._find(place)
    return self.members[number].at(inner)

  def where(self, place: Any) -> str:
    number, inner = place if isinstance(place, tuple) else self._find(place)
    return self.members[number].where(inner)

  def stored_key(self, place: Any) -> int | None:
    number, inner = place if isinstance(place, tuple) else self._find(place)
    return self.members[number].stored_key(inner)

  @property
  def sizes(self) -> Sequence[int]:
    return [size for member in self.members for size in (len(member), *member.sizes)]

  @property
  def stored(self) -> Sequence[StoredFile]:
    return [file for member in self.members for file in member.stored]

  @property
  def left_out(self) -> int:
    return sum(member.left_out for member in self.members)

  @property
  def rule(self) -> str:
    return repr([(weight, member.rule) for weight, member in zip(self.weights, self.members, strict=True)])

  @property
  def tokenizer(self) -> str | None:
    """Raises ConfigError if some members are text and others tokens, or tokens of different tokenizers."""
    found = {member.tokenizer for member in self.members}
    if len(found) > 1:
      raise ConfigError(f"{self.name}: its sources are tokenised in different ways ({found}); tokenise them alike")
    return found.pop()

  def order(self, seed: int) -> grain.MapDataset[Any]:
    orders = [
      # Each has its own seed, so that two halves of one dataset do not come in the same order.
      member.order((seed + 7919 * number) % 2**32).map(_Place(number))
      for number, member in enumerate(self.members)
    ]
    return grain.MapDataset.mix(orders, self.weights)

  def _find(self, index: int) -> tuple[int, int]:
    for number, member in enumerate(self.members):
      if index < len(member):
        return number, index
      index -= len(member)
    raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class _Place:
  source: int

  def __call__(self, place: Any) -> tuple[int, Any]:
    return self.source, place


class Part(Documents):
  """The documents whose key belongs to one split; places are those of all documents."""

  raw: Documents

  def __init__(self, documents: Documents):
    super().__init__(documents, documents.name)

  def at(self, place: Any) -> Document | None:
    stored = self.raw.stored_key(place)
    if stored is not None and not self.has(stored):
      return None
    document = self.raw.at(place)
    return document if document is None or stored is not None or self.has(key(document)) else None

  def has(self, key: int) -> bool:
    """Whether the document with this key belongs to the split."""
    raise NotImplementedError

  def mask(self, keys: np.ndarray) -> np.ndarray:
    """`has` of many keys, uint64; bool of the same shape."""
    raise NotImplementedError


class _Within(Part):
  def __init__(self, documents: Documents, begin: int, end: int):
    super().__init__(documents)
    self.begin, self.end = begin, end

  @property
  def rule(self) -> str:
    return f"{self.raw.rule} {self.begin} {self.end}"

  def has(self, key: int) -> bool:
    return self.begin <= key < self.end

  def mask(self, keys: np.ndarray) -> np.ndarray:
    return (keys >= self.begin) & (keys < self.end)


class _Without(Part):
  def __init__(self, documents: Documents, elsewhere: frozenset[int]):
    super().__init__(documents)
    self.elsewhere = elsewhere

  @property
  def rule(self) -> str:
    return f"{self.raw.rule} {hashlib.sha256(repr(sorted(self.elsewhere)).encode()).hexdigest()}"

  def has(self, key: int) -> bool:
    return key not in self.elsewhere

  def mask(self, keys: np.ndarray) -> np.ndarray:
    return ~np.isin(keys, np.fromiter(self.elsewhere, np.uint64, len(self.elsewhere)))
