"""Where pretrained weights are read from: what every source offers, and the Hugging Face folder."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  (gives numpy its bfloat16, which safetensors then returns)
import numpy as np
import safetensors

from drope_jax.data.tokenizers import COMPANIONS, ROLES, load_tokenizer
from drope_jax.errors import ConfigError

FLOATS = ("F32", "F16", "BF16")


class Source(Protocol):
  """A model on disk, in Hugging Face's terms whatever its format."""

  path: Path
  config: dict[str, Any]  # as in a config.json
  shapes: dict[str, tuple[int, ...]]  # of every array, by its name at Hugging Face
  names: dict[str, str]  # of keys and arrays in the file, by those at Hugging Face where they differ; for messages

  def read(self, name: str) -> np.ndarray:
    """One array, in a float dtype that numpy knows."""

  def write_tokenizer(self, directory: Path) -> None:
    """Writes what `load_tokenizer(directory)` reads."""

  def origin(self) -> dict[str, Any]:
    """What to note of it: format, name, and the SHA-256 of each file of weights."""


class HuggingFaceFolder:
  """config.json, tokenizer.json, and model.safetensors or the shards that model.safetensors.index.json names.

  Raises:
    ConfigError: naming a file that is missing, not readable or not safetensors, or an array of another dtype.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)
    self.config = read_json(self.path / "config.json")
    self.names: dict[str, str] = {}
    self._files: dict[str, Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for file in self._weight_files():
      for name, (shape, dtype) in self._header(file).items():
        if dtype not in FLOATS:
          raise ConfigError(f"{file}: {name} is of dtype {dtype}; allowed: {', '.join(FLOATS)}")
        if name in self._files:
          raise ConfigError(f"{file}: {name} is in {self._files[name].name} too")
        self._files[name], self.shapes[name] = file, shape

  def _weight_files(self) -> list[Path]:
    index = self.path / "model.safetensors.index.json"
    if index.exists():
      files = sorted({self.path / file for file in read_json(index).get("weight_map", {}).values()})
      missing = [file for file in files if not file.exists()]
      if missing or not files:
        raise ConfigError(f"{index}: names {missing[0].name if missing else 'no file'}, which is not there")
      return files
    if (self.path / "model.safetensors").exists():
      return [self.path / "model.safetensors"]
    if list(self.path.glob("*.bin")):
      raise ConfigError(f"{self.path}: .bin weights are pickles, which can run code; convert: {conversion(self.path)}")
    raise ConfigError(f"{self.path}: neither model.safetensors nor model.safetensors.index.json is here")

  def _header(self, file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
      with safetensors.safe_open(file, "np") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (no mapping)
        return {name: (tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
      raise ConfigError(f"{file}: not a readable safetensors file ({error})") from error

  def read(self, name: str) -> np.ndarray:
    # Opened for each array: the file is mapped, and all that was ever read of an open one stays in memory.
    with safetensors.safe_open(self._files[name], "np") as weights:
      return weights.get_tensor(name)

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
  """The command that rewrites the pickled weights of `path` as safetensors, beside it."""
  target = path.with_name(f"{path.resolve().name}-safetensors")
  calls = "; ".join(
    f"t.{kind}.from_pretrained({str(path)!r}{more}).save_pretrained({str(target)!r})"
    for kind, more in (("AutoModelForCausalLM", ", dtype='auto'"), ("AutoTokenizer", ""))
  )
  return f'python -c "import transformers as t; {calls}"'


def copy_tokenizer(source: Path, directory: Path) -> None:
  """Copies a tokenizer.json, whatever its name is, or that of a folder, and what lies beside it.

  Raises:
    ConfigError: if there is none that can be read.
  """
  file = source / "tokenizer.json" if source.is_dir() else source
  if not file.exists():
    raise ConfigError(f"{file}: there is no tokenizer.json; name one of the same model with --tokenizer=PATH")
  load_tokenizer(file)
  (directory / "tokenizer.json").write_bytes(file.read_bytes())
  for name in (ROLES, *COMPANIONS):
    beside = file.with_name(name)
    if beside.exists():
      (directory / name).write_bytes(beside.read_bytes())


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file. Raises ConfigError naming the file."""
  try:
    data = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: not readable ({error})") from error
  if not isinstance(data, dict):
    raise ConfigError(f"{path}: holds no JSON object")
  return data


def sha256(path: Path) -> str:
  """The hash of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
