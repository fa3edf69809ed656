"""The stream of batches: nothing lost, nothing shared, and exactly resumed."""

import contextlib
import dataclasses
import itertools
import json
import random

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from drope_jax.config import DataConfig
from drope_jax.data import pipeline
from drope_jax.data.corpus import build_corpus
from drope_jax.data.pipeline import evaluation_documents, join_states, train_batches
from drope_jax.data.tokenizers import ByteTokenizer, train_bpe
from drope_jax.errors import ConfigError

TOKENIZER = ByteTokenizer()
ROW = 16  # tokens
# Of many lengths, so that documents end on the end of a row, one before and one after it.
TEXTS = [f"{i:03d}" + "x" * random.Random(i).choice([0, 1, 5, 11, 12, 13, 28, 60]) for i in range(60)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  directory = build_corpus(tmp_path_factory.mktemp("corpora") / "corpus", {"train": TEXTS, "tiny": ["abc", "def"]})
  return DataConfig(directory=str(directory), context=ROW - 1, batch_size=4)


@pytest.fixture
def in_order(config, monkeypatch):
  """Batches of one row, rows as they were cut, and one document after the other."""
  monkeypatch.setattr(pipeline, "SHUFFLED_BATCHES", 1)
  return dataclasses.replace(config, batch_size=1, interleave=1)


def take(batches, count):
  return [next(batches) for _ in range(count)]


def equal(ours, theirs):
  return len(ours) == len(theirs) and all(
    a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in zip(ours, theirs, strict=True)
  )


def read_documents(batches, count):
  """The first `count` documents of a stream of single rows in order."""
  tokens = itertools.chain.from_iterable(batch["tokens"][0] for batch in batches)
  documents = []
  for _ in range(count):
    documents.append(TOKENIZER.decode(list(itertools.takewhile(lambda token: token != TOKENIZER.eos_id, tokens))))
  return documents


def test_shape_and_type(config):
  batch = next(train_batches(config, seed=0))
  assert list(batch) == ["tokens"]
  assert batch["tokens"].shape == (4, ROW)
  assert batch["tokens"].dtype == np.int32


def test_packing_loses_and_adds_nothing(in_order):
  documents = read_documents(train_batches(in_order, seed=0), 2 * len(TEXTS))
  first, second = documents[: len(TEXTS)], documents[len(TEXTS) :]
  assert sorted(first) == sorted(second) == sorted(TEXTS)
  assert first != TEXTS and first != second


def test_rows_of_a_window_are_shuffled(config, in_order):
  window = 4 * ROW  # rows: SHUFFLED_BATCHES is 16, as ROW is
  cut = [batch["tokens"][0] for batch in take(train_batches(in_order, seed=0), window)]
  pipeline.SHUFFLED_BATCHES = 16
  one_by_one = dataclasses.replace(config, interleave=1)
  shuffled = np.concatenate([batch["tokens"] for batch in take(train_batches(one_by_one, seed=0), 16)])
  assert not np.array_equal(cut, shuffled)
  assert sorted(map(tuple, cut)) == sorted(map(tuple, shuffled))


@pytest.mark.parametrize("shuffled", ["documents", "documents and rows"])
def test_seed_decides_the_order(config, in_order, shuffled):
  config = in_order if shuffled == "documents" else config
  one, again, other = (take(train_batches(config, seed=seed), 3) for seed in (1, 1, 2))
  assert equal(one, again)
  assert not equal(one, other)


def test_processes_share_the_documents(in_order):
  in_order = dataclasses.replace(in_order, batch_size=3)
  shares = [read_documents(train_batches(in_order, 0, index, 3), len(TEXTS) // 3) for index in range(3)]
  assert sorted(itertools.chain(*shares)) == sorted(TEXTS)


def test_segments_and_positions(config):
  batches = take(train_batches(dataclasses.replace(config, document_mask=True), seed=0), 20)
  plain = take(train_batches(config, seed=0), 20)
  several = 0
  for batch, tokens in zip(batches, (batch["tokens"] for batch in plain), strict=True):
    assert np.array_equal(batch["tokens"], tokens)
    assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(
      ("tokens", "segments", "positions"), np.int32
    )
    after_eos = np.pad(tokens == TOKENIZER.eos_id, ((0, 0), (1, 0)))[:, :-1]
    assert np.array_equal(batch["segments"], 1 + np.cumsum(after_eos, axis=1))
    assert np.all(batch["positions"][:, 0] == 0)
    assert np.array_equal(batch["positions"][:, 1:], np.where(after_eos[:, 1:], 0, batch["positions"][:, :-1] + 1))
    several += np.count_nonzero(after_eos)
  assert several > 20


@pytest.mark.parametrize("window", [1, 16])
def test_resumes_exactly_from_any_row_through_json(in_order, monkeypatch, window):
  monkeypatch.setattr(pipeline, "SHUFFLED_BATCHES", window)
  config = dataclasses.replace(in_order, document_mask=True)
  batches = train_batches(config, seed=0)
  states, seen = [], []
  for _ in range(50):
    states.append(json.loads(json.dumps(batches.get_state())))
    seen.append(next(batches))
  if window == 1:
    opened = [state["states"]["0"]["parent_window_start_state"]["opened"] for state in states]
    assert [] in opened[2:] and any(opened)  # rows begin with a document, and within one
  for index in range(0, 48, 1 if window == 1 else 5):
    resumed = train_batches(config, seed=0)
    resumed.set_state(states[index])
    assert equal(take(resumed, 2), seen[index : index + 2])
  batches.set_state(states[7])  # an iterator that has moved on goes back
  assert equal(take(batches, 10), seen[7:17])


def test_resumes_exactly_from_an_orbax_checkpoint(config, tmp_path):
  batches = train_batches(config, seed=0)
  take(batches, 21)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(21, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
    manager.wait_until_finished()
    resumed = train_batches(config, seed=0)
    manager.restore(21, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
  assert equal(take(resumed, 20), take(batches, 20))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_neither_the_stream_nor_its_state(config, tmp_path, workers):
  train_bpe(TEXTS, 260, tmp_path)
  config = dataclasses.replace(config, tokenizer=str(tmp_path))
  alone = train_batches(config, seed=0)
  take(alone, 5)
  with contextlib.closing(train_batches(dataclasses.replace(config, num_workers=workers), seed=0)) as batches:
    batches.set_state(alone.get_state())
    assert equal(take(batches, 20), take(alone, 20))
    alone.set_state(batches.get_state())
    assert equal(take(batches, 20), take(alone, 20))


def test_evaluation_documents_are_whole_and_long_enough():
  documents = evaluation_documents(TEXTS, TOKENIZER, minimum_tokens=31, limit=12)
  expected = [text for text in TEXTS if len(text) >= 31][:12]
  assert {len(text) for text in expected} == {31, 63}
  assert [TOKENIZER.decode(document.tolist()) for document in documents] == expected
  assert all(document.dtype == np.int32 for document in documents)
  assert len(evaluation_documents(TEXTS, TOKENIZER, minimum_tokens=0, limit=1000)) == len(TEXTS)
  with pytest.raises(ConfigError, match="64 tokens"):
    evaluation_documents(TEXTS, TOKENIZER, minimum_tokens=64, limit=4)


@pytest.mark.parametrize(
  ("change", "processes", "message"),
  [
    ({}, 3, "DataConfig.batch_size is 4.*processes \\(3\\)"),
    ({"split": "nope"}, 1, "split 'nope' is missing"),
    ({"split": "tiny"}, 1, "'tiny' has 8 tokens, fewer than one row \\(DataConfig.context is 15\\)"),
    ({"directory": "/nowhere/at/all"}, 1, "/nowhere/at/all: no dataset"),
    ({"tokenizer": "/nowhere/tokenizer.json"}, 1, "/nowhere/tokenizer.json"),
  ],
)
def test_bad_input_is_one_line(config, change, processes, message):
  with pytest.raises(ConfigError, match=message) as error:
    train_batches(dataclasses.replace(config, **change), 0, 0, processes)
  assert "\n" not in str(error.value)


def test_one_row_is_enough(in_order):
  (row,) = next(train_batches(dataclasses.replace(in_order, split="tiny", context=7), seed=0))["tokens"]
  assert TOKENIZER.decode(row.tolist()) in ("abcdef", "defabc")


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_stream_goes_on_in_another_number_of_processes(config, processes):
  config = dataclasses.replace(config, batch_size=8)

  def whole_batches(streams, count):
    return [np.concatenate([next(stream)["tokens"] for stream in streams]) for _ in range(count)]

  two = [train_batches(config, 0, index, 2) for index in range(2)]
  whole_batches(two, 3)
  state = join_states([json.loads(json.dumps(stream.get_state())) for stream in two])
  expected = whole_batches(two, 3)
  others = [train_batches(config, 0, index, processes) for index in range(processes)]
  for stream in others:
    stream.set_state(state)
  np.testing.assert_array_equal(whole_batches(others, 2), expected[:2])
  again = train_batches(config, seed=0)  # and once more, from what they have become
  again.set_state(join_states([stream.get_state() for stream in others]))
  np.testing.assert_array_equal(next(again)["tokens"], expected[2])


def test_a_share_of_the_stream_that_is_missing_is_named(config):
  state = train_batches(dataclasses.replace(config, batch_size=8), 0, 1, 2).get_state()
  with pytest.raises(ValueError, match=r"of 2 shares of the data there are the positions of \['1'\]"):
    join_states([state])
