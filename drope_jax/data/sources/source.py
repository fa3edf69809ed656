"""What a source of documents is: a value of the config that opens as a sequence; and how each text is checked."""

import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from drope_jax.data.sources.files import StoredFile
from drope_jax.errors import ConfigError, DataError
from drope_jax.values import Value

SMALL = 16 << 20  # bytes of a source whose digest reads all documents
SAMPLED = 64  # documents that the digest of a source reads, evenly spread; beside their number and the files' sizes

Document = str | np.ndarray  # text, or token ids


class BadDocument(DataError):
  """A document that is no text, whereas the others can be read."""


class Blocks(NamedTuple):
  """Documents that are stored, and so read, together: row groups of a parquet file."""

  ends: np.ndarray  # of each block, in documents from the front
  together: int  # blocks that are shuffled with each other, and that fit into the reader's memory


class Source(Value):
  """Where documents come from; the members are dataclasses.

  A member implements `open`, in a file of the user's as well as here. That is all: shuffling, packing, resuming, the
  digest and the checks of bad text follow from it.
  """

  def open(self) -> Sequence[Any]:
    """The documents in their order: text, as `str` or as bytes of UTF-8, or arrays of token ids.

    The result has `len` and random access, is picklable for grain's workers, and is read by several threads. It may
    also have `where(index) -> str`, which names a document in errors (file and row); `sizes`, ints that change when
    the files do; `stored`, the files as StoredFile; and `blocks`, see Blocks.

    Raises:
      ConfigError: a setting that cannot be, as a missing column.
      DataError: files that cannot be read; one line that names the file.
    """
    raise NotImplementedError

  def part(self, name: str) -> "Source":
    """The source of a part of these documents: "train", "heldout" or "fit". Raises ConfigError if there is none."""
    if name == "train":
      return self
    raise ConfigError(
      f"{self}: has no split {name!r}; name it in the path, as PATH,{name}=OTHER, or cut it off with Cut(source)"
    )

  def documents(self) -> "Documents":
    """The documents, opened and checked; raises as `open` does."""
    raw = self.open()
    return raw if isinstance(raw, Documents) else Documents(raw, str(self))


class Documents(Sequence[Document]):
  """Documents of a source, each checked when it is read.

  A *place* says which document is meant; it is an index here. Sources that are made of others may skip documents: `at`
  returns None for one that belongs to another part, and iteration leaves it out.
  """

  def __init__(self, raw: Sequence[Any], name: str):
    self.raw, self.name = raw, name

  def __len__(self) -> int:
    return len(self.raw)

  def __iter__(self) -> Iterator[Document]:
    for index in range(len(self)):
      document = self.at(index)
      if document is not None:
        yield document

  def __getitem__(self, index: int) -> Document:  # type: ignore[override]
    document = self.at(range(len(self))[index])  # IndexError past the end
    if document is None:
      raise LookupError(f"{self.where(index)}: belongs to another part of the dataset")
    return document

  def at(self, place: Any) -> Document | None:
    """The document, or None if it belongs to another part. Raises BadDocument naming it if its text is bad."""
    return _checked(self.raw[place], lambda: self.where(place))

  def stored_key(self, place: Any) -> int | None:
    """`key` of the document, where it is known without the text."""
    return self.raw.stored_key(place) if hasattr(self.raw, "stored_key") else None

  def keys(self) -> Iterator[int]:
    """`key` of every document."""
    for place in range(len(self)):
      document = self.at(place)
      if document is not None:
        stored = self.stored_key(place)
        yield key(document) if stored is None else stored

  @property
  def left_out(self) -> int:
    """How often this process has left a bad document out; see skip.py."""
    return 0

  def where(self, place: Any) -> str:
    """What a person finds the document by."""
    return self.raw.where(place) if hasattr(self.raw, "where") else f"{self.name}: document {place}"

  @property
  def sizes(self) -> Sequence[int]:
    return getattr(self.raw, "sizes", ())

  @property
  def stored(self) -> Sequence[StoredFile]:
    """The files, where the source knows them."""
    return getattr(self.raw, "stored", ())

  @property
  def tokenizer(self) -> str | None:
    """The digest of the tokenizer that token ids were made with; None of text."""
    return getattr(self.raw, "tokenizer", None)

  @property
  def damaged(self) -> list[str]:
    """A line about each file that is not what its check sum says, where there are check sums."""
    return getattr(self.raw, "damaged", [])

  @functools.cached_property
  def digest(self) -> str:
    """What the documents are known by, wherever they lie: number, files' sizes, rule, and all or a sample of them.

    All of them are read if their files have SMALL bytes at most.
    """
    sizes = [int(size) for size in self.sizes]
    known = hashlib.sha256(repr((len(self), sizes, self.rule)).encode())
    for place in sorted({int(place) for place in np.linspace(0, len(self) - 1, self.sampled)}) if len(self) else ():
      document = self.at(place)
      content = document.encode() if isinstance(document, str) else b"" if document is None else document.tobytes()
      known.update(len(content).to_bytes(8, "little") + content)
    return known.hexdigest()[:16]

  @property
  def sampled(self) -> int:
    """How many documents, evenly spread, the digest reads."""
    return len(self) if 0 < sum(int(size) for size in self.sizes) <= SMALL else SAMPLED

  @property
  def rule(self) -> str:
    """What decides beside the documents themselves which of them are read, and how often."""
    return ""

  def order(self, seed: int) -> grain.MapDataset[Any]:
    """Places without end: every epoch has each document once, in another order."""
    blocks = getattr(self.raw, "blocks", None)
    if blocks is not None:
      return grain.MapDataset.source(_ShuffledBlocks(blocks, seed))
    return grain.MapDataset.source(range(len(self))).seed(seed).shuffle().repeat()


