"""Text files, one document each."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from drope_jax.data.sources.cached import compression, decompressed
from drope_jax.data.sources.files import StoredFile, matching
from drope_jax.data.sources.source import Source


@dataclasses.dataclass(unsafe_hash=True)
class Text(Source):
  """Files of UTF-8 text with any suffix, also `.gz` and `.zst`: one document each; a byte-order mark is removed."""

  glob: str  # a path, or a pattern such as books/*.txt

  def open(self) -> "_Files":
    return _Files(matching(self.glob))


class _Files(Sequence[bytes]):
  def __init__(self, paths: list[epath.Path]):
    self.paths = paths
    self.stored = [StoredFile.at(path) for path in paths]
    self.sizes = [file.size for file in self.stored]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
    path = self.paths[index]
    data = b"".join(decompressed(path)) if compression(path) else path.read_bytes()
    return data.removeprefix(b"\xef\xbb\xbf")

  def where(self, index: int) -> str:
    return str(self.paths[index])
