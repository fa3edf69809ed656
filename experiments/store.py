"""Runs that several studies share: a folder of runs, named by their content, with links from each study.

`python -m experiments.study --runs=DIR` trains a run in DIR/KEY and puts a link to it in WORKDIR/runs. The key is a
digest of the run's config, with paths replaced by the content of its data and the keys of the runs that it starts from
and learns from.
Two studies that ask for the same run therefore share it, and it is trained once.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drope_jax import checkpoint
from drope_jax.additions import ADDITIONS
from drope_jax.config import DataConfig, TrainConfig
from drope_jax.data.identity import Content
from drope_jax.data.pipeline import open_documents
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.serialization import to_dict
from experiments.plan import Pretrained, Study, run_directory, teacher_of

logger = logging.getLogger("experiments.study")


def keys(study: Study, workdir: Path) -> dict[str, str]:
  """The key of every run that is trained. The data must be there; raises as `open_documents`."""
  found: dict[str, str] = {}
  by_path: dict[str, str] = {}
  contents: dict[DataConfig, dict[str, Any]] = {}
  for name, run in study.runs.items():
    if isinstance(run, Pretrained):
      continue
    if run.data not in contents:
      tokenizer = run.data.tokenizer
      if tokenizer == "init":
        assert run.init is not None  # TrainConfig has checked it
        tokenizer = run.init.checkpoint
      contents[run.data] = Content(open_documents(run.data), load_tokenizer(tokenizer)).record
    found[name] = by_path[str(run_directory(workdir, name))] = run_key(run, contents[run.data], by_path)
  return found


def run_key(run: TrainConfig, content: Mapping[str, Any], by_path: Mapping[str, str]) -> str:
  """The key of a run.

  Args:
    content: of its data.
    by_path: the keys of the study's earlier runs, by workdir; any other start or teacher is identified by its
      checkpoint.
  """

  def identity(path: str, step: int | None = None) -> str:
    return by_path[path] if path in by_path else checkpoint.open_step(path, step).identity

  fields = to_dict(run)
  for where in ("mesh", "trackers"):  # they do not change what is computed
    fields.pop(where)
  fields["data"] |= {"directory": "", "source": None, "tokenizer": "", "num_workers": 0, "content": content}
  if run.init is not None:
    fields.pop("model")  # it follows from the start
    start = identity(run.init.checkpoint, run.init.step)
    fields["init"] |= {"checkpoint": start, "model": None, "source": None}
  teacher = teacher_of(run)
  if teacher is not None:
    fields["objective"] = _replaced(fields["objective"], teacher, identity(teacher))
  # Fields that were added later: a run that does not use them keeps the key that earlier versions gave it.
  later = {"model": ADDITIONS, "init": ADDITIONS, "compute": ("remat_keep", "remat_offload")}
  for where, added in later.items():
    part = fields.get(where) or {}
    for field in added:
      if not part.get(field):
        part.pop(field, None)
  if fields["compute"]["scan_layers"] is None:  # the default, which was True in earlier versions
    fields["compute"]["scan_layers"] = True
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _replaced(fields: Any, path: str, by: str) -> Any:
  """An objective's fields, with the path of its teacher replaced wherever it stands."""
  if isinstance(fields, dict):
    return {name: _replaced(value, path, by) for name, value in fields.items()}
  if isinstance(fields, list):
    return [_replaced(value, path, by) for value in fields]
  return by if fields == path else fields


def link(study: Study, workdir: Path, store: Path) -> dict[str, Path]:
  """Links the shared runs into WORKDIR/runs; returns the directory of each.

  A run that was begun in the workdir itself, without a store, stays there.
  """
  places = {}
  for name, key in keys(study, workdir).items():
    place, target = run_directory(workdir, name), (store / key).resolve()
    if place.is_symlink():
      place.unlink()
    elif place.exists():
      logger.info("run %s is in the workdir itself, and is not shared", name)
      continue
    target.mkdir(parents=True, exist_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    places[name] = target
  return places


def check_links(workdir: Path, runs: Sequence[str]) -> None:
  """Raises ConfigError for a run that is a link to a shared one which is gone, and would be trained anew there."""
  for place in (run_directory(workdir, run) for run in runs):
    if place.is_symlink() and not place.exists():
      raise ConfigError(
        f"--runs: {place} is a link to {place.readlink()}, which is gone; if the shared runs were moved, say where to"
      )


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
  """Locks a shared run while this study trains it; other studies wait."""
  with directory.with_suffix(".lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logger.info("another study is training %s; waiting for it", directory)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def steps_done(directory: Path) -> int:
  """The last complete step of a run; 0 if it has not begun."""
  try:
    return checkpoint.open_step(directory).step
  except CheckpointError:
    return 0
