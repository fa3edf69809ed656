"""Writes token shards from any source, with several processes and hosts, resuming after an interruption."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from drope_jax.data.identity import digest
from drope_jax.data.sources import Documents
from drope_jax.data.sources.source import key
from drope_jax.data.sources.sums import BlockSums
from drope_jax.data.sources.tokens import FORMAT, KINDS, META
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.data.workers import EndWithParent, shielded
from drope_jax.errors import ConfigError, FileError
from drope_jax.files import DRAFT, holds_something, is_local, replace_whole, write_json, writing
from drope_jax.workdir import sole_writer

PLAN = "plan.json"  # describes shards that are being written; replaced by meta.json at the end
SHARD_BYTES = 256 << 20  # bytes of the source's files per shard
FEWEST_SHARDS = 16
_COUNTS = ("documents", "tokens", "left_out")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """One shard: a range of the documents, and where it is written."""

  documents: Documents
  tokenizer: Tokenizer
  folder: Path
  dtype: str
  index: int
  count: int

  @property
  def name(self) -> str:
    return f"{self.index:05d}-of-{self.count:05d}"

  @property
  def record(self) -> Path:
    """The record file, which is written last: if it exists, the shard is complete."""
    return self.folder / f"shard-{self.name}.json"

  def write(self) -> dict[str, Any]:
    """Writes the shard; returns its record."""
    before = self.documents.left_out
    known, documents, tokens = hashlib.sha256(), 0, 0
    drafts = {kind: _Draft(self.folder / f"{kind}-{self.name}.bin") for kind in KINDS}
    with contextlib.ExitStack() as stack:
      for draft in drafts.values():
        stack.enter_context(draft)
      for document, ids in self._tokenised():
        documents, tokens = documents + 1, tokens + len(ids)
        data = ids.astype(self.dtype).tobytes()
        known.update(data)
        drafts["tokens"].write(data)
        drafts["ends"].write(np.uint64(tokens).tobytes())
        drafts["keys"].write(np.uint64(key(document)).tobytes())
    sums = b"".join(draft.sums.array().tobytes() for draft in drafts.values())
    sums_path = self.folder / f"sums-{self.name}.bin"
    replace_whole(sums_path, sums)
    record: dict[str, Any] = {f"{kind}_file": draft.path.name for kind, draft in drafts.items()}
    record |= {"sums_file": sums_path.name, "sums_sha256": hashlib.sha256(sums).hexdigest()}
    record |= {"documents": documents, "tokens": tokens}
    record |= {"left_out": self.documents.left_out - before, "sha256": known.hexdigest()}
    write_json(record, self.record)
    return record

  def _tokenised(self) -> Iterator[tuple[str, np.ndarray]]:
    """The documents of this shard, each with its ids followed by EOS: int32."""
    places = len(self.documents)
    for place in range(places * self.index // self.count, places * (self.index + 1) // self.count):
      document = self.documents.at(place)
      if document is not None:
        assert isinstance(document, str)  # see _plan
        yield document, np.asarray([*self.tokenizer.encode(document), self.tokenizer.eos_id], np.int32)


class _Draft:
  """A file that is being written, with the checksums of its blocks; it gets its final name once complete."""

  def __init__(self, path: Path):
    self.path, self.sums = path, BlockSums()
    self._draft = path.with_name(path.name + DRAFT)

  def __enter__(self) -> "_Draft":
    with writing(self.path):
      self._file = self._draft.open("wb")
    return self

  def write(self, data: bytes) -> None:
    """Raises FileError naming the file, as on a full disk."""
    with writing(self.path):
      self._file.write(data)
    self.sums.add(data)

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    if kind is not None:
      with contextlib.suppress(OSError):  # the disk may be full again
        self._file.close()
      self._draft.unlink(missing_ok=True)
      return
    with writing(self.path, self._draft):
      with self._file:
        self._file.flush()
        os.fsync(self._file.fileno())  # before the record says that the shard is whole
      self._draft.replace(self.path)


def write_shards(
  documents: Documents,
  tokenizer: Tokenizer,
  folder: epath.PathLike,
  shards: int | None = None,
  processes: int = 1,
  host: int = 0,
  hosts: int = 1,
) -> dict[str, Any] | None:
  """Tokenises documents into `folder`, which `sources.Tokens` reads; shards that already exist are kept.

  Args:
    documents: of any source of text.
    tokenizer: a copy is saved in `folder`/tokenizer.
    folder: for these shards only.
    shards: number of shards; None: one per SHARD_BYTES of the source's files, and at least FEWEST_SHARDS.
    processes: number of processes on this host.
    host: index of this host, from 0. Host i writes the shards i, i + hosts, ...; the last one to finish writes
      meta.json.
    hosts: number of hosts, all of which share `folder`.

  Returns:
    The content of meta.json; None if other hosts are not done yet.

  Raises:
    ConfigError: if `folder` holds something else, or the shards of other documents or another tokenizer.
    DataError: a document is not text.
    FileError: naming a file that cannot be written; complete shards stay, and the same call resumes.
    BusyError: another process writes this host's shards.
  """
  if not is_local(folder):
    raise ConfigError(f"{folder}: shards are written to a local folder; copy it to the bucket when it is done")
  with sole_writer(folder, f"host-{host}"):
    return _write_shards(documents, tokenizer, Path(folder), shards, processes, host, hosts)


def _write_shards(
  documents: Documents,
  tokenizer: Tokenizer,
  folder: Path,
  shards: int | None,
  processes: int,
  host: int,
  hosts: int,
) -> dict[str, Any] | None:
  plan = _plan(documents, tokenizer, folder, shards)
  if (folder / META).exists():
    return _read(folder / META)
  jobs = [_Shard(documents, tokenizer, folder, plan["dtype"], index, plan["shards"]) for index in range(plan["shards"])]
  mine = [job for job in jobs[host::hosts] if not job.record.exists()]
  begun, tokens = time.monotonic(), 0
  for number, record in enumerate(_written(mine, processes), 1):
    tokens += record["tokens"]
    seconds = time.monotonic() - begun
    logger.info(
      "%d of %d shards, %.1fM tokens, %.0f tokens/s, %.0f s left",
      len(jobs[host::hosts]) - len(mine) + number,
      len(jobs[host::hosts]),
      tokens / 1e6,
      tokens / seconds,
      seconds / number * (len(mine) - number),
    )
  try:
    records = [_read(job.record, *_COUNTS, "sha256") for job in jobs]
  except FileNotFoundError:  # other hosts are not done, or one has just finished everything
    return _read(folder / META) if (folder / META).exists() else None
  totals = {name: sum(record[name] for record in records) for name in _COUNTS}
  if not totals["documents"]:
    raise ConfigError(f"{documents.name}: has no documents")
  draft = folder / f"tokenizer.{uuid.uuid4().hex}{DRAFT}"
  try:
    tokenizer.save(draft)
    with contextlib.suppress(OSError):  # it exists: another host was faster
      draft.rename(folder / "tokenizer")
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  roles = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "bos_id": tokenizer.bos_id}
  meta = {**plan, **roles, **totals, "shards": records}
  _write_once(meta, folder / META)
  for path in (folder / PLAN, *(job.record for job in jobs)):
    path.unlink(missing_ok=True)
  return meta


def _plan(documents: Documents, tokenizer: Tokenizer, folder: Path, shards: int | None) -> dict[str, Any]:
  """The plan of what to write; raises ConfigError if `folder` already holds something else."""
  if documents.tokenizer is not None:
    raise ConfigError(f"{documents.name}: is tokenised already")
  plan: dict[str, Any] = {
    "format": FORMAT,
    "dtype": "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
    "tokenizer": digest(tokenizer),
    "source": {"documents": len(documents), "digest": documents.digest},
  }
  there = _begun(folder)
  if there is None and holds_something(folder):
    there = _begun(folder)  # another host may have begun since
    if there is None:
      raise ConfigError(f"{folder}: holds something that is no token shards; choose another directory")
  if there is None:
    wanted = shards or max(FEWEST_SHARDS, -(-sum(documents.sizes) // SHARD_BYTES))
    plan["shards"] = max(1, min(wanted, len(documents)))
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
    _write_once(plan, folder / PLAN)
    return plan
  for name, value in plan.items():
    if there.get(name) != value:
      raise ConfigError(f"{folder}: holds other shards ({name} is {there.get(name)}, not {value}); choose another")
  count = there["shards"] if isinstance(there["shards"], int) else len(there["shards"])
  if shards not in (None, count):
    raise ConfigError(f"{folder}: is being written as {count} shards, not {shards}")
  return {**plan, "shards": count}


def _begun(folder: Path) -> dict[str, Any] | None:
  """The plan or meta of shards in the folder, if there are any."""
  for path in (folder / PLAN, folder / META):
    with contextlib.suppress(FileNotFoundError):
      return _read(path, "shards")
  return None


def _read(path: Path, *fields: str) -> dict[str, Any]:
  """The content of a JSON file of ours. Raises FileError if it is damaged, FileNotFoundError if it is missing."""
  try:
    data = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise FileError(f"{path}: is damaged ({error}); remove {path.parent}, and tokenise again") from error
  if not isinstance(data, dict) or not all(field in data for field in fields):
    raise FileError(f"{path}: is damaged; remove {path.parent}, and tokenise again")
  return data


def _write_once(data: dict[str, Any], path: Path) -> None:
  """Writes a file atomically that other hosts may be writing with the same content."""
  draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{DRAFT}")
  with writing(path, draft):
    draft.write_text(json.dumps(data, indent=2) + "\n")
    draft.replace(path)


def _written(jobs: list[_Shard], processes: int) -> Iterator[dict[str, Any]]:
  """Writes shards, and yields their records as they are completed."""
  if processes == 1 or len(jobs) < 2:
    yield from map(_Shard.write, jobs)
    return
  with shielded(signal.SIGINT):
    pool = multiprocessing.get_context("spawn").Pool(min(processes, len(jobs)), initializer=EndWithParent(os.getpid()))
  with pool:  # leaving the block terminates the processes
    yield from pool.imap_unordered(_Shard.write, jobs)
