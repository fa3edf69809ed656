"""Windows of token shards: each once per epoch, one integer as the place, the same batches on any number of hosts."""

import contextlib
import dataclasses
import json
import random

import numpy as np
import pytest
from support.stored_documents import store

from drope_jax.config import DataConfig
from drope_jax.data.pipeline import join_states, settled, train_batches
from drope_jax.data.sources import Cut, Splits, Tokens
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import CheckpointError, ConfigError

TEXTS = ["".join(random.Random(i).choices("abcdefghij", k=i * 7 % 40)) + str(i) for i in range(120)]
FLAT = [id for text in TEXTS for id in [*ByteTokenizer().encode(text), 0]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shards")
  source = store("user", folder / "texts", TEXTS)
  write_shards(source.documents(), ByteTokenizer(), folder / "shards", shards=4)
  return str(folder / "shards")


def config(source, **changes):
  return DataConfig(**{"source": source, "context": 15, "batch_size": 4, "packing": "windows", **changes})


def read(config, count, *process, state=None):
  with contextlib.closing(train_batches(config, 0, *process)) as stream:
    if state is not None:
      stream.set_state(json.loads(json.dumps(state)))
    batches = [{name: rows.copy() for name, rows in next(stream).items()} for _ in range(count)]
    return batches, stream.get_state()


def test_an_epoch_has_each_window_once_and_the_next_one_cuts_elsewhere(shards):
  windows = (len(FLAT) - 1) // 15
  rows = np.concatenate([batch["tokens"] for batch in read(config(Tokens(shards)), windows // 2)[0]])
  doubled = [*FLAT, *FLAT]
  places = [next(i for i in range(len(FLAT)) if doubled[i : i + 16] == row.tolist()) for row in rows[: 2 * windows]]
  first, second = places[:windows], places[windows : 2 * windows]
  for one in (first, second):
    assert len({place % 15 if place >= min(one) else None for place in one}) <= 2  # wrapped around once
    assert len(set(one)) == windows
  assert first != sorted(first) and {place % 15 for place in first[:3]} != {place % 15 for place in second[:3]}


def test_the_place_is_one_integer(shards):
  _, state = read(config(Tokens(shards)), 7)
  assert {name: value for name, value in state.items() if name != "content"} == {"next_batch": 7}


@pytest.mark.parametrize("context", [15, 40])
def test_any_number_of_hosts_sees_the_same_global_batches_and_goes_on_in_another(shards, context):
  whole, _ = read(config(Tokens(shards), context=context, document_mask=True), 12)
  state = None
  for hosts, (begin, end) in ((2, (0, 5)), (4, (5, 8)), (1, (8, 12))):
    parts = [
      read(config(Tokens(shards), context=context, document_mask=True), end - begin, host, hosts, state=state)
      for host in range(hosts)
    ]
    for number in range(end - begin):
      for name, rows in whole[begin + number].items():
        np.testing.assert_array_equal(np.concatenate([batches[number][name] for batches, _ in parts]), rows)
    state = join_states([state for _, state in parts])


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "process"), [(1, (1, 2)), (2, (0, 1))])
def test_workers_change_nothing(shards, workers, process):
  whole, _ = read(config(Tokens(shards)), 12, *process)
  first, state = read(config(Tokens(shards), num_workers=workers), 5, *process)
  second, _ = read(config(Tokens(shards), num_workers=workers), 7, *process, state=state)
  for ours, theirs in zip([*first, *second], whole, strict=True):
    np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])


def test_segments_begin_behind_an_eos(shards):
  for batch in read(config(Tokens(shards), document_mask=True), 20)[0]:
    for tokens, segments, positions in zip(*(batch[name] for name in ("tokens", "segments", "positions")), strict=True):
      begins = np.concatenate([[True], tokens[:-1] == 0])
      assert segments[0] == 1 and np.array_equal(np.diff(segments), begins[1:])
      assert not positions[begins].any() and np.all(np.diff(positions)[~begins[1:]] == 1)


def whole_documents(stream):
  """The texts that lie within a row, with others before and behind."""
  rows = [row for batch in stream for row in batch["tokens"]]
  texts = (ByteTokenizer().decode([id or ord("\n") + 1 for id in row]).split("\n")[1:-1] for row in rows)
  return set().union(*texts)


def test_a_part_is_read_alone(shards):
  source = Cut(Tokens(shards), heldout=0.3, fit=0.1)
  kept = {ByteTokenizer().decode(ids.tolist()) for ids in source.documents()}
  stream, _ = read(config(source, context=300, batch_size=1), 40)
  whole = whole_documents(stream)
  assert len(whole) > 40 and whole <= kept and len(kept) < len(TEXTS)


def test_what_another_part_holds_is_left_out_and_so_are_lengths(shards, tmp_path):
  store("user", tmp_path / "held", TEXTS[:30])
  write_shards(store("user", tmp_path / "held", TEXTS[:30]).documents(), ByteTokenizer(), tmp_path / "shards")
  source = Splits(Tokens(shards), Tokens(str(tmp_path / "shards")))
  stream, _ = read(config(source, context=300, batch_size=1, min_tokens=10, max_tokens=30), 40)
  assert whole_documents(stream) == {text for text in TEXTS[30:] if 10 <= len(text) <= 30}


def test_what_windows_cannot_be_cut_from_is_one_line(shards, tmp_path):
  text = store("jsonl", tmp_path / "text", TEXTS)
  for changes, message in (
    ({"source": text}, r"packing is 'windows', which reads token shards; JSONL.*drope_jax.data.tokenize"),
    ({"bos": True}, "has no BOS"),
    ({"context": 10_000}, "fewer than one row"),
  ):
    with pytest.raises(ConfigError, match=message):
      train_batches(config(**{"source": Tokens(shards), **changes}), 0)
  with pytest.raises(ConfigError, match=r"DataConfig\.packing is 'rows'"):
    config(Tokens(shards), packing="rows")
  _, state = read(config(Tokens(shards)), 2)
  write_shards(store("user", tmp_path / "x", TEXTS[1:]).documents(), ByteTokenizer(), tmp_path / "other")
  with pytest.raises(CheckpointError, match="the data has changed"):
    read(config(Tokens(str(tmp_path / "other"))), 1, state=state)


def test_documents_side_by_side_are_refused_for_windows_unless_an_earlier_version_recorded_them(shards):
  windows = config(Tokens(shards))
  assert settled(windows, 0).interleave is None
  with pytest.raises(ConfigError, match=r"interleave is 8 and packing 'windows'.* leave interleave out"):
    settled(dataclasses.replace(windows, interleave=8), 0)
  before = dataclasses.replace(windows, interleave=64, seed=0)
  for again in (windows, before):
    assert settled(again, 0, recorded=before) == before