def key(document: Document) -> int:
  """64 bits of a document's hash, by which parts are told apart."""
  content = document.encode() if isinstance(document, str) else document.tobytes()
  return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


class _ShuffledBlocks(Sequence[int]):
  """An endless order of documents that reads few blocks at a time.

  The blocks come in another order each epoch; the documents of `together` consecutive ones are shuffled together.
  """

  def __init__(self, blocks: Blocks, seed: int):
    self.blocks, self.seed = blocks, seed

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> int:  # type: ignore[override]
    epoch, index = divmod(index, int(self.blocks.ends[-1]))
    _, ends = _windows(self, epoch)
    window = int(np.searchsorted(ends, index, side="right"))
    return int(_window(self, epoch, window)[index - (int(ends[window - 1]) if window else 0)])


@functools.lru_cache(maxsize=4)
def _windows(order: _ShuffledBlocks, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
  """The blocks of each window of an epoch, and where its documents end."""
  ends, together = order.blocks
  shuffled = np.random.default_rng([order.seed, epoch]).permutation(len(ends))
  windows = [shuffled[begin : begin + together] for begin in range(0, len(ends), together)]
  sizes = np.diff(ends, prepend=0)
  return windows, np.cumsum([sizes[window].sum() for window in windows])


@functools.lru_cache(maxsize=4)
def _window(order: _ShuffledBlocks, epoch: int, window: int) -> np.ndarray:
  """The documents of a window in their shuffled order."""
  ends = order.blocks.ends
  blocks = _windows(order, epoch)[0][window]
  documents = np.concatenate([np.arange(ends[block - 1] if block else 0, ends[block]) for block in blocks])
  return np.random.default_rng([order.seed, epoch, window]).permutation(documents)


def _checked(value: Any, where: Any) -> Document:
  """A document that can be encoded. Raises BadDocument, which says where it is, what is wrong and what to do."""
  if isinstance(value, np.ndarray):
    return value
  if isinstance(value, bytes | bytearray | memoryview):
    try:
      value = bytes(value).decode()
    except UnicodeDecodeError as error:
      raise BadDocument(
        f"{where()}: not UTF-8 (byte {error.start}: {error.reason}); convert it, or remove it"
      ) from None
  if value is None:
    raise BadDocument(f"{where()}: has no text (null); remove the row, or name another column or field")
  if not isinstance(value, str):
    raise BadDocument(f"{where()}: holds a {type(value).__name__}, not a text; name another column or field")
  if "\0" in value:
    raise BadDocument(f"{where()}: holds a NUL character, so it is no text but a binary; remove it")
  if not value.isascii():
    try:
      value.encode()
    except UnicodeEncodeError as error:
      raise BadDocument(
        f"{where()}: character {error.start} is half a surrogate pair, which is no character; mend it, or remove it"
      ) from None
  return value
