"""Sources of pretrained weights: their interface, and the Hugging Face folder."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (gives numpy its bfloat16, which safetensors then returns)
import numpy as np
import safetensors

from drope_jax.data.roles import read_object, refuse_pointer
from drope_jax.data.tokenizers import JsonTokenizer
from drope_jax.errors import ConfigError, FileError

FLOATS = ("F32", "F16", "BF16")
POINTER_BYTES = 200  # larger than any Git LFS pointer

logger = logging.getLogger(__name__)


class Source(Protocol):
  """A model on disk, in Hugging Face's terms whatever its format."""

  path: Path
  config: dict[str, Any]  # as in a config.json
  shapes: dict[str, tuple[int, ...]]  # of every array, by its name at Hugging Face
  names: dict[str, str]  # of keys and arrays in the file, by those at Hugging Face where they differ; for messages

  def read(self, name: str) -> np.ndarray:
    """One array, in a float dtype that numpy knows."""

  def rename(self, name: str, new: str) -> None:
    """Renames an array."""

  def write_tokenizer(self, directory: Path) -> None:
    """Writes what `load_tokenizer(directory)` reads."""

  def origin(self) -> dict[str, Any]:
    """What to record about it: format, name, and the SHA-256 of each file of weights."""


class HuggingFaceFolder:
  """config.json, tokenizer.json, and model.safetensors or the shards that model.safetensors.index.json names.

  If both exist, model.safetensors is used, as in transformers.

  Raises:
    FileError: naming a file that is missing, not readable or not safetensors.
    ConfigError: naming an array of a dtype that is not supported, or if the weights are pickles.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)
    self._refuse_gguf()
    self.config = read_json(self.path / "config.json")
    self.names: dict[str, str] = {}
    self._stored: dict[str, str] = {}  # names in the files, of arrays that were renamed
    self._files: dict[str, Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for file in self._weight_files():
      for name, (shape, dtype) in self._header(file).items():
        if dtype not in FLOATS:
          raise ConfigError(f"{file}: {name} is of dtype {dtype}; allowed: {', '.join(FLOATS)}")
        if name in self._files:
          raise FileError(f"{file}: the array {name} is in {self._files[name].name} too; remove one of the files")
        self._files[name], self.shapes[name] = file, shape

  def _refuse_gguf(self) -> None:
    """Raises FileError for a folder of GGUF files, naming one."""
    files = sorted(self.path.glob("*.gguf"))
    if files and not (self.path / "config.json").exists():
      raise FileError(f"{self.path}: has {files[0].name} and no config.json; name the file, {files[0]}")

  def _weight_files(self) -> list[Path]:
    single, index = self.path / "model.safetensors", self.path / "model.safetensors.index.json"
    if single.exists():
      if index.exists():
        logger.warning("%s: read, as by transformers; %s beside it is passed over", single, index.name)
      return [single]
    if index.exists():
      weight_map = read_json(index).get("weight_map")
      if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FileError(f"{index}: weight_map is no object of arrays and their files; fetch it again")
      outside = [file for file in weight_map.values() if Path(file).name != file]
      if outside:
        raise FileError(f"{index}: names {outside[0]!r}; files of weights lie in the same folder")
      files = sorted({self.path / file for file in weight_map.values()})
      missing = [file for file in files if not file.exists()]
      if missing:
        raise FileError(f"{index}: names {missing[0].name}, which is not beside it; fetch the file")
      if not files:
        raise FileError(f"{index}: weight_map names no file; fetch it again")
      return files
    if list(self.path.glob("*.bin")):
      raise ConfigError(f"{self.path}: .bin weights are pickles, which can run code; convert: {conversion(self.path)}")
    raise FileError(
      f"{self.path}: neither model.safetensors nor model.safetensors.index.json is here; fetch the weights"
    )

  def _header(self, file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    refuse_lfs_pointer(file)
    try:
      with safetensors.safe_open(file, "np") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
        return {name: (tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
      raise FileError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error

  def read(self, name: str) -> np.ndarray:
    # Opened for each array, because pages of a mapped file stay in memory as long as it is open.
    with safetensors.safe_open(self._files[name], "np") as weights:
      return weights.get_tensor(self._stored.get(name, name))

  def rename(self, name: str, new: str) -> None:
    self._stored[new] = self._stored.pop(name, name)
    self._files[new], self.shapes[new] = self._files.pop(name), self.shapes.pop(name)

  def write_tokenizer(self, directory: Path) -> None:
    copy_tokenizer(self.path, directory)

  def origin(self) -> dict[str, Any]:
    files = sorted(set(self._files.values()))
    return {
      "format": "safetensors",
      "name": self.path.resolve().name,
      "model_type": self.config["model_type"],
      "sha256": {file.name: sha256(file) for file in files},
    }


def conversion(path: Path) -> str:
  """A command that converts the pickled weights of `path` to safetensors, in a folder next to it."""
  target = path.with_name(f"{path.resolve().name}-safetensors")
  calls = "; ".join(
    f"t.{kind}.from_pretrained({str(path)!r}{more}).save_pretrained({str(target)!r})"
    for kind, more in (("AutoModelForCausalLM", ", dtype='auto'"), ("AutoTokenizer", ""))
  )
  return f'python -c "import transformers as t; {calls}"'


def copy_tokenizer(source: Path, directory: Path) -> None:
  """Copies a tokenizer.json (of any name, or that of a folder) and its companion files.

  Special tokens that are only given in the model's config.json are added to the tokenizer's own files.

  Raises:
    FileError: if there is no readable tokenizer.
  """
  file = source / "tokenizer.json" if source.is_dir() else source
  if not file.exists():
    raise FileError(f"{file}: there is no such file; name one of the same model with --tokenizer=PATH")
  JsonTokenizer(file).save(directory)
  content = json.loads(file.read_bytes())
  if content.get("truncation") is None and content.get("padding") is None:
    (directory / "tokenizer.json").write_bytes(file.read_bytes())  # as it was published


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file. Raises FileError naming the file if it is missing or not a JSON object."""
  if not path.exists():
    raise FileError(f"{path}: there is no such file; fetch it")
  return read_object(path)


def refuse_lfs_pointer(file: Path) -> None:
  """Raises FileError if a file of weights is a Git LFS pointer."""
  try:
    with file.open("rb") as opened:
      refuse_pointer(opened.read(POINTER_BYTES), file)
  except OSError as error:
    raise FileError(f"{file}: not readable ({error.strerror})") from error


def sha256(path: Path) -> str:
  """The hash of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
