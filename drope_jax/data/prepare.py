"""Turns the user's `--data` and vocabulary flags into a DataConfig, training a tokenizer if necessary."""

import dataclasses
import fnmatch
import hashlib
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import open_documents
from drope_jax.data.sources import Documents, Source, source_at
from drope_jax.data.sources.at import folders_of
from drope_jax.data.sources.cached import cache_directory
from drope_jax.data.tokenizers import train_bpe
from drope_jax.errors import ConfigError
from drope_jax.files import is_local

TRAINED_CHARACTERS = 20_000_000  # characters that a tokenizer is trained on

_WRITTEN = ("config.json", "meta.json", "metrics.jsonl", "report.md", "results.jsonl")  # files that commands write

logger = logging.getLogger(__name__)


def reading(config: DataConfig, path: str | None, vocab_size: int | None = None) -> DataConfig:
  """The config with the documents at `path`, and a tokenizer of `vocab_size` ids trained on them.

  Args:
    path: see `source_at`; the split is that of the config. None: the documents of the config.
    vocab_size: of the trained tokenizer; None: the tokenizer of the config.

  Raises:
    ConfigError, DataError: if nothing can be read at `path`.
  """
  if path is not None:
    source_at(path)  # raises before anything is written
    config = dataclasses.replace(config, directory=path, source=None)
  if vocab_size is None:
    return config
  return dataclasses.replace(config, tokenizer=trained_tokenizer(open_documents(config), vocab_size))


def check_outside(dataset: str | Source, directory: epath.PathLike, what: str) -> None:
  """Raises ConfigError if files that a command writes to `directory` would be read as documents; `what` is its flag."""
  if not dataset or not is_local(directory):
    return
  place = Path(os.fspath(epath.Path(directory))).expanduser().resolve()
  for folder, pattern in folders_of(dataset):
    if place.is_relative_to(folder.resolve()) and any(fnmatch.fnmatch(name, pattern) for name in _WRITTEN):
      raise ConfigError(f"{what}: {directory} lies in {folder}, all of which is read as data; name a folder outside")


def trained_tokenizer(documents: Documents, vocab_size: int) -> str:
  """The directory of a byte-level BPE tokenizer trained on the documents; it is cached.

  The same documents give the same tokenizer, wherever they are stored. Of more than TRAINED_CHARACTERS characters, an
  evenly spread part is used.

  Raises:
    ConfigError: if the documents are already tokenised.
  """
  if documents.tokenizer is not None:
    raise ConfigError(f"{documents.name}: is tokenised already; name the tokenizer that it was made with")
  key = hashlib.sha256(f"{documents.digest} {vocab_size} {TRAINED_CHARACTERS}".encode()).hexdigest()[:16]
  directory = cache_directory() / "tokenizers" / key
  if not (directory / "tokenizer.json").exists():
    logger.info("training a tokenizer of %d tokens, in %s", vocab_size, directory)
    train_bpe(_spread(documents), vocab_size, directory)
  return str(directory)


def _spread(documents: Documents) -> Iterator[str]:
  """Evenly spread documents with TRAINED_CHARACTERS characters in total."""
  strides = 1 + len(documents) // 1000
  places = itertools.chain.from_iterable(range(first, len(documents), strides) for first in range(strides))
  characters = 0
  for place in places:
    document = documents.at(place)
    if isinstance(document, str):
      characters += len(document)
      yield document[:TRAINED_CHARACTERS]
    if characters >= TRAINED_CHARACTERS:
      return
