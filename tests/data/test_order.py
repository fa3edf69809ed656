"""Which documents a batch is made of, and that a run goes on with the data that it began with, or not at all."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from support.processes import children, command_line
from support.stored_documents import STORES, store
from support.tiny_run import tiny_model

from drope_jax.config import DataConfig, OptimConfig, TrainConfig
from drope_jax.data import packing
from drope_jax.data.corpus import build_corpus
from drope_jax.data.pipeline import INTERLEAVED, settled, train_batches
from drope_jax.data.tokenizers import train_bpe
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.serialization import from_dict, to_dict

LONG = 90  # documents of 400 tokens each, whose tokens say which one it is


@pytest.fixture(scope="module")
def long_documents(tmp_path_factory):
  texts = [chr(ord("!") + i) * 399 for i in range(LONG)]
  return DataConfig(source=store("text", tmp_path_factory.mktemp("long"), texts), context=31, batch_size=8)


def documents_of(batch):
  """One for each row: a row is within a document, or it ends there."""
  return {int(row[0]) for row in batch["tokens"]}


def test_long_documents_are_interleaved(long_documents):
  one_by_one, default = (
    [documents_of(next(stream)) for _ in range(16)]
    for stream in (train_batches(dataclasses.replace(long_documents, interleave=n), seed=0) for n in (1, None))
  )
  # 128 rows of 32 tokens: 10 documents and a bit, one by one
  assert len(set().union(*one_by_one)) <= 12
  assert len(set().union(*default)) >= 45
  assert np.mean([len(found) for found in default]) > 7 > np.mean([len(found) for found in one_by_one])


def test_every_token_of_interleaved_documents_comes_once(long_documents):
  stream = train_batches(long_documents, seed=0)
  rows = np.concatenate([next(stream)["tokens"] for _ in range(16 * 9)])  # 1152 rows; an epoch is 1125
  counts = np.bincount(rows[rows > 0], minlength=130)[ord("!") + 1 :]
  assert rows.size - counts.sum() == (rows == 0).sum() and counts.max() <= 2 * 399


def test_few_documents_are_held_if_they_are_long(long_documents, monkeypatch):
  monkeypatch.setattr(packing, "HELD_TOKENS", 1000)
  stream = train_batches(long_documents, seed=0)
  for _ in range(48):
    next(stream)
  resumed = train_batches(long_documents, seed=0)
  state = stream.get_state()
  opened = _find(state, "opened")
  assert 2 <= len(opened) < INTERLEAVED and sum(length - offset for _, offset, length in opened) <= 1000 + 400
  resumed.set_state(state)
  np.testing.assert_array_equal(next(resumed)["tokens"], next(stream)["tokens"])


def _find(state, name):
  """The value of a name anywhere in a nested state."""
  if name in state:
    return state[name]
  return next((found for value in state.values() if isinstance(value, dict) and (found := _find(value, name))), None)


@pytest.mark.parametrize("processes", [1, 2])
def test_side_by_side_is_counted_over_all_processes(processes, long_documents):
  config = dataclasses.replace(long_documents, interleave=6)
  stream = train_batches(config, 0, 0, processes)
  for _ in range(20):  # into the second window of rows
    next(stream)
  assert len(_find(stream.get_state(), "opened")) == 6 // processes


TEXTS = [f"document {i}" for i in range(80)]


@pytest.mark.parametrize("kind", STORES)
def test_moved_data_go_on_and_changed_data_are_refused(kind, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

  def stream(name, texts):
    source = store(kind, tmp_path / name, texts)
    return train_batches(DataConfig(source=source, context=15, batch_size=4), seed=0)

  here = stream("here", TEXTS)
  next(here)
  state = here.get_state()
  moved = stream("there", TEXTS)
  moved.set_state(state)
  np.testing.assert_array_equal(next(moved)["tokens"], next(here)["tokens"])
  for name, texts, said in (
    ("longer", [*TEXTS, "one more"], "number of documents is 81, and was 80"),
    ("other", [*TEXTS[:-1], "Document 79"], "the data has changed .* the documents is"),
  ):
    with pytest.raises(CheckpointError, match=said):
      stream(name, texts).set_state(state)


def test_another_tokenizer_is_refused_and_a_moved_one_is_not(tmp_path):
  texts = [f"{word} {i} of some words" for i, word in enumerate(["lorem", "ipsum", "dolor"] * 30)]
  source = store("text", tmp_path / "data", texts)
  for name, size in (("a", 275), ("moved", 275), ("b", 262)):
    train_bpe(texts, size, tmp_path / name)

  def stream(name):
    config = DataConfig(source=source, tokenizer=str(tmp_path / name), context=15, batch_size=4)
    return train_batches(config, seed=0)

  state = stream("a").get_state()
  stream("moved").set_state(state)
  with pytest.raises(CheckpointError, match="the tokenizer is"):
    stream("b").set_state(state)


def test_bos_stands_before_each_document(tmp_path):
  source = store("text", tmp_path / "data", TEXTS)
  train_bpe(TEXTS, 280, tmp_path / "tokenizer")
  config = DataConfig(source=source, tokenizer=str(tmp_path / "tokenizer"), context=63, batch_size=4, bos=True)
  with pytest.raises(ConfigError, match=r"DataConfig.bos is True; the tokenizer .* has no BOS"):
    train_batches(config, seed=0)
  file = tmp_path / "tokenizer" / "tokenizer.json"
  tokenizer = tokenizers.Tokenizer.from_file(str(file))
  tokenizer.add_special_tokens(["<s>"])
  tokenizer.save(str(file))
  (file.parent / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|endoftext|>"}))
  rows = next(train_batches(config, seed=0))["tokens"]
  eos, bos = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<s>")
  ends = rows[:, :-1] == eos
  assert ends.sum() > 5 and np.all((rows[:, 1:] == bos) == ends)
  assert not (next(train_batches(dataclasses.replace(config, bos=False), seed=0))["tokens"] == bos).any()


def test_short_and_long_documents_are_left_out(tmp_path):
  texts = [chr(ord("a") + i) * (i + 1) for i in range(20)]
  config = DataConfig(
    source=store("text", tmp_path, texts), context=63, batch_size=4, min_tokens=5, max_tokens=15, interleave=1
  )
  stream = train_batches(config, seed=0)
  rows = np.concatenate([next(stream)["tokens"] for _ in range(8)])
  assert set(np.unique(rows)) == {0, *(ord("a") + 1 + i for i in range(4, 15))}
  with pytest.raises(ConfigError, match=r"has 0 tokens, fewer than one row"):
    train_batches(dataclasses.replace(config, min_tokens=100, max_tokens=None), seed=0)
  with pytest.raises(ConfigError, match=r"DataConfig.max_tokens is 3; it must be at least 5"):
    dataclasses.replace(config, max_tokens=3)


DATA = DataConfig(directory="d", context=8, batch_size=4)


def test_each_stage_has_an_order_of_its_own():
  pretraining = settled(DATA, seed=0)
  assert (pretraining.seed, pretraining.interleave) == (0, INTERLEAVED)
  recalibration = settled(DATA, 0, before=pretraining)
  longer = settled(DATA, 0, before=recalibration)
  assert (recalibration.seed, longer.seed) == (1, 2)
  assert settled(DATA, 7, before=pretraining).seed == 7  # seeds of studies stay what they are
  assert settled(dataclasses.replace(DATA, seed=0, interleave=1), 0, before=pretraining) == dataclasses.replace(
    DATA, seed=0, interleave=1
  )  # unless one says otherwise
  assert settled(DATA, 0, before=pretraining, recorded=recalibration) == recalibration  # as does a run that goes on


def test_configs_of_earlier_versions_keep_their_order():
  """Of 725dc9e: one document after the other, by TrainConfig.seed, a dataset of TFDS."""
  config = TrainConfig(
    model=tiny_model(), data=dataclasses.replace(DATA, split="train[:9]"), optim=OptimConfig(peak_lr=1), steps=9, seed=3
  )
  old = to_dict(config)
  known = ("directory", "split", "tokenizer", "context", "batch_size", "document_mask", "num_workers", "type")
  old["data"] = {name: old["data"][name] for name in known}
  read = from_dict(TrainConfig, old)
  assert read.data == dataclasses.replace(DATA, split="train[:9]", seed=3, interleave=1)
  assert from_dict(TrainConfig, to_dict(config)) == config  # today's None is not taken for an old config


TRAINER = """
import sys, time
from drope_jax.config import DataConfig
from drope_jax.data.pipeline import train_batches
if __name__ == "__main__":
  stream = train_batches(DataConfig(directory=sys.argv[1], context=15, batch_size=4, num_workers=2), seed=0)
  next(stream)
  print("reads", flush=True)
  time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_trainer(how, tmp_path):
  corpus = build_corpus(tmp_path / "corpus", {"train": TEXTS})
  (tmp_path / "trainer.py").write_text(TRAINER)
  root = Path(__file__).parents[2]
  trainer = subprocess.Popen(
    [sys.executable, str(tmp_path / "trainer.py"), str(corpus)],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env={**os.environ, "PYTHONPATH": str(root)},
  )
  assert trainer.stdout is not None and trainer.stdout.readline() == b"reads\n"
  readers = [pid for pid in children(trainer.pid) if b"spawn_main" in command_line(pid)]
  assert len(readers) == 2
  for _ in range(12):  # it handles no signals, as commands do: once in some 40 times it ignored its first Ctrl-C
    trainer.send_signal(how)
    with contextlib.suppress(subprocess.TimeoutExpired):
      trainer.wait(timeout=5)
  assert trainer.poll() is not None
  until = time.monotonic() + 20
  while any(map(_runs, readers)) and time.monotonic() < until:
    time.sleep(0.1)
  assert not any(map(_runs, readers))


def _runs(pid):
  stat = Path(f"/proc/{pid}/stat")
  try:
    return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False
