"""A stream stops anywhere and goes on exactly: every source, packing, number of workers and of processes."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import random

import numpy as np
import pytest
from support.stored_documents import STORES, store

from drope_jax.config import DataConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.pipeline import join_states, train_batches
from drope_jax.data.sources import parquet

rng = random.Random(7)
LETTERS = ["".join(rng.choice("abcdefg hij\n") for _ in range(rng.randint(0, 400))) for _ in range(300)]
TEXTS = [f"{i:03d}" + "x" * random.Random(i).choice([0, 1, 5, 11, 12, 13, 28, 60, 200]) for i in range(60)]

# Of the first 40 batches of LETTERS, taken at commit 725dc9e: (document_mask, seed, processes) and the digest.
FIRST_BATCHES = {
  (False, 0, 1): "c05cf26c3c50367a",
  (False, 0, 2): "80b6b034bbe98aa9",
  (False, 1, 1): "45cfac71b74104bb",
  (False, 1, 2): "69b026492b27711b",
  (True, 0, 1): "d9933127b3112d11",
  (True, 0, 2): "c288faad2b1e5bec",
  (True, 1, 1): "6c918c72991cb99c",
  (True, 1, 2): "65e321bd84adcd18",
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
  return str(build_corpus(tmp_path_factory.mktemp("corpora") / "letters", {"train": LETTERS}))


@pytest.mark.parametrize(("mask", "seed", "processes"), FIRST_BATCHES)
def test_the_stream_of_earlier_versions_has_not_changed(letters, mask, seed, processes):
  config = DataConfig(directory=letters, context=128, batch_size=8, document_mask=mask, interleave=1)
  known = hashlib.sha256()
  streams = [train_batches(config, seed, index, processes) for index in range(processes)]
  for _ in range(40):
    for stream in streams:
      for name, rows in sorted(next(stream).items()):
        known.update(name.encode() + rows.tobytes())
  assert known.hexdigest()[:16] == FIRST_BATCHES[mask, seed, processes]


def test_a_place_in_the_stream_of_earlier_versions_is_found_again(letters):
  """Its state knew one document and an offset, and nothing of the content."""
  config = DataConfig(directory=letters, context=128, batch_size=8, interleave=1)
  stream = train_batches(config, seed=0)
  for _ in range(20):
    next(stream)
  state = json.loads(json.dumps(stream.get_state()))
  del state["content"]
  (share,) = state["states"].values()
  old = 0

  def downgrade(found):
    nonlocal old
    for name, value in found.items():
      if isinstance(value, dict) and "following" in value:
        (opened,) = value["opened"] or [[value["following"], 0, 0]]
        found[name] = {"document": opened[0], "offset": opened[1]}
        old += 1
      elif isinstance(value, dict):
        downgrade(value)

  downgrade(share)
  assert old
  resumed = train_batches(config, seed=0)
  resumed.set_state(state)
  for _ in range(20):
    np.testing.assert_array_equal(next(resumed)["tokens"], next(stream)["tokens"])


@contextlib.contextmanager
def opened(config, processes):
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(contextlib.closing(train_batches(config, 0, index, processes))) for index in range(processes)
    ]


def read(streams, count):
  return [{name: rows.copy() for name, rows in next(one).items()} for _ in range(count) for one in streams]


def same(ours, theirs):
  for one, other in zip(ours, theirs, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def stops_anywhere(config, processes, places):
  """Two stops, one after the other, give the batches of a run that never stopped."""
  with opened(dataclasses.replace(config, num_workers=0), processes) as streams:
    whole = read(streams, 40)
  for first, second in places:
    at = 0
    state = None
    for until in (first, second, second + 4):
      with opened(config, processes) as streams:
        if state is not None:
          for stream in streams:
            stream.set_state(state)
        same(read(streams, until - at), whole[at * processes : until * processes])
        state = join_states([json.loads(json.dumps(stream.get_state())) for stream in streams])
      at = until


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """The source of each kind of store, written once."""
  return functools.cache(lambda kind: store(kind, tmp_path_factory.mktemp("stored") / "data", TEXTS))


@pytest.mark.parametrize(("mask", "interleave"), [(False, 1), (True, 5)])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", STORES)
def test_any_source_stops_anywhere_and_goes_on(kind, processes, mask, interleave, stored):
  config = DataConfig(source=stored(kind), context=15, batch_size=4, document_mask=mask, interleave=interleave)
  stops_anywhere(config, processes, [(7, 20)])


def test_every_place_is_one_to_stop_at(stored):
  config = DataConfig(source=stored("user"), context=15, batch_size=4, interleave=5, min_tokens=4)
  stops_anywhere(config, 1, [(first, first + 9) for first in range(1, 27, 4)])


@pytest.mark.parametrize("processes", [1, 2])
def test_parquet_that_is_not_kept_as_a_whole_stops_anywhere(processes, tmp_path, monkeypatch):
  monkeypatch.setattr(parquet, "CACHED_BYTES", 2800)
  source = store("parquet", tmp_path / "data", TEXTS)
  assert 1 < source.documents().raw.blocks.together < len(TEXTS) / 7
  stops_anywhere(DataConfig(source=source, context=15, batch_size=4, interleave=5), processes, [(7, 20)])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kind", "processes", "mask", "workers"),
  [
    *((kind, 1, False, 2) for kind in STORES),
    *((kind, 2, True, 1) for kind in STORES),
    *(("jsonl.zst", processes, not mask, workers) for processes, mask, workers in ((2, True, 2), (1, False, 1))),
  ],
)
def test_workers_change_nothing(kind, processes, mask, workers, stored):
  config = DataConfig(source=stored(kind), context=15, batch_size=4, document_mask=mask, interleave=5)
  config = dataclasses.replace(config, num_workers=workers)
  stops_anywhere(config, processes, [(7, 20)])


def test_all_sources_give_the_same_batches(stored):
  """But mixtures, and parquet of which not all is kept in memory (test_sources.py)."""
  found = {}
  for kind in [kind for kind in STORES if kind != "mixture"]:
    config = DataConfig(source=stored(kind), context=15, batch_size=4)
    with opened(config, 1) as streams:
      found[kind] = read(streams, 30)
  for batches in found.values():
    same(batches, found["tfds"])
