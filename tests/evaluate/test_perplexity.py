"""The tasks of the loss on long documents: figures, bytes, sliding windows, joined documents, a BOS."""

import dataclasses
import math

import numpy as np
import pytest
from support.counting_task import BOS_TOKENIZER, MODEL, PARAMS, TOKENIZER, subject

from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.evaluate.tasks import make_tasks
from drope_jax.evaluate.tasks.perplexity import Perplexity, text_bytes

DOCUMENTS = [np.asarray(TOKENIZER.encode(text), np.int32) for text in ("ab cd é " * 12, "The tides turn. " * 6)]


def test_bits_per_byte_are_the_loss_over_the_bytes():
  task = Perplexity(DOCUMENTS, TOKENIZER)
  loss, bits, *blocks = task.measure(subject(), 40)
  nll_NT = position_losses(PARAMS, Inference(MODEL), DOCUMENTS, length=40, batch_size=2)
  assert loss.value == pytest.approx(nll_NT.mean()) and loss.n == 80
  assert bits.metric == "bits_per_byte"
  assert bits.value == pytest.approx(loss.value / math.log(2), rel=1e-5)  # a token of this tokenizer is a byte
  assert {(block.metric, block.by) for block in blocks} == {("loss", "position")}
  assert [block.at for block in blocks] == [(start, start + 8) for start in range(0, 40, 8)]
  assert loss.low <= loss.value <= loss.high


def test_bytes_are_those_of_the_predicted_tokens():
  ids = TOKENIZER.encode("aé")
  assert text_bytes(TOKENIZER, np.asarray(ids)) == 2  # é, without the token that nothing predicts


def test_a_sliding_window_sees_no_more_than_its_length_and_predicts_the_same_tokens_at_every_length():
  task = Perplexity(DOCUMENTS, TOKENIZER, span=64)
  assert task.name == "sliding_perplexity"
  loss, _ = task.measure(subject(), 16)
  cropped = position_losses(PARAMS, Inference(MODEL, crop=16), DOCUMENTS, length=64, batch_size=2)
  assert loss.value == pytest.approx(cropped.mean(), rel=1e-6) and loss.n == 128
  whole, _ = task.measure(subject(), 64)
  assert whole.value == pytest.approx(
    position_losses(PARAMS, Inference(MODEL), DOCUMENTS, length=64, batch_size=2).mean(), rel=1e-6
  )
  with pytest.raises(ConfigError, match="a window of 65 tokens is longer than the 64"):
    task.check(65, None)


def test_short_documents_are_joined_only_where_that_is_asked_for(monkeypatch):
  monkeypatch.setattr(EvalData, "_split", lambda *_: ["abc", "defgh", "ijklm", "no", "pq"])
  alone = EvalData(tokenizer=TOKENIZER, longest=6)
  with pytest.raises(ConfigError, match="no document has 7 tokens"):
    make_tasks(["perplexity"], alone)
  joined = dataclasses.replace(alone, concatenate=True)
  (task,) = make_tasks(["perplexity"], joined)
  rows = [[TOKENIZER.decode([i]) for i in row.tolist()] for row in task.documents]
  assert ["".join(row) for row in rows] == ["abcdef", "ghijkl", "mnopq"] and {len(row) for row in rows} == {7}
  assert rows[0][3] == rows[1][2] == rows[2][1] == ""  # EOS
  assert task.settings(6)["concatenated"] and len(dataclasses.replace(joined, num_documents=2).documents) == 2
  assert [row.tolist() for row in joined.fit_documents] == [row.tolist() for row in task.documents]
  with pytest.raises(ConfigError, match="all documents together have 22 tokens; 41 are needed"):
    make_tasks(["perplexity"], dataclasses.replace(joined, longest=40))


def test_a_bos_conditions_the_loss_and_is_not_predicted():
  task = Perplexity(DOCUMENTS, BOS_TOKENIZER)
  loss, bits, *_ = task.measure(subject(tokenizer=BOS_TOKENIZER, bos=True), 40)
  begun = [np.concatenate([[260], document]) for document in DOCUMENTS]
  expected = position_losses(PARAMS, Inference(MODEL), begun, length=40)
  assert loss.value == pytest.approx(expected.mean(), rel=1e-6) and loss.n == 80
  texts = [TOKENIZER.decode(document[:40].tolist()).encode() for document in DOCUMENTS]
  assert bits.n == pytest.approx(sum(map(len, texts)), abs=2)  # a cut character is spelt with three bytes
