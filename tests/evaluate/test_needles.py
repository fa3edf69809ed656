"""Needles with oracles in place of the model: all of the path is real but `hidden_states`."""

import dataclasses
import math
import random

import jax.numpy as jnp
import numpy as np
import pytest
from support.stub_model import put, reader

from drope_jax.config import ModelConfig
from drope_jax.data.recall import ARROW, TOPICS, Lines, NeedleSample, needle_sample
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.evaluate.figures import DEPTH_BINS
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.tasks.needles import Needles, accuracy_by_depth, retrieve
from drope_jax.generation import generate
from drope_jax.parameters import map_specs

TOKENIZER = ByteTokenizer()
FILLERS = ("The weather was fine that day.", "Nobody had seen the ship leave.", "There is little more to tell.")
LINES = Lines(TOKENIZER, FILLERS)
LENGTH = 300


def value_read(text: str) -> str:
  """What follows the topic that is asked for last, in the latest line that states a fact of it, and is not said yet."""
  *lines, asked = text.split("\n")
  topic, _, said = asked.partition(ARROW)
  found = [line.removeprefix(topic + ARROW) for line in lines if line.startswith(topic + ARROW)]
  return found[-1][len(said) :] if found and found[-1].startswith(said) else ""


@pytest.fixture(scope="module")
def samples():
  return [
    needle_sample(LINES, LENGTH + 7 * index, depth, seed=0, index=index, facts=3)
    for depth in DEPTH_BINS
    for index in range(4)
  ]


def fact_to_end(sample) -> int:
  """Tokens, of bytes, from the line of the fact that is asked for to the end of the prompt."""
  text = TOKENIZER.decode(sample.tokens)
  question = text[text.rindex("\n") :]
  assert text.index(question) < len(text) - len(question)
  return len(text) - text.index(question)


def test_an_oracle_answers_all(monkeypatch, samples):
  correct_N = retrieve(put(monkeypatch, reader(value_read, TOKENIZER), TOKENIZER), samples)
  assert correct_N.all()
  found = accuracy_by_depth(samples, correct_N, DEPTH_BINS)
  assert [(one.metric, one.by, one.at, one.value, one.n) for one in found] == [
    ("accuracy", "depth", depth, 1.0, 4) for depth in DEPTH_BINS
  ]


def test_one_that_sees_the_last_tokens_fails_exactly_on_needles_outside(monkeypatch, samples):
  reach = 150
  correct_N = retrieve(put(monkeypatch, reader(value_read, TOKENIZER, reach), TOKENIZER), samples)
  # When it says the last letter, the others stand between the question and where it is.
  assert correct_N.tolist() == [fact_to_end(sample) + len(sample.answer) - 1 <= reach for sample in samples]
  assert 0 < correct_N.sum() < len(samples)
  assert [row.value for row in accuracy_by_depth(samples, correct_N, DEPTH_BINS)][:: len(DEPTH_BINS) - 1] == [0.0, 1.0]


def test_a_crop_hides_exactly_the_needles_outside_and_leaves_room_for_the_answer(monkeypatch, samples):
  crop = 150
  correct_N = retrieve(put(monkeypatch, reader(value_read, TOKENIZER), TOKENIZER, crop=crop), samples)
  expected = [fact_to_end(sample) + len(sample.answer) <= crop for sample in samples]
  assert correct_N.tolist() == expected
  assert 0 < sum(expected) < len(samples)


def test_one_that_says_nothing_answers_none(monkeypatch, samples):
  assert not retrieve(put(monkeypatch, reader(lambda text: "", TOKENIZER), TOKENIZER), samples).any()


def test_one_that_guesses_among_the_values_of_the_topic_scores_chance(monkeypatch):
  def guess(text):
    asked, _, said = text.rpartition(ARROW)
    wanted = f" {random.Random(asked).choice(TOPICS.get(asked.split(' ')[-1], ('',)))}"
    return wanted[len(said) :]

  task = Needles(lines=LINES, per_depth=40)
  accuracy, *by_depth = task.measure(put(monkeypatch, reader(guess, TOKENIZER), TOKENIZER), LENGTH)
  deviation = math.sqrt(1 / 8 * 7 / 8 / 200)
  assert accuracy.n == 200 and abs(accuracy.value - 1 / 8) < 3 * deviation
  assert len(by_depth) == 5 and all(figure.value < 0.4 for figure in by_depth)


def test_an_answer_that_is_only_begun_is_wrong(monkeypatch, samples):
  first = samples[0]
  longer = dataclasses.replace(first, answer=(*first.answer, 7))
  subject = put(monkeypatch, reader(value_read, TOKENIZER), TOKENIZER)
  assert retrieve(subject, [first, longer]).tolist() == [True, False]


@pytest.mark.slow
def test_batch_size_does_not_change_answers_nor_their_order():
  config = ModelConfig(vocab_size=61, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24)
  rng = np.random.default_rng(0)
  params = map_specs(lambda spec: jnp.asarray(rng.normal(not spec.decay, 0.5, spec.shape), jnp.float32), config)
  prompts = [rng.integers(0, 61, length).astype(np.int32) for length in (30, 29, 32, 29, 31)]
  answers = [tuple(row) for row in generate(params, config, prompts, max_new_tokens=3)]
  wrong = [
    answers[0],
    (60 - answers[1][0], *answers[1][1:]),
    answers[2],
    (*answers[3][:2], 60 - answers[3][2]),
    answers[4],
  ]
  samples = [NeedleSample(prompt, answer, 0.5, slice(0)) for prompt, answer in zip(prompts, wrong, strict=True)]
  for batch_tokens in (1, 110, 10_000):  # one, three and all samples at one time
    subject = Subject(
      params=params, how=Inference(config), tokenizer=TOKENIZER, train_context=128, batch_tokens=batch_tokens
    )
    correct_N = retrieve(subject, samples)
    assert correct_N.tolist() == [True, False, True, False, True]


def test_bad_input_is_named(monkeypatch, samples):
  with pytest.raises(ValueError, match="samples is empty"):
    retrieve(put(monkeypatch, None, TOKENIZER), [])
  size = len(samples[0].answer)
  with pytest.raises(ValueError, match=f"crop is 3; an answer of {size} tokens"):
    retrieve(put(monkeypatch, None, TOKENIZER, crop=3), samples)
