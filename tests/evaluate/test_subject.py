"""What every task is run with: batches of similar length, a BOS, and answers that are kept as they come."""

import dataclasses
import json

import numpy as np
import pytest
from support.counting_task import BOS_TOKENIZER, MODEL, TOKENIZER, subject
from support.stub_model import put, reader

from drope_jax.evaluate import answers
from drope_jax.evaluate.answers import complete
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.samples import SampleLog
from drope_jax.evaluate.subject import batches
from drope_jax.evaluate.tasks import copying, make_tasks, needles, order, perplexity

RNG = np.random.default_rng(0)


def test_batches_hold_each_index_once_within_the_budget():
  lengths = RNG.integers(1, 500, 100).tolist()
  groups = batches(lengths, 1000)
  assert sorted(i for group in groups for i in group.indices) == list(range(100))
  assert all(len(group.indices) * max(lengths[i] for i in group.indices) <= 1000 for group in groups)
  order = [lengths[i] for group in groups for i in group.indices]
  assert order == sorted(lengths, reverse=True)
  for group in groups:
    longest = max(lengths[i] for i in group.indices)
    assert longest <= group.width <= 1.25 * longest and len(group.indices) <= group.rows
  assert [group.indices for group in batches([5000, 3], 1000)] == [[0], [1]]  # one longer than the budget goes alone


def test_samples_of_one_length_are_one_shape_with_little_filling():
  for count in range(1, 60):
    groups = batches([100] * count, 1600)
    assert len({(group.rows, group.width) for group in groups}) == 1
    filled = sum(group.rows for group in groups)
    assert filled - count < 0.25 * count + len(groups) and max(len(group.indices) for group in groups) <= 16


def test_answers_are_kept_and_not_asked_for_again(monkeypatch, tmp_path):
  model = put(monkeypatch, reader(lambda text: text[-1] if text[-3:] != "zzz" else "", TOKENIZER), TOKENIZER)
  prompts = [model.encode(text) for text in ("az", "bbb", "ccccz")]
  asked = []
  real = answers.generate
  monkeypatch.setattr(answers, "generate", lambda *args, **how: asked.append(len(args[2])) or real(*args, **how))
  path = tmp_path / "samples.jsonl"
  small = dataclasses.replace(model, log=SampleLog(path), batch_tokens=1)
  assert complete(small, prompts, 5) == ["zz", "bbbbb", "zz"] and asked == [1, 1, 1]
  lines = path.read_text().splitlines()
  assert sorted((json.loads(line)["index"], json.loads(line)["text"]) for line in lines) == [
    (0, "zz"),
    (1, "bbbbb"),
    (2, "zz"),
  ]
  path.write_text("\n".join(lines)[:-9])  # the last record is torn, and its newline gone
  again = dataclasses.replace(model, log=SampleLog(path))
  assert complete(again, [*prompts[:2], model.encode("changed"), prompts[2]], 5)[:2] == ["zz", "bbbbb"]
  assert asked[3:] == [3 if json.loads(lines[-1])["index"] in (0, 1) else 2]
  assert len(SampleLog(path)._known) >= 4


def test_a_crop_without_room_for_a_prompt_is_refused():
  with pytest.raises(ValueError, match="crop is 5; an answer of 5 tokens leaves no room"):
    complete(subject(how=Inference(MODEL, crop=5)), [np.arange(9)], 5)


@pytest.mark.parametrize("task", ["perplexity", "sliding_perplexity", "needles", "order", "induction"])
def test_a_bos_is_read_by_every_task(task, monkeypatch):
  monkeypatch.setattr(EvalData, "_split", lambda *_: ["The tides turn at noon and at dusk, or so they say. " * 20])
  data = EvalData(tokenizer=BOS_TOKENIZER, longest=200, num_samples=4, needles_per_depth=1)
  (made,) = make_tasks([task], data)
  seen = []
  monkeypatch.setattr(perplexity, "position_losses", lambda params, how, documents, **inputs: seen.extend(documents))
  for module in (copying, order):
    monkeypatch.setattr(module, "score_continuations", lambda subject, pairs: seen.extend(c for c, _ in pairs))
  monkeypatch.setattr(needles, "continuations", lambda subject, prompts, *_, **__: seen.extend(prompts))
  for bos in (True, False):
    with pytest.raises((TypeError, AttributeError)):  # there are no figures of nothing
      made.measure(subject(tokenizer=BOS_TOKENIZER, bos=bos), 200)
    assert seen and {int(row[0]) == 260 for row in seen} == {bos}
    seen.clear()
