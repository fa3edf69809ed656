"""A corpus: named splits of documents, stored as a TFDS dataset of array records and read without TensorFlow."""

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drope_jax.data.sources.prepared import tensorflow_datasets
from drope_jax.errors import ConfigError, FileError
from drope_jax.files import writing


def build_corpus(directory: str | Path, splits: Mapping[str, Iterable[str]]) -> Path:
  """Writes a corpus atomically; an existing corpus is left unchanged, whatever its content.

  Args:
    directory: for this corpus only.
    splits: documents by split name; they are read once, so generators are allowed.

  Returns:
    `directory`, which `DataConfig.directory` may name.

  Raises:
    ConfigError: if a split has no documents, or `directory` holds something else.
    FileError: if it cannot be written, as on a full disk.
    ToolError: if TFDS cannot be imported.
  """
  directory = Path(directory)
  if is_built(directory):
    return directory
  make_builder = _builder()
  with writing(directory):
    directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as draft:
    checked = {name: _not_empty(name, texts) for name, texts in splits.items()}
    builder = make_builder(checked, data_dir=draft, file_format="array_record")
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # it would announce a download
        builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # RuntimeErrors come from ArrayRecord's C++
      if "write" not in str(error) and not isinstance(error, OSError):
        raise
      raise FileError(f"{directory}: cannot be written ({str(error).splitlines()[0]})") from error
    try:
      os.rename(builder.data_dir, directory)  # fails unless `directory` is missing or empty
    except OSError as error:
      if not is_built(directory):  # else another process was faster
        raise ConfigError(f"{directory}: holds something that is not a corpus; name another directory") from error
  return directory


def is_built(directory: Path) -> bool:
  """Whether the directory is a prepared dataset."""
  return (directory / "dataset_info.json").exists()


@functools.cache
def _builder() -> Callable[..., Any]:
  """The class of a builder; made when a corpus is written, since to know whether one is there takes no TFDS."""
  tfds = tensorflow_datasets()
  tfds.disable_progress_bar()
  base: Any = tfds.core.GeneratorBasedBuilder

  class TextCorpus(base):
    """The builder of one corpus: each example is a document, `{"text": ...}`, in the order given."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits: Mapping[str, Iterable[str]] | None = None, **kwargs: Any):
      self._splits = splits or {}
      super().__init__(**kwargs)

    def _info(self) -> Any:
      features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
      return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
      return {name: self._generate_examples(texts) for name, texts in self._splits.items()}

    def _generate_examples(self, texts: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
      for index, text in enumerate(texts):
        yield index, {"text": text}

  return TextCorpus


def _not_empty(split: str, texts: Iterable[str]) -> Iterator[str]:
  count = 0
  for text in texts:
    count += 1
    yield text
  if not count:
    raise ConfigError(f"the split {split!r} has no documents")
