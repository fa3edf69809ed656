"""Token shards: documents that were tokenised once, by `python -m drope_jax.data.tokenize`.

A folder holds `meta.json` and, for each shard, `tokens-NNNNN-of-NNNNN.bin` (ids of uint16 or uint32, little-endian,
with EOS after each document), `ends-NNNNN-of-NNNNN.bin` (uint64: where each document ends, EOS included),
`keys-NNNNN-of-NNNNN.bin` (uint64: `source.key` of each text, so that shards are split as the text would be) and
`sums-NNNNN-of-NNNNN.bin` (uint32: the CRC-32 of each 64 KiB of these three files, in this order). A block is checked
when a process first reads it. Shards from before version 0.1 have no checksums; only `python -m drope_jax.data.report`
checks them, by reading all tokens.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from drope_jax.data.sources.cached import local
from drope_jax.data.sources.files import FileBytes, check_reachable, opened
from drope_jax.data.sources.source import Source, locate
from drope_jax.data.sources.sums import CheckedBytes, blocks_of
from drope_jax.errors import ConfigError, DataError

META = "meta.json"
FORMAT = "drope_jax token shards, 2"


@dataclasses.dataclass(unsafe_hash=True)
class Tokens(Source):
  """Token shards in `directory`. Documents are arrays of ids, without EOS; opening reads only meta.json."""

  directory: str  # written by drope_jax.data.tokenize, with meta.json

  def open(self) -> "TokenShards":
    return TokenShards(self.directory)


class _Files(NamedTuple):
  """The files of a shard."""

  tokens: FileBytes
  ends: FileBytes
  keys: FileBytes


KINDS = _Files._fields


class TokenShards(Sequence[np.ndarray]):
  """The documents of token shards: int32 ids."""

  def __init__(self, directory: str):
    self.directory = epath.Path(directory)
    meta = read_meta(self.directory)
    self.tokenizer: str = meta["tokenizer"]  # the digest of the tokenizer that made them
    self.dtype, self.shards = np.dtype(meta["dtype"]), meta["shards"]
    self.lasts = np.cumsum([shard["documents"] for shard in self.shards]).tolist()
    self.sizes = [int(shard["sha256"][:15], 16) for shard in self.shards]
    self.files = opened(self._open, self.shards)

  def _open(self, shard: dict[str, Any]) -> "_Files | None":
    """Raises DataError naming a file that is missing or of the wrong size."""
    if not shard["documents"]:
      return None
    files = {kind: self.directory / shard[f"{kind}_file"] for kind in KINDS}
    sizes = self._sizes(shard)
    for kind, path in files.items():
      if not path.exists():
        raise DataError(f"{path}: this shard is missing; copy it, or tokenise again")
      if path.stat().length != sizes[kind]:
        raise DataError(f"{path}: has {path.stat().length} bytes instead of {sizes[kind]}; copy it again")
    # In a bucket each read is a request, so the small files are copied.
    here = {"tokens": files["tokens"], **{kind: local(files[kind]) for kind in ("ends", "keys")}}
    if "sums_file" not in shard:
      return _Files(**{kind: FileBytes(path) for kind, path in here.items()})
    sums = self._sums(shard)
    return _Files(**{kind: CheckedBytes(path, sums[kind], files[kind]) for kind, path in here.items()})

  def _sizes(self, shard: dict[str, Any]) -> dict[str, int]:
    """The size of each file in bytes."""
    return {
      kind: shard["tokens"] * self.dtype.itemsize if kind == "tokens" else 8 * shard["documents"] for kind in KINDS
    }

  def _sums(self, shard: dict[str, Any]) -> dict[str, np.ndarray]:
    """The checksums of each file. Raises DataError if the file that holds them is missing or damaged."""
    path = self.directory / shard["sums_file"]
    if not path.exists():
      raise DataError(f"{path}: this file of checksums is missing; copy it, or tokenise again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != shard["sums_sha256"]:
      raise DataError(f"{path}: its content is not what was written (by its own checksum); copy it again")
    ends = np.cumsum([blocks_of(size) for size in self._sizes(shard).values()])
    return dict(zip(KINDS, np.split(np.frombuffer(data, "<u4"), ends[:-1]), strict=True))

  def __len__(self) -> int:
    return self.lasts[-1]

  def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
    number, document = self._find(index)
    bounds = np.frombuffer(self._files(number).ends.read(max(8 * document - 8, 0), 8 * document + 8), "<u8")
    begin, end = int(bounds[0]) if document else 0, int(bounds[-1])
    if not begin < end <= self.shards[number]["tokens"]:
      raise self._no_ends(number)
    return self.tokens(number, begin, end - 1)

  def tokens(self, number: int, begin: int, end: int) -> np.ndarray:
    """The tokens from `begin` to `end` of a shard, EOS included: int32."""
    size = self.dtype.itemsize
    return np.frombuffer(
      self._files(number).tokens.read(begin * size, end * size), self.dtype.newbyteorder("<")
    ).astype(np.int32)

  def ends(self, number: int) -> np.ndarray:
    """Where each document of a shard ends, EOS included: int64. Raises DataError if the ends are impossible."""
    file = self._files(number).ends
    found = np.frombuffer(file.read(0, file.size), "<u8")
    if (found[1:] <= found[:-1]).any() or found[0] < 1 or found[-1] != self.shards[number]["tokens"]:
      raise self._no_ends(number)
    return found.astype(np.int64)

  def keys(self, number: int) -> np.ndarray:
    """`key` of the text of each document of a shard: uint64."""
    file = self._files(number).keys
    return np.frombuffer(file.read(0, file.size), "<u8")

  def stored_key(self, index: int) -> int:
    number, document = self._find(index)
    (found,) = np.frombuffer(self._files(number).keys.read(8 * document, 8 * document + 8), "<u8")
    return int(found)

  def _files(self, number: int) -> "_Files":
    """The files of a shard that has documents."""
    files = self.files[number]
    assert files is not None
    return files

  def _no_ends(self, number: int) -> DataError:
    path = self.directory / self.shards[number]["ends_file"]
    return DataError(f"{path}: these are not the ends of documents, so it is damaged; copy it again")

  def name(self, number: int) -> str:
    """The path of a shard, for messages."""
    return str(self.directory / self.shards[number]["tokens_file"])

  def where(self, index: int) -> str:
    number, document = self._find(index)
    return f"{self.name(number)}, document {document}"

  @property
  def damaged(self) -> list[str]:
    """One line for each file that is not as it was written; reads all of them."""
    found = []
    for shard in self.shards:
      files = self._open(shard)  # anew, so that every block is checked
      for file in files or ():
        known = hashlib.sha256()
        try:
          for chunk in file.chunks():
            known.update(chunk)
        except DataError as error:
          found.append(str(error))
          continue
        if file is files.tokens and known.hexdigest() != shard["sha256"]:  # type: ignore[union-attr]
          found.append(f"{file.path}: its content is not what was written (by its checksum); copy it again")
    return found

  def _find(self, index: int) -> tuple[int, int]:
    return locate(self.lasts, index)


def read_meta(directory: epath.Path) -> dict[str, Any]:
  """The content of meta.json. Raises ConfigError if it is missing or not ours, DataError if it is damaged."""
  path = directory / META
  check_reachable(path)
  try:
    meta = json.loads(path.read_text())
  except FileNotFoundError:
    raise ConfigError(f"{directory}: no token shards here (there is no {META}); is tokenising finished?") from None
  except (OSError, ValueError) as error:
    raise DataError(f"{path}: cannot be read ({error}); tokenise again") from error
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise ConfigError(f"{path}: its format is not {FORMAT!r}; tokenise again")
  shards = meta.get("shards")
  kinds = {"dtype": meta.get("dtype") in ("uint16", "uint32"), "tokenizer": isinstance(meta.get("tokenizer"), str)}
  kinds["shards"] = isinstance(shards, list) and bool(shards) and all(map(_describes_a_shard, shards))
  for name, fits in kinds.items():
    if not fits:
      raise DataError(f"{path}: its field {name!r} is damaged; copy it again, or tokenise again")
  return meta


def _describes_a_shard(record: Any) -> bool:
  """Whether a record has the fields of a shard, and its files lie in the same folder."""
  if not isinstance(record, dict):
    return False
  names = [record.get(f"{kind}_file") for kind in KINDS] + ([record["sums_file"]] if "sums_file" in record else [])
  counts = [record.get(name) for name in ("documents", "tokens")]
  digests = ["sha256", *(["sums_sha256"] if "sums_file" in record else [])]
  return (
    all(isinstance(name, str) and epath.Path(name).name == name for name in names)
    and all(type(count) is int and count >= 0 for count in counts)
    and all(re.fullmatch("[0-9a-f]{64}", str(record.get(name))) for name in digests)
  )
