"""The same documents in every kind of store, and how fast a run reads them."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from drope_jax.config import DataConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.pipeline import train_batches
from drope_jax.data.sources import JSONL, TFDS, ArrayRecord, Parquet, Source, Text, Tokens
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.serialization import from_dict, library_versions
from experiments.benchmarks.measuring import host_memory_peak
from experiments.benchmarks.ours import Measure

TEXTS = ("text", "parquet", "jsonl", "jsonl.zst", "array_record", "tfds")
KINDS = (*TEXTS, "tokens", "windows")
_ROWS = 1000  # per row group, as Hugging Face writes them


def stored(kind: str, texts: Iterable[str], folder: Path, tokenizer: Tokenizer) -> tuple[Source, str]:
  """Writes the documents, unless they exist; returns the source that reads them, and DataConfig.packing."""
  if kind in ("tokens", "windows"):
    shards = folder / "shards"
    source, _ = stored("text", texts, folder, tokenizer)
    write_shards(source.documents(), tokenizer, shards)
    return Tokens(str(shards)), "windows" if kind == "windows" else "interleave"
  place = folder / kind.replace(".", "_")
  there = place.exists()
  place.mkdir(parents=True, exist_ok=True)
  lines = b"" if there else b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
  match kind:
    case "text":
      for number, text in enumerate(() if there else texts):
        (place / f"{number:07d}.txt").write_bytes(text.encode())
      return Text(f"{place}/*.txt"), "interleave"
    case "parquet":
      if not there:
        pq.write_table(pa.table({"text": list(texts)}), place / "a.parquet", row_group_size=_ROWS)
      return Parquet(f"{place}/*.parquet"), "interleave"
    case "jsonl" | "jsonl.zst":
      if not there:
        (place / f"a.{kind}").write_bytes(lines if kind == "jsonl" else pa.compress(lines, "zstd", asbytes=True))
      return JSONL(f"{place}/a.{kind}"), "interleave"
    case "array_record":
      if not there:
        writer = array_record_module.ArrayRecordWriter(str(place / "a.array_record"), "group_size:1")
        for text in texts:
          writer.write(text.encode())
        writer.close()
      return ArrayRecord(f"{place}/a.array_record"), "interleave"
    case _:
      return TFDS(str(build_corpus(folder / "tfds" / "corpus", {"train": texts}))), "interleave"


def reading(data: dict[str, Any]) -> tuple[dict[str, Any], Measure]:
  """Seconds per batch of a stream, and seconds to open it; `data`: a DataConfig as a dict."""
  begin = time.perf_counter()
  batches = train_batches(from_dict(DataConfig, data), seed=0)
  next(batches)
  opening = time.perf_counter() - begin
  versions = {name: version for name, version in library_versions().items() if name in ("grain", "tokenizers")}

  def measure(batches_read: int) -> dict[str, Any]:
    begin = time.perf_counter()
    for _ in range(batches_read):
      next(batches)
    return {"seconds": (time.perf_counter() - begin) / batches_read, "memory": host_memory_peak()}

  return {"versions": versions, "opening": opening}, measure
