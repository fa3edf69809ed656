"""Writing token shards: any source, tokenised once, by several processes and hosts, and gone on with after a stop."""

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
from drope_jax.data.sources.tokens import FORMAT, META
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.data.workers import EndWithParent, shielded
from drope_jax.errors import ConfigError
from drope_jax.files import DRAFT, holds_something, is_local, write_json
from drope_jax.workdir import sole_writer

PLAN = "plan.json"  # what is being written here; in the end meta.json takes its place
SHARD_BYTES = 256 << 20  # of the source's files, for a shard
FEWEST_SHARDS = 16

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A stretch of the documents, and where it goes."""

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
    """Written last: where it is, the shard is whole."""
    return self.folder / f"shard-{self.name}.json"

  def write(self) -> dict[str, Any]:
    """Writes the shard; returns its record."""
    places = len(self.documents)
    files = {kind: self.folder / f"{kind}-{self.name}.bin" for kind in ("tokens", "ends", "keys")}
    drafts = {kind: path.with_name(path.name + DRAFT) for kind, path in files.items()}
    known, documents, tokens, before = hashlib.sha256(), 0, 0, self.documents.left_out
    with contextlib.ExitStack() as stack:
      out = {kind: stack.enter_context(path.open("wb")) for kind, path in drafts.items()}
      for place in range(places * self.index // self.count, places * (self.index + 1) // self.count):
        document = self.documents.at(place)
        if document is None:
          continue
        assert isinstance(document, str)  # see _plan
        ids = np.asarray([*self.tokenizer.encode(document), self.tokenizer.eos_id], np.int32)
        documents, tokens = documents + 1, tokens + len(ids)
        data = ids.astype(self.dtype).tobytes()
        known.update(data)
        out["tokens"].write(data)
        out["ends"].write(np.uint64(tokens).tobytes())
        out["keys"].write(np.uint64(key(document)).tobytes())
    for kind, path in files.items():
      drafts[kind].replace(path)
    record: dict[str, Any] = {f"{kind}_file": path.name for kind, path in files.items()}
    record |= {"documents": documents, "tokens": tokens}
    record |= {"left_out": self.documents.left_out - before, "sha256": known.hexdigest()}
    write_json(record, self.record)
    return record


def write_shards(
  documents: Documents,
  tokenizer: Tokenizer,
  folder: epath.PathLike,
  shards: int | None = None,
  processes: int = 1,
  host: int = 0,
  hosts: int = 1,
) -> dict[str, Any] | None:
  """Tokenises documents into `folder`, which `sources.Tokens` reads; what is there of it already is not done again.

  Args:
    documents: of any source of text.
    tokenizer: a copy of it is kept in `folder`/tokenizer.
    folder: of these shards alone.
    shards: how many; None: one for SHARD_BYTES of the source's files, and at least FEWEST_SHARDS.
    processes: that work at one time on this host.
    host: which host this is, from 0. Host i writes the shards i, i + hosts, ...; the last one to end writes meta.json.
    hosts: how many there are; all of them see `folder`.

  Returns:
    The content of meta.json; None if other hosts are not done yet.

  Raises:
    ConfigError: if `folder` holds something else, or the shards of other documents or another tokenizer.
    DataError: a document that is no text.
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
    return json.loads((folder / META).read_text())
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
    records = [json.loads(job.record.read_text()) for job in jobs]
  except FileNotFoundError:  # other hosts are not done, or one of them has just ended all
    return json.loads((folder / META).read_text()) if (folder / META).exists() else None
  totals = {name: sum(record[name] for record in records) for name in ("documents", "tokens", "left_out")}
  if not totals["documents"]:
    raise ConfigError(f"{documents.name}: has no documents")
  draft = folder / f"tokenizer.{uuid.uuid4().hex}{DRAFT}"
  tokenizer.save(draft)
  try:
    draft.rename(folder / "tokenizer")
  except OSError:  # it is there: another host was faster
    shutil.rmtree(draft)
  roles = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "bos_id": tokenizer.bos_id}
  meta = {**plan, **roles, **totals, "shards": records}
  _write_once(meta, folder / META)
  for path in (folder / PLAN, *(job.record for job in jobs)):
    path.unlink(missing_ok=True)
  return meta


def _plan(documents: Documents, tokenizer: Tokenizer, folder: Path, shards: int | None) -> dict[str, Any]:
  """What is to be written; raises ConfigError unless it is what `folder` holds already, if it holds anything."""
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
  """What was being written to the folder, or is done."""
  for path in (folder / PLAN, folder / META):
    with contextlib.suppress(FileNotFoundError):
      return json.loads(path.read_text())
  return None


def _write_once(data: dict[str, Any], path: Path) -> None:
  """Writes a file that other hosts may be writing too, with the same content."""
  draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{DRAFT}")
  draft.write_text(json.dumps(data, indent=2) + "\n")
  draft.replace(path)


def _written(jobs: list[_Shard], processes: int) -> Iterator[dict[str, Any]]:
  """Records of shards as they get done."""
  if processes == 1 or len(jobs) < 2:
    yield from map(_Shard.write, jobs)
    return
  with shielded(signal.SIGINT):
    pool = multiprocessing.get_context("spawn").Pool(min(processes, len(jobs)), initializer=EndWithParent(os.getpid()))
  with pool:  # leaving the block ends the processes, whatever they do
    yield from pool.imap_unordered(_Shard.write, jobs)
