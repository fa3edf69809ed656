"""Sources of documents, as values of the config; `source_at` maps a path to its source."""

from drope_jax.data.sources.array_record import ArrayRecord
from drope_jax.data.sources.at import source_at
from drope_jax.data.sources.combined import Cut, Mixture, Splits
from drope_jax.data.sources.jsonl import JSONL
from drope_jax.data.sources.parquet import Parquet
from drope_jax.data.sources.prepared import TFDS
from drope_jax.data.sources.skip import SkipBad
from drope_jax.data.sources.source import BadDocument, Blocks, Document, Documents, Source
from drope_jax.data.sources.text import Text
from drope_jax.data.sources.tokens import Tokens

__all__ = [
  "JSONL",
  "TFDS",
  "ArrayRecord",
  "BadDocument",
  "Blocks",
  "Cut",
  "Document",
  "Documents",
  "Mixture",
  "Parquet",
  "SkipBad",
  "Source",
  "Splits",
  "Text",
  "Tokens",
  "source_at",
]
