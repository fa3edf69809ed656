"""LoRA adapters of PEFT as a source: they are merged into the model that they were trained on.

LoRA (Hu 2021) adds alpha / r * B A to a matrix, and rank-stabilised LoRA (Kalajdzievski 2023) alpha / sqrt(r) * B A;
DoRA (Liu 2024) then normalises the rows of the sum to learnt lengths.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from drope_jax.errors import ConfigError, FileError
from drope_jax.interop.keys import Keys
from drope_jax.interop.sources import Source, copy_tokenizer, read_json, refuse_lfs_pointer, sha256

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # precedes the name of every array
_A, _B, _LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_PARTS = (_A, _B, _LENGTHS, _EMBEDDING_A, _EMBEDDING_B)

# Keys that would change the function of the adapters, with the values that do not.
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
  "peft_type": ("LORA",),
  "fan_in_fan_out": (False, None),
  "layer_replication": (None,),
  "alora_invocation_tokens": (None,),
  "arrow_config": (None,),
  "use_qalora": (False, None),
  "lora_bias": (False, None),
  "kasa_config": (None,),
  "monteclora_config": (None,),
  "use_bdlora": (False, None),
  # Other initialisations also change the model's own matrices.
  "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


def is_adapter(path: Path) -> bool:
  """Whether a path is a PEFT folder. Raises ConfigError if it also holds a complete model."""
  if not (path / CONFIG).exists():
    return False
  for name in ("model.safetensors", "model.safetensors.index.json"):
    if (path / name).exists():
      raise ConfigError(f"{path}: holds {CONFIG} and {name}; put the adapters and the model into folders of their own")
  return True


def base_of(path: Path) -> Path:
  """The model that the adapters' config names. Raises ConfigError unless it is an existing folder or file."""
  name = read_json(path / CONFIG).get("base_model_name_or_path")
  try:
    if isinstance(name, str) and name and Path(name).exists():
      return Path(name)
  except OSError:  # the name is too long for a path
    pass
  raise ConfigError(
    f"{path / CONFIG}: base_model_name_or_path is {name!r}, which is not here; name it with --base=PATH"
  )


