"""Token shards: documents that were tokenised once, by `python -m drope_jax.data.tokenize`.

A folder holds `meta.json` and, for each shard, `tokens-NNNNN-of-NNNNN.bin` (ids of uint16 or uint32, little-endian,
with EOS behind each document), `ends-NNNNN-of-NNNNN.bin` (uint64: where each document ends there, EOS included) and
`keys-NNNNN-of-NNNNN.bin` (uint64: `source.key` of its text, so that shards have the parts of the text).
"""

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from drope_jax.data.sources.files import FileBytes, check_reachable, opened
from drope_jax.data.sources.kept import local
from drope_jax.data.sources.source import Source
from drope_jax.errors import ConfigError, DataError

META = "meta.json"
FORMAT = "drope_jax token shards, 2"


@dataclasses.dataclass(unsafe_hash=True)
class Tokens(Source):
  """Token shards in `directory`. Documents are their ids, without the EOS; opening reads meta.json alone."""

  directory: str  # of drope_jax.data.tokenize, with meta.json

  def open(self) -> "TokenShards":
    return TokenShards(self.directory)


class TokenShards(Sequence[np.ndarray]):
  """The documents of token shards: int32 ids."""

  def __init__(self, directory: str):
    self.directory = epath.Path(directory)
    meta = read_meta(self.directory)
    self.tokenizer: str = meta["tokenizer"]  # digest of the one that they were made with
    self.dtype, self.shards = np.dtype(meta["dtype"]), meta["shards"]
    self.lasts = np.cumsum([shard["documents"] for shard in self.shards]).tolist()
    self.sizes = [int(shard["sha256"][:15], 16) for shard in self.shards]
    self.files = opened(self._open, self.shards)
    self.keys_files = [
      FileBytes(local(self.directory / one["keys_file"])) if one["documents"] else None for one in self.shards
    ]

  def _open(self, shard: dict[str, Any]) -> tuple[FileBytes, FileBytes] | None:
    if not shard["documents"]:
      return None
    for name, size in (
      (shard["tokens_file"], shard["tokens"] * self.dtype.itemsize),
      (shard["ends_file"], 8 * shard["documents"]),
      (shard["keys_file"], 8 * shard["documents"]),
    ):
      path = self.directory / name
      if not path.exists():
        raise DataError(f"{path}: this shard is missing; copy it, or tokenise again")
      if path.stat().length != size:
        raise DataError(f"{path}: has {path.stat().length} bytes instead of {size}; copy it again")
    tokens, ends = self.directory / shard["tokens_file"], self.directory / shard["ends_file"]
    return FileBytes(tokens), FileBytes(local(ends))  # in a bucket, each read is a request

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
    number, document = self._find(index)
    _, ends = self.files[number]  # type: ignore[misc]
    bounds = np.frombuffer(ends.read(max(8 * document - 8, 0), 8 * document + 8), "<u8")
    begin = int(bounds[0]) if document else 0
    return self.tokens(number, begin, int(bounds[-1]) - 1)

  def tokens(self, number: int, begin: int, end: int) -> np.ndarray:
    """Some tokens of a shard, EOS included: int32."""
    file, _ = self.files[number]  # type: ignore[misc]
    size = self.dtype.itemsize
    return np.frombuffer(file.read(begin * size, end * size), self.dtype.newbyteorder("<")).astype(np.int32)

  def ends(self, number: int) -> np.ndarray:
    """Where each document of a shard ends, EOS included: int64."""
    _, file = self.files[number]  # type: ignore[misc]
    return np.frombuffer(file.read(0, file.size), "<u8").astype(np.int64)

  def keys(self, number: int) -> np.ndarray:
    """`key` of the text of each document of a shard: uint64."""
    file = self.keys_files[number]
    return np.frombuffer(file.read(0, file.size), "<u8")  # type: ignore[union-attr]

  def stored_key(self, index: int) -> int:
    number, document = self._find(index)
    (found,) = np.frombuffer(self.keys_files[number].read(8 * document, 8 * document + 8), "<u8")  # type: ignore[union-attr]
    return int(found)

  def name(self, number: int) -> str:
    """What a person finds a shard by."""
    return str(self.directory / self.shards[number]["tokens_file"])

  def where(self, index: int) -> str:
    number, document = self._find(index)
    return f"{self.name(number)}, document {document}"

  @property
  def damaged(self) -> list[str]:
    """A line about each shard whose tokens are not those that were written; reads all of them."""
    found = []
    for shard in self.shards:
      path = self.directory / shard["tokens_file"]
      known = hashlib.sha256()
      for chunk in FileBytes(path).chunks():
        known.update(chunk)
      if known.hexdigest() != shard["sha256"]:
        found.append(f"{path}: its content is not what was written (by its check sum); copy it again")
    return found

  def _find(self, index: int) -> tuple[int, int]:
    number = bisect.bisect_right(self.lasts, index)
    return number, index - (self.lasts[number - 1] if number else 0)


def read_meta(directory: epath.Path) -> dict[str, Any]:
  """What meta.json says. Raises ConfigError if it is none of ours, DataError if there is nothing."""
  path = directory / META
  check_reachable(path)
  try:
    meta = json.loads(path.read_text())
  except FileNotFoundError:
    raise ConfigError(f"{directory}: no token shards here (there is no {META}); is tokenising finished?") from None
  except (OSError, ValueError) as error:
    raise DataError(f"{path}: cannot be read ({error}); tokenise again") from error
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise ConfigError(f"{path}: is not of {FORMAT!r}; tokenise again")
  return meta
