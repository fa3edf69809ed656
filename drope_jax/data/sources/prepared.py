"""Datasets prepared by TFDS, read without TensorFlow."""

import dataclasses
import json
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format

from drope_jax.data.sources.array_record import count_records, read_record
from drope_jax.data.sources.files import FileBytes
from drope_jax.data.sources.source import Source
from drope_jax.errors import ConfigError, DataError

INFO = "dataset_info.json"  # where it lies, a dataset was prepared
_LENGTH = struct.Struct("<Q")  # a record of a tfrecord: its length, 4 bytes, the record, 4 bytes
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(unsafe_hash=True)
class TFDS(Source):
  """A split of a prepared dataset; `feature` holds the documents.

  Stored as array_record or as tfrecord (in which TFDS prepares C4 and PG-19 by default; opening reads the length of
  each record). TFDS 4.9.10 loses rows of what it stores as parquet, so that is refused.
  """

  dataset: str  # directory with the dataset_info.json, or a name under $TFDS_DATA_DIR, as "c4/en:3.1.0"
  split: str = "train"  # or a part of it, as "train[:10%]"
  feature: str = "text"

  def part(self, name: str) -> Source:
    return dataclasses.replace(self, split=name)

  def open(self) -> Sequence[Any]:
    directory = prepared_directory(self.dataset)
    if directory is None:
      raise ConfigError(f"{self.dataset}: no dataset here (there is no {INFO})")
    _check_features(directory / "features.json")
    try:
      builder = tfds.builder_from_directory(str(directory))
    except (OSError, KeyError, TypeError, ValueError, json_format.ParseError) as error:
      raise DataError(f"{directory}: its {INFO} or features.json cannot be read; copy it again ({error})") from error
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "tfrecord"):
      raise ConfigError(
        f"{directory}: the dataset is stored as {file_format}; prepare it with file_format='array_record'"
      )
    features = builder.info.features
    if self.feature not in features:
      raise ConfigError(f"{directory}: the dataset has no feature {self.feature!r}; features: {', '.join(features)}")
    try:
      shards = builder.info.splits[self.split].file_instructions
      source = builder.as_data_source(self.split) if file_format == "array_record" else None
    except (KeyError, ValueError) as error:
      splits = ", ".join(builder.info.splits) or "none"
      raise ConfigError(f"{directory}: the split {self.split!r} is missing or empty; splits: {splits}") from error
    for path in (epath.Path(shard.filename) for shard in shards):
      if not path.exists():
        raise DataError(f"{path}: this shard is missing; copy it")
      if not path.stat().length:
        raise DataError(f"{path}: is empty; copy it again")
    if source is None:
      return _TFRecords(shards, features, self.feature)
    for shard in shards:
      count = count_records(epath.Path(shard.filename))
      if count != shard.examples_in_shard:
        raise DataError(f"{shard.filename}: holds {count} of {shard.examples_in_shard} records; copy it again")
    return _Examples(source, shards, self.feature)


def _check_features(path: epath.Path) -> None:
  """Raises DataError if a features.json names a class that is not TFDS's own: TFDS would import it, and run code."""
  try:
    pending = [json.loads(path.read_text())]
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f"{path}: cannot be read; copy it again ({error})") from error
  while pending:
    data = pending.pop()
    if isinstance(data, dict):
      for key in ("pythonClassName", "python_class_name", "type"):  # of both spellings of protobuf, and of old files
        name = data.get(key)
        if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
          raise DataError(f"{path}: names the class {name}, and not one of tensorflow_datasets; it is not imported")
    pending += data.values() if isinstance(data, dict) else data if isinstance(data, list) else []


def prepared_directory(dataset: str) -> epath.Path | None:
  """Where a prepared dataset lies: the directory itself, or that of a name, in its last version; None: nowhere."""
  directory = epath.Path(dataset)
  if (directory / INFO).exists():
    return directory
  if directory.exists() or not re.fullmatch(r"[\w/.:]+", dataset) or dataset.startswith("/"):
    return None
  folder = epath.Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
  directory = folder / dataset.replace(":", "/")
  if directory.exists() and not (directory / INFO).exists():
    versions = [path for path in directory.iterdir() if _VERSION.fullmatch(path.name) and (path / INFO).exists()]
    if versions:
      directory = max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
  return directory if (directory / INFO).exists() else None


class _Sharded(Sequence[Any]):
  """What knows where a record lies, by the shards that TFDS has recorded."""

  def __init__(self, shards: Sequence[Any], feature: str):
    self.shards = [(str(shard.filename), shard.skip, shard.take) for shard in shards]
    self.feature = feature
    self.sizes = [epath.Path(name).stat().length for name, _, _ in self.shards]

  def __len__(self) -> int:
    return sum(count for _, _, count in self.shards)

  def where(self, index: int) -> str:
    shard, record = self._find(index)
    return f"{self.shards[shard][0]}, record {record}, feature {self.feature!r}"

  def _find(self, index: int) -> tuple[int, int]:
    for number, (_, skip, count) in enumerate(self.shards):
      if index < count:
        return number, skip + index
      index -= count
    raise IndexError(index)

  def _text(self, example: dict[str, Any], index: int) -> Any:
    value = example[self.feature]
    return value.item() if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 0 else value


class _Examples(_Sharded):
  def __init__(self, source: Any, shards: Sequence[Any], feature: str):
    super().__init__(shards, feature)
    self.source = source

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    return self._text(read_record(self.source, index, self.where), index)


class _TFRecords(_Sharded):
  """Examples of tfrecord files, by an index of where each begins: 8 bytes per record."""

  def __init__(self, shards: Sequence[Any], features: Any, feature: str):
    super().__init__(shards, feature)
    self.features = features
    self.files = [FileBytes(name) for name, _, _ in self.shards]
    self.begins = []
    for file, shard in zip(self.files, shards, strict=True):
      begins = _record_begins(file)
      if len(begins) != shard.examples_in_shard:
        raise DataError(f"{file.path}: holds {len(begins)} of {shard.examples_in_shard} records; copy it again")
      self.begins.append(begins)

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    shard, record = self._find(index)
    file, begin = self.files[shard], int(self.begins[shard][record])
    (length,) = _LENGTH.unpack(file.read(begin, begin + 8))
    return self._text(self.features.deserialize_example_np(file.read(begin + 12, begin + 12 + length)), index)


def _record_begins(file: FileBytes) -> np.ndarray:
  """Where the records of a tfrecord begin that are there as a whole."""
  begins, at = [], 0
  while at + 12 <= file.size:
    (length,) = _LENGTH.unpack(file.read(at, at + 8))
    end = at + 16 + length
    if end > file.size:
      break
    begins.append(at)
    at = end
  return np.asarray(begins, np.uint64)
