"""The splits of a dataset: their documents, and error messages about missing, small or empty splits."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from drope_jax.data.sources import Cut, Documents, Source, Splits, source_at
from drope_jax.errors import ConfigError


def part_of(dataset: str | Source, split: str) -> Source:
  """The source of a split. Raises ConfigError naming the path (not the source found there) if there is none."""
  source = dataset if isinstance(dataset, Source) else source_at(dataset)
  try:
    return source.part(split)
  except ConfigError as error:
    said = str(error)
    if not said.startswith(str(source)):
      raise
    raise ConfigError(f"{dataset}{said.removeprefix(str(source))}") from error


def documents(dataset: str | Path | Source, split: str) -> Sequence[str]:
  """The documents of a split: a picklable sequence, as grain needs it.

  Args:
    dataset: a path of any kind that sources/at.py recognises, or a source.
    split: the name of a split; for TFDS also a slice such as `train[:10%]`.

  Raises:
    ConfigError: naming the path, if there is no such dataset or split, it is empty, or holds tokens.
    DataError: naming a file that cannot be read.
  """
  if not isinstance(dataset, Source) and not str(dataset):
    raise ConfigError(f"no data is named, and its split {split!r} is needed; give it as --data=PATH")
  found = part_of(dataset if isinstance(dataset, Source) else str(dataset), split).documents()
  if found.tokenizer is not None:
    raise ConfigError(
      f"{dataset}: holds tokens, and text is needed; name the text that they were made from, as --data=PATH (or "
      "--data=PATH,heldout=OTHER)"
    )
  return found  # type: ignore[return-value]


@contextlib.contextmanager
def naming_split(dataset: str | Source, split: str) -> Iterator[None]:
  """Adds to a ConfigError in this block the dataset and split, and why documents are missing from it."""
  try:
    yield
  except ConfigError as error:
    said = str(error)
    where = "" if not dataset or said.startswith(str(dataset)) else f"{dataset}, split {split!r}: "
    raise ConfigError(f"{where}{said}{left_out(dataset, split)}") from error


def left_out(dataset: str | Source, split: str) -> str:
  """Why a split does not contain all documents of its dataset, as "; ..." to append to a message, or "" if it does.

  This reads all documents to count them, so it is only for a command's final error message.
  """
  if not dataset:
    return ""
  source = dataset if isinstance(dataset, Source) else source_at(dataset)
  try:
    found = source.part(split).documents()
  except ConfigError:  # there is no such split, as the error says
    return ""
  count = _absent(found)
  if not count:
    return ""
  share = f"{count:,} of {len(found):,} documents"
  if isinstance(source, Splits):
    return (
      f"; {share} named for {split!r} were left out, since they stand in another part too: a document belongs to "
      "the first of heldout, fit, train that names it"
    )
  if isinstance(source, Cut):
    return f"; {share} belong to the other parts: {cut_share(source, split)} by hash is {split!r}"
  return ""


def cut_share(source: Cut, split: str) -> str:
  """The share of the documents in a split, as text: "1 %"."""
  shares = {"heldout": source.heldout, "fit": source.fit, "train": 1 - source.heldout - source.fit}
  return f"{100 * shares[split]:.3g} %"


def _absent(documents: Documents) -> int:
  """The number of documents that belong to other splits."""
  return len(documents) - sum(1 for _ in documents)
