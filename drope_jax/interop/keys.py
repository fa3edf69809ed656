"""Typed access to the keys of a config.json; errors name the file and the key."""

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard

from drope_jax.errors import ConfigError

# The keys of a config.json for fields of ours, for error messages of our classes.
FIELDS = {
  "d_model": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "num_kv_heads": "num_key_value_heads",
  "d_ff": "intermediate_size",
  "attention_softcap": "attn_logit_softcapping",
  "logits_softcap": "final_logit_softcapping",
  "logits_divisor": "logits_scaling",
  "norm_eps": "rms_norm_eps",
  "init_std": "initializer_range",
  "theta": "rope_theta",
  "original_context": "original_max_position_embeddings",
}


MOST = 2**31 - 1  # limit of integers; sizes have 32 bits in other programs


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


def shown(value: Any) -> str:
  """A value from a file for a one-line message, shortened if it is long."""
  return _REPR.repr(value)


def _is_number(value: Any) -> TypeGuard[float]:
  """Whether it is a number (not a boolean) that a float can represent."""
  if isinstance(value, int):
    return not isinstance(value, bool) and abs(value) <= 1 << 64
  return isinstance(value, float) and math.isfinite(value)


class Keys:
  """Reads the values of a config.json, checking their types.

  The methods raise ConfigError naming the file, the key as in the file, its value and what is allowed.

  Args:
    values: the config, or an object in it.
    where: its path.
    names: the keys in the file, if they differ from those at Hugging Face.
    prefix: precedes the keys of an object in the config.
  """

  def __init__(self, values: Mapping[str, Any], where: Any, names: Mapping[str, str], prefix: str = ""):
    self._values, self.where, self._names, self._prefix = values, where, names, prefix

  def within(self, values: Mapping[str, Any], name: str) -> "Keys":
    """The keys of the object `name` in the config."""
    return Keys(values, self.where, self._names, f"{name}.")

  def agree(self, key: str, others: "Keys", other: str) -> None:
    """Refuses a value that differs from that of another key, if both are given."""
    value, theirs = self._values.get(key), others._values.get(other)
    if value is not None and theirs is not None and value != theirs:
      said = f"is {value!r} and {others.name(other)} is {theirs!r}; give one of them, or both alike"
      self.refuse(key, said)

  def name(self, key: str) -> str:
    return self._names.get(self._prefix + key, self._prefix + key)

  def refuse(self, key: str, said: str) -> NoReturn:
    raise ConfigError(f"{self.where}: {self.name(key)} {said}")

  def given(self, key: str) -> bool:
    """Whether there is a value, other than null."""
    return self._values.get(key) is not None

  def null(self, key: str) -> bool:
    """Whether there is a null."""
    return key in self._values and self._values[key] is None

  def integer(self, key: str, default: int | None = None, most: int = MOST) -> int:
    """An integer from 1 to `most`; `default` where it is missing."""
    value = self._values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      self._refuse_type(key, value, "an integer of at least 1")
    if value > most:
      self._refuse_type(key, value, f"at most {most}")
    return value

  def nullable(self, key: str, default: int | None) -> int | None:
    """An integer of at least 1, or null; `default` if it is missing."""
    return self.integer(key) if self.given(key) else None if key in self._values else default

  def number(self, key: str, default: float | None = None, minimum: float = -math.inf) -> float:
    """A finite number of at least `minimum`; `default` where it is missing."""
    value = self._values.get(key, default)
    if not _is_number(value) or value < minimum:
      self._refuse_type(key, value, "a number" if minimum == -math.inf else f"a number of at least {minimum:g}")
    return float(value)

  def boolean(self, key: str, default: bool) -> bool:
    """true or false; `default` where it is missing."""
    value = self._values.get(key, default)
    if not isinstance(value, bool):
      self._refuse_type(key, value, "true or false")
    return value

  def numbers(self, key: str, count: int) -> list[float]:
    """A list of `count` finite numbers."""
    value = self._values.get(key)
    if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
      self._refuse_type(key, value, f"a list of {count} numbers, one for each pair of a head's dimensions")
    return [float(one) for one in value]

  def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
    """One of the strings that are `allowed`; `default` where it is missing."""
    value = self._values.get(key, default)
    if value not in allowed:
      self.refuse(key, f"is {shown(value)}; allowed: {', '.join(allowed)}")
    return value

  def entries(self, key: str, count: int, allowed: tuple[Any, ...]) -> list[Any]:
    """A list of `count` values that are `allowed`."""
    value = self._values.get(key)
    if not isinstance(value, list):
      self._refuse_type(key, value, "a list")
    unknown = [entry for entry in value if entry not in allowed]
    if unknown:
      self.refuse(key, f"has {shown(unknown[0])}; allowed: {', '.join(map(str, allowed))}")
    if len(value) != count:
      self.refuse(key, f"has {len(value)} entries; {self.name('num_hidden_layers')} is {count}")
    return value

  def check(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses keys with values other than those allowed."""
    for key, values in allowed.items():
      if key in self._values and self._values[key] not in values:
        self.refuse(key, f"is {shown(self._values[key])}; allowed: {', '.join(map(str, values))}")

  def named(self, error: ValueError) -> ConfigError:
    """Rewrites an error of one of our classes such that it names the keys of the file."""

    def rename(word: re.Match[str]) -> str:
      ours = word[2]
      return self.name(FIELDS.get(ours, ours)) if word[1] or ours in FIELDS else word[0]

    return ConfigError(f"{self.where}: " + re.sub(r"\b([A-Z]\w*\.)?(\w+)", rename, str(error)))

  def _refuse_type(self, key: str, value: Any, kind: str) -> NoReturn:
    self.refuse(key, f"is {shown(value) if key in self._values else 'missing'}; it must be {kind}")
