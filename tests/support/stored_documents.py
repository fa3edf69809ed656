"""The same documents in every kind of store, for tests of what all sources have in common."""

import dataclasses
import gzip
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from drope_jax.data.corpus import build_corpus
from drope_jax.data.sources import JSONL, TFDS, ArrayRecord, Mixture, Parquet, Source, Text, Tokens
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import ByteTokenizer

_GROUP = 7  # rows per row group of parquet


@dataclasses.dataclass(unsafe_hash=True)
class Numbered(Source):
  """A source that a user might define: a list of texts."""

  path: str

  def open(self) -> list[str]:
    return json.loads(Path(self.path).read_text())


def _tfds(folder: Path, texts: Sequence[str]) -> Source:
  return TFDS(str(build_corpus(folder / "corpus", {"train": texts})))


def _tfrecord(folder: Path, texts: Sequence[str]) -> Source:
  build_corpus(folder / "corpus", {"train": texts})
  as_tfrecord(folder / "corpus")
  return TFDS(str(folder / "corpus"))


def as_tfrecord(corpus: Path) -> None:
  """Rewrites an array_record dataset as tfrecords, with checksums of zero, which are not read."""
  for file in corpus.glob("*array_record*"):
    reader = array_record_module.ArrayRecordReader(str(file))
    examples = reader.read_all()
    reader.close()
    file.unlink()
    frames = [struct.pack("<Q", len(example)) + b"\0" * 4 + example + b"\0" * 4 for example in examples]
    (corpus / file.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
  info = corpus / "dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def _parquet(folder: Path, texts: Sequence[str]) -> Source:
  """Two files of small row groups, with columns of other kinds before the text."""
  half = len(texts) // 2
  for number, part in enumerate((texts[:half], texts[half:])):
    rows = {"id": list(range(len(part))), "meta": [{"url": "u", "tags": ["t"]}] * len(part), "text": list(part)}
    pq.write_table(pa.table(rows), folder / f"train-{number:05d}-of-00002.parquet", row_group_size=_GROUP)
  return Parquet(f"{folder}/*.parquet")


def _jsonl(suffix: str) -> Callable[[Path, Sequence[str]], Source]:
  def store(folder: Path, texts: Sequence[str]) -> Source:
    half = len(texts) // 2
    for number, part in enumerate((texts[:half], texts[half:])):
      lines = "".join(json.dumps({"text": text}, ensure_ascii=bool(number)) + "\n" for text in part).encode()
      packed = {
        "": lambda data: data,
        ".gz": gzip.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
      }
      (folder / f"part{number}.jsonl{suffix}").write_bytes(packed[suffix](lines))
    return JSONL(f"{folder}/*.jsonl{suffix}")

  return store


def _text(folder: Path, texts: Sequence[str]) -> Source:
  for number, text in enumerate(texts):
    file = folder / f"{number // 20:04d}" / f"{number:05d}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode())
  return Text(f"{folder}/**/*.txt")


def _array_record(folder: Path, texts: Sequence[str]) -> Source:
  half = len(texts) // 2
  for number, part in enumerate((texts[:half], texts[half:])):
    writer = array_record_module.ArrayRecordWriter(
      str(folder / f"d.array_record-{number:05d}-of-00002"), "group_size:1"
    )
    for text in part:
      writer.write(text.encode())
    writer.close()
  return ArrayRecord(f"{folder}/*.array_record*")


def _tokens(folder: Path, texts: Sequence[str]) -> Source:
  documents = _users(folder, texts).documents()
  write_shards(documents, ByteTokenizer(), folder / "shards", shards=3)
  return Tokens(str(folder / "shards"))


def _users(folder: Path, texts: Sequence[str]) -> Source:
  (folder / "texts.list").write_text(json.dumps(list(texts)))
  return Numbered(str(folder / "texts.list"))


def _mixture(folder: Path, texts: Sequence[str]) -> Source:
  (folder / "a").mkdir()
  (folder / "b").mkdir()
  third = len(texts) // 3
  return Mixture((_text(folder / "a", texts[:third]), _jsonl("")(folder / "b", texts[third:])), (1.0, 2.0))


STORES: dict[str, Callable[[Path, Sequence[str]], Source]] = {
  "tfds": _tfds,
  "tfrecord": _tfrecord,
  "parquet": _parquet,
  "jsonl": _jsonl(""),
  "jsonl.gz": _jsonl(".gz"),
  "jsonl.zst": _jsonl(".zst"),
  "text": _text,
  "array_record": _array_record,
  "tokens": _tokens,
  "user": _users,
  "mixture": _mixture,
}


def store(kind: str, folder: Path, texts: Sequence[str]) -> Source:
  """Writes `texts` into an empty folder as a store of this kind."""
  folder.mkdir(parents=True, exist_ok=True)
  return STORES[kind](folder, texts)


def text_of(document) -> str:
  """The text of a document, which may be given as ids of bytes."""
  return document if isinstance(document, str) else ByteTokenizer().decode(document.tolist())


def without_sums(folder: Path) -> None:
  """Rewrites shards as earlier versions did, without checksums."""
  meta = json.loads((folder / "meta.json").read_text())
  for shard in meta["shards"]:
    (folder / shard.pop("sums_file")).unlink()
    del shard["sums_sha256"]
  (folder / "meta.json").write_text(json.dumps(meta))
