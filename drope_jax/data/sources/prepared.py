"""Datasets prepared by TFDS, read without TensorFlow."""

import array
import dataclasses
import importlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from google.protobuf import json_format

from drope_jax.data.sources.array_record import Records
from drope_jax.data.sources.cached import cached, local
from drope_jax.data.sources.files import FileBytes, StoredFile, check_reachable, opened
from drope_jax.data.sources.source import Source, locate
from drope_jax.errors import ConfigError, DataError, ToolError

INFO = "dataset_info.json"  # marks the directory of a prepared dataset
_LENGTH = struct.Struct("<Q")  # a tfrecord holds, per record: its length, 4 bytes of CRC, the record, 4 bytes of CRC
_READ = 4 << 20  # bytes read at a time to find the records
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(unsafe_hash=True)
class TFDS(Source):
  """A split of a prepared dataset; `feature` holds the documents.

  It must be stored as array_record or as tfrecord, the default of TFDS for C4 and PG-19, whose first opening reads the
  files to find the records. Parquet is refused, because TFDS 4.9.10 loses rows when it stores it.
  """

  dataset: str  # the directory with dataset_info.json, or a name under $TFDS_DATA_DIR such as "c4/en:3.1.0"
  split: str = "train"  # a split, or a slice of one such as "train[:10%]"
  feature: str = "text"  # the feature that holds the text

  def part(self, name: str) -> Source:
    return dataclasses.replace(self, split=name)

  def open(self) -> Sequence[Any]:
    directory = prepared_directory(self.dataset)
    if directory is None:
      raise ConfigError(f"{self.dataset}: no dataset here (there is no {INFO})")
    _check_features(directory / "features.json")
    try:
      builder = tensorflow_datasets().builder_from_directory(str(directory))
    except (OSError, KeyError, TypeError, ValueError, json_format.ParseError) as error:
      raise DataError(f"{directory}: its {INFO} or features.json cannot be read; copy it again ({error})") from error
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "tfrecord"):
      raise ConfigError(
        f"{directory}: the dataset is stored as {file_format}; prepare it with file_format='array_record'"
      )
    features = builder.info.features
    if self.feature not in features:
      raise ConfigError(
        f"{directory}: the dataset has no feature {self.feature!r}; features: {', '.join(features)}; name one as "
        "PATH#FEATURE, or TFDS.feature"
      )
    try:
      shards = builder.info.splits[self.split].file_instructions
    except (KeyError, ValueError) as error:
      splits = ", ".join(builder.info.splits) or "none"
      raise ConfigError(
        f"{directory}: the split {self.split!r} is missing or empty; splits: {splits}; in a path, PATH,heldout=SPLIT "
        "says which one is held out"
      ) from error
    if not shards:
      raise ConfigError(
        f"{directory}: the split {self.split!r} is missing or empty; splits: {', '.join(builder.info.splits)}"
      )
    for path in (epath.Path(shard.filename) for shard in shards):
      if not path.exists():
        raise DataError(f"{path}: this shard is missing; copy it")
      if not path.stat().length:
        raise DataError(f"{path}: is empty; copy it again")
    read = _ArrayRecords if file_format == "array_record" else _TFRecords
    return read(shards, features, self.feature)


def tensorflow_datasets() -> Any:
  """The library TFDS, imported when it is needed: that is as slow as importing JAX, and other sources do without.

  Raises:
    ToolError: it cannot be imported.
  """
  try:
    return importlib.import_module("tensorflow_datasets")
  except ImportError as error:
    raise ToolError(
      f"tensorflow_datasets, which reads and writes the datasets of TFDS, cannot be imported ({error}); install it "
      "again with pip install tensorflow-datasets, or give text as JSON lines, parquet or text files"
    ) from error


def _check_features(path: epath.Path) -> None:
  """Raises DataError if a features.json names a class that is not TFDS's own: TFDS would import it and run its code."""
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
  """The directory of a prepared dataset, given by path or by name (in its last version); None if there is none."""
  check_reachable(dataset)
  directory = epath.Path(dataset).expanduser()
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


class _Examples(Sequence[Any]):
  """The feature of each example of a split, read from the shards that TFDS recorded."""

  def __init__(self, shards: Sequence[Any], features: Any, feature: str):
    self.names = [str(shard.filename) for shard in shards]
    self.skips = [shard.skip for shard in shards]
    self.lasts = list(itertools.accumulate(shard.take for shard in shards))
    self.features, self.feature = features, feature
    self.stored = [StoredFile.at(epath.Path(name)) for name in self.names]
    self.sizes = [file.size for file in self.stored]

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> Any:  # type: ignore[override]
    value = self.features.deserialize_example_np(self.record(*self._find(index)))[self.feature]
    return value.item() if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 0 else value

  def record(self, shard: int, number: int) -> bytes:
    """An example as it is stored."""
    raise NotImplementedError

  def where(self, index: int) -> str:
    shard, record = self._find(index)
    return f"{self.names[shard]}, record {record}, feature {self.feature!r}"

  def _find(self, index: int) -> tuple[int, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    shard, example = locate(self.lasts, index)
    return shard, self.skips[shard] + example


class _ArrayRecords(_Examples):
  def __init__(self, shards: Sequence[Any], features: Any, feature: str):
    super().__init__(shards, features, feature)
    self.records = Records([epath.Path(name) for name in self.names])
    for number, shard in enumerate(shards):
      _check_count(shard, self.records.count(number))

  def record(self, shard: int, number: int) -> bytes:
    return self.records[(self.records.lasts[shard - 1] if shard else 0) + number]


class _TFRecords(_Examples):
  """Finds records by an index of where each begins, made once: 8 bytes per record in the cache (cached.py)."""

  def __init__(self, shards: Sequence[Any], features: Any, feature: str):
    super().__init__(shards, features, feature)
    self.files = opened(lambda path: FileBytes(local(path)), map(epath.Path, self.names))
    self.indexes = opened(lambda file: FileBytes(cached(file.path, "records", _record_begins(file))), self.files)
    for shard, index in zip(shards, self.indexes, strict=True):
      _check_count(shard, index.size // 8)

  def record(self, shard: int, number: int) -> bytes:
    file, place = self.files[shard], self.indexes[shard].read(8 * number, 8 * number + 8)
    (begin,) = _LENGTH.unpack(place)
    (length,) = _LENGTH.unpack(file.read(begin, begin + 8))
    return file.read(begin + 12, begin + 12 + length)


def _check_count(shard: Any, count: int) -> None:
  """Raises DataError unless a shard has as many records as TFDS wrote."""
  if count != shard.examples_in_shard:
    raise DataError(f"{shard.filename}: holds {count} of {shard.examples_in_shard} records; copy it again")


def _record_begins(file: FileBytes) -> Iterator[bytes]:
  """Where each complete record of a tfrecord begins: uint64, in pieces."""
  at, begins = 0, array.array("Q")
  buffer, base = b"", 0  # a part of the file, and its offset
  while at + 12 <= file.size:
    if not base <= at <= base + len(buffer) - 8:
      buffer, base = file.read(at, min(at + _READ, file.size)), at
      yield begins.tobytes()
      begins = array.array("Q")
    (length,) = _LENGTH.unpack_from(buffer, at - base)
    end = at + 16 + length
    if end > file.size:
      break
    begins.append(at)
    at = end
  yield begins.tobytes()