class MergedAdapter:
  """A Source with the arrays of a model into which the adapters of a folder are merged.

  Raises:
    FileError: if the adapters cannot be read.
    ConfigError: naming a setting or array that is not supported, or does not fit the model.
  """

  def __init__(self, path: Path, base: Source):
    self.path, self._base, self._file = path, base, path / WEIGHTS
    self.config, self.names, self.shapes = base.config, base.names, dict(base.shapes)
    self._said = read_json(path / CONFIG)
    self._keys = Keys(self._said, path / CONFIG, {})
    self._keys.check(_ALLOWED)
    self._stored = self._read_header()
    self._merged: dict[str, str] = {}  # name of an array with adapters -> prefix of their names in the file
    self._replaced: dict[str, str] = {}  # name of an array that the file replaces -> its name there
    for name in self._stored:
      self._place(name)
    for name, start in self._merged.items():
      self._check(name, start)
      self._scale(start, 1)  # raises an error for invalid settings

  def _read_header(self) -> dict[str, tuple[int, ...]]:
    if not self._file.exists() and (self.path / "adapter_model.bin").exists():
      raise ConfigError(
        f"{self.path}: adapter_model.bin is a pickle, which can run code; save the adapters as safetensors with PEFT"
      )
    refuse_lfs_pointer(self._file)
    try:
      with safetensors.safe_open(self._file, "np") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
      raise FileError(f"{self._file}: not a readable safetensors file ({error})") from error

  def _place(self, stored: str) -> None:
    """Records to which array of the model an array of the file belongs."""
    name = stored.removeprefix(_PREFIX)
    part = next((part for part in _PARTS if name.endswith(part)), None)
    own = name if part is None else f"{name.removesuffix(part)}.weight"
    if stored == name or own not in self._base.shapes:
      raise ConfigError(f"{self._file}: the array {stored} has no place in {self._base.path}")
    if part is None:
      self._replaced[own] = stored
      self.shapes[own] = self._stored[stored]
    else:
      self._merged[own] = stored.removesuffix(part)

  def _check(self, name: str, start: str) -> None:
    """Raises ConfigError unless the adapters of an array are complete and of its shape."""
    first, second = (_EMBEDDING_A, _EMBEDDING_B) if start + _EMBEDDING_A in self._stored else (_A, _B)
    found = [self._stored.get(start + part) for part in (first, second)]
    if len(self._base.shapes[name]) != 2:
      raise ConfigError(f"{self._file}: {start} has adapters; its array in the model is no matrix")
    rows, columns = self._base.shapes[name][::-1] if first == _EMBEDDING_A else self._base.shapes[name]
    rank = (found[0] or (0,))[0]
    for part, shape, wanted in zip((first, second), found, ((rank, columns), (rows, rank)), strict=True):
      if shape is None:
        raise ConfigError(f"{self._file}: the array {start}{part} is missing")
      if shape != wanted or rank < 1:
        raise ConfigError(f"{self._file}: {start}{part} is of shape {shape}; by the model it should be {wanted}")
    lengths = self._stored.get(start + _LENGTHS, (rows,))
    if lengths != (rows,) or (first == _EMBEDDING_A and start + _LENGTHS in self._stored):
      raise ConfigError(f"{self._file}: {start}{_LENGTHS} is of shape {lengths}; by the model it should be {(rows,)}")

  def _scale(self, start: str, rank: int) -> float:
    """The factor on B A for a module."""
    module, patterns = start.removeprefix(_PREFIX), self._said.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
      self._keys.refuse("alpha_pattern", f"is {patterns!r}; it must be an object")
    key = next((key for key in patterns if _matches(key, module)), None)
    alpha = self._keys.number("lora_alpha") if key is None else self._keys.within(patterns, "alpha_pattern").number(key)
    return alpha / (math.sqrt(rank) if self._keys.boolean("use_rslora", False) else rank)

  def read(self, name: str) -> np.ndarray:
    if name in self._replaced:
      return self._read(self._replaced[name])
    array, start = self._base.read(name), self._merged.get(name)
    if start is None:
      return array
    array = np.asarray(array, np.float32)
    if start + _EMBEDDING_A in self._stored:
      first, second = self._read(start + _EMBEDDING_A).T, self._read(start + _EMBEDDING_B).T
      return array + self._scale(start, second.shape[0]) * (first @ second)
    first, second = self._read(start + _A), self._read(start + _B)
    array = array + self._scale(start, first.shape[0]) * (second @ first)
    if start + _LENGTHS in self._stored:
      array *= (self._read(start + _LENGTHS) / np.linalg.norm(array, axis=1))[:, None]
    return array

  def _read(self, stored: str) -> np.ndarray:
    with safetensors.safe_open(self._file, "np") as weights:
      return np.asarray(weights.get_tensor(stored), np.float32)

  def rename(self, name: str, new: str) -> None:
    self._base.rename(name, new)
    self.shapes[new] = self.shapes.pop(name)
    for there in (self._merged, self._replaced):
      if name in there:
        there[new] = there.pop(name)

  def write_tokenizer(self, directory: Path) -> None:
    """Writes the adapters' own tokenizer if they have one, else that of the model."""
    if (self.path / "tokenizer.json").exists():
      copy_tokenizer(self.path, directory)
    else:
      self._base.write_tokenizer(directory)

  def origin(self) -> dict[str, Any]:
    base = self._base.origin()
    own = {"format": "peft", "name": self.path.resolve().name, "model_type": base["model_type"], "base": base}
    return {**own, "sha256": {WEIGHTS: sha256(self._file)}}


def _matches(pattern: str, module: str) -> bool:
  """Whether a key of `alpha_pattern` matches this module, by the rule of PEFT."""
  try:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
  except re.error:
    return False
