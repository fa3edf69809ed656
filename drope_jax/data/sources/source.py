"""The base class of all sources, the sequence of documents that a source opens as, and the check of each text."""

import bisect
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

SMALL = 16 << 20  # bytes; the digest of a source of at most this size reads all documents
SAMPLED = 64  # documents, evenly spread, that the digest of a larger source reads

Document = str | np.ndarray  # text, or token ids


class BadDocument(DataError):
  """A single document that is not text; the other documents of its file can be read."""


class Blocks(NamedTuple):
  """Documents that are stored, and so read, together, such as the row groups of a parquet file."""

  ends: np.ndarray  # where each block ends, in documents from the start
  together: int  # blocks that are shuffled together; they fit into the reader's memory


class Source(Value):
  """Where documents come from; the members are dataclasses.

  A member, here or in a user's file, implements only `open`. Shuffling, packing, resuming, the digest and the checks
  of bad text follow from it.
  """

  def open(self) -> Sequence[Any]:
    """The documents in their order: text, as `str` or as bytes of UTF-8, or arrays of token ids.

    The result has `len` and random access, is picklable for grain's workers, and is read by several threads. It may
    also have `where(index) -> str`, which names a document in errors (file and row); `sizes`, ints that change when
    the files do; `stored`, the files as StoredFile; and `blocks`, see Blocks.

    Raises:
      ConfigError: an impossible setting, such as a missing column.
      DataError: a file that cannot be read; the message names it.
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

  A *place* identifies a document; here it is an index. Sources made of other sources may skip documents: `at` returns
  None for one that belongs to another part, and iteration skips it.
  """

  def __init__(self, raw: Sequence[Any], name: str):
    """Args: `raw` is what `Source.open` returned, or other Documents, whose properties and order are then kept."""
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
    """How often this process has skipped a bad document; see skip.py."""
    return getattr(self.raw, "left_out", 0)

  def where(self, place: Any) -> str:
    """The file and row of a document, or its index, for error messages."""
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
    """The digest of the tokenizer that made the token ids; None for text."""
    return getattr(self.raw, "tokenizer", None)

  @property
  def damaged(self) -> list[str]:
    """One line for each file that does not match its checksum, where there are checksums."""
    return getattr(self.raw, "damaged", [])

  @functools.cached_property
  def digest(self) -> str:
    """Identifies the documents by content, wherever they lie: number, file sizes, `rule`, and all or a sample of them.

    All documents are read if their files have at most SMALL bytes, else SAMPLED of them.
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
    """The number of documents, evenly spread, that the digest reads."""
    return len(self) if 0 < sum(int(size) for size in self.sizes) <= SMALL else SAMPLED

  @property
  def rule(self) -> str:
    """What else decides which documents are read, and how often: the part, or the weights of a mixture."""
    return ""

  def order(self, seed: int) -> grain.MapDataset[Any]:
    """An endless sequence of places: every epoch has each document once, in a new order."""
    if isinstance(self.raw, Documents):
      return self.raw.order(seed)
    blocks = getattr(self.raw, "blocks", None)
    if blocks is not None:
      return grain.MapDataset.source(_ShuffledBlocks(blocks, seed))
    return grain.MapDataset.source(range(len(self))).seed(seed).shuffle().repeat()


def key(document: Document) -> int:
  """64 bits of a document's hash, which decide the part that it belongs to."""
  content = document.encode() if isinstance(document, str) else document.tobytes()
  return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def locate(ends: Sequence[int], index: int) -> tuple[int, int]:
  """Which of several consecutive pieces (files, row groups) holds an item, and the item's index within that piece.

  Args:
    ends: the cumulative sizes of the pieces.
    index: of the item, over all pieces.
  """
  piece = bisect.bisect_right(ends, index)
  return piece, index - (ends[piece - 1] if piece else 0)


class _ShuffledBlocks(Sequence[int]):
  """An endless order of documents that reads few blocks at a time.

  The blocks come in a new order each epoch; the documents of `together` consecutive ones are shuffled together.
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
  """The blocks of each window of an epoch, and where each window ends, in documents."""
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
  """The document as text or ids. Raises BadDocument naming where it is, what is wrong and what to do."""
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
