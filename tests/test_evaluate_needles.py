"""Needles with oracles in place of the model: all of the path is real but `hidden_states`."""

import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ModelConfig
from drope_jax.data.recall import Lines, NeedleSample, needle_sample
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.needles import accuracy_by_depth, retrieve
from drope_jax.evaluate.results import ACCURACY, at_depth
from drope_jax.evaluate.tasks import Subject
from drope_jax.generate import generate
from drope_jax.model import map_specs

TOKENIZER = ByteTokenizer()
TOPICS = {"able": ["acid"], "army": ["away"], "baby": ["back"], "ball": ["band"], "bank": ["base"], "bath": ["bear"]}
FILLERS = ("The weather was fine that day.", "Nobody had seen the ship leave.", "There is little more to tell.")
LENGTH = 300
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
QUESTION = len(" able ->")  # tokens, of bytes, that name a fact and that no other fact shares
ORACLE = ModelConfig(
  vocab_size=257, d_model=257, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=1, d_ff=1, positions=None
)
UNUSED = itertools.count(1.0)
ORACLE_PARAMS = {"embedding": jnp.eye(257)}  # so that a hidden state of one-hot is a logit of one-hot


def oracle(reach: int):
  """`hidden_states` that finds its last QUESTION tokens again among the last `reach` tokens, and says what followed.

  The tokens seen so far lie in the cache, as keys.
  """

  def hidden_states(params, config, tokens_BT, *, cache, **inputs):
    rows, slots_BT = jnp.arange(len(tokens_BT))[:, None], cache.lengths_B[:, None] + jnp.arange(tokens_BT.shape[1])
    keys = cache.k_LBSKh.at[0, rows, slots_BT, 0, 0].set(tokens_BT.astype(jnp.float32), mode="drop")
    seen_BS = keys[0, :, :, 0, 0]
    now_B1 = slots_BT[:, -1:]
    ends_S = jnp.arange(seen_BS.shape[1])
    matches_BS = (ends_S < now_B1) & (ends_S - QUESTION + 1 > now_B1 - reach)
    for back in range(QUESTION):
      same = jnp.roll(seen_BS, back, axis=1) == jnp.take_along_axis(seen_BS, now_B1 - back, axis=1)
      matches_BS &= same
    end_B1 = jnp.where(matches_BS, ends_S, -1).max(axis=1, keepdims=True)
    answer_B1 = jnp.where(end_B1 < 0, 0, jnp.take_along_axis(seen_BS, end_B1 + 1, axis=1))
    cache = dataclasses.replace(cache, k_LBSKh=keys, lengths_B=cache.lengths_B + tokens_BT.shape[1])
    return jax.nn.one_hot(answer_B1.astype(jnp.int32), config.d_model), cache

  return hidden_states


def subject(config: ModelConfig, crop: int | None = None, **fields) -> Subject:
  how = Inference(config, crop=crop)
  return Subject(**{"params": ORACLE_PARAMS, "how": how, "tokenizer": TOKENIZER, "train_context": 128, **fields})


@pytest.fixture
def model(monkeypatch):
  """Puts a `hidden_states` into generate.py, and hands out the config to run it under."""

  def put(hidden_states):
    monkeypatch.setattr(sys.modules["drope_jax.generate"], "hidden_states", hidden_states)
    return dataclasses.replace(ORACLE, init_std=next(UNUSED))  # another config, so that it gets a program of its own

  return put


@pytest.fixture(scope="module")
def samples():
  lines = Lines(TOKENIZER, FILLERS, TOPICS)
  return [
    needle_sample(lines, LENGTH + 7 * index, depth, seed=0, index=index, facts=3)
    for depth in DEPTHS
    for index in range(4)
  ]


def fact_to_end(sample) -> int:
  """Tokens from the fact that is asked for to the end of the prompt."""
  text, question = TOKENIZER.decode(sample.tokens), TOKENIZER.decode(sample.tokens[-QUESTION:])
  assert text.index(question) < len(text) - QUESTION
  return len(text) - text.index(question)


def test_an_oracle_answers_all(model, samples):
  config = model(oracle(reach=10_000))
  correct_N = retrieve(subject(config), samples)
  assert correct_N.all()
  assert [row[:3] for row in accuracy_by_depth(samples, correct_N, DEPTHS)] == [
    (at_depth(ACCURACY, depth), 1.0, 4) for depth in DEPTHS
  ]


def test_one_that_sees_the_last_tokens_fails_exactly_on_needles_outside(model, samples):
  reach = 150
  correct_N = retrieve(subject(model(oracle(reach))), samples)
  assert correct_N.tolist() == [fact_to_end(sample) <= reach for sample in samples]
  assert 0 < correct_N.sum() < len(samples)
  assert [row.value for row in accuracy_by_depth(samples, correct_N, DEPTHS)][:: len(DEPTHS) - 1] == [0.0, 1.0]


def test_a_crop_hides_exactly_the_needles_outside_and_leaves_room_for_the_answer(model, samples):
  crop = 150
  correct_N = retrieve(subject(model(oracle(reach=10_000)), crop=crop), samples)
  expected = [fact_to_end(sample) + len(sample.answer) <= crop for sample in samples]
  assert correct_N.tolist() == expected
  assert 0 < sum(expected) < len(samples)


def test_one_that_says_nothing_answers_none(model, samples):
  assert not retrieve(subject(model(oracle(reach=1))), samples).any()


def test_an_answer_that_is_only_begun_is_wrong(model, samples):
  first = samples[0]
  longer = dataclasses.replace(first, answer=(*first.answer, 7))
  config = model(oracle(reach=10_000))
  assert retrieve(subject(config), [first, longer]).tolist() == [True, False]


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
  samples = [NeedleSample(prompt, answer, 0.5) for prompt, answer in zip(prompts, wrong, strict=True)]
  for batch_tokens in (1, 110, 10_000):  # one, three and all samples at one time
    correct_N = retrieve(subject(config, params=params, batch_tokens=batch_tokens), samples)
    assert correct_N.tolist() == [True, False, True, False, True]


def test_samples_count_for_the_nearest_depth():
  samples = [NeedleSample(np.zeros(1, np.int32), (1,), depth) for depth in (0.02, 0.48, 0.97, 1.0)]
  rows = accuracy_by_depth(samples, np.array([True, False, True, False]), (0.0, 0.25, 0.5, 1.0))
  assert [row[:3] for row in rows] == [
    (at_depth(ACCURACY, 0.0), 1.0, 1),
    (at_depth(ACCURACY, 0.5), 0.0, 1),
    (at_depth(ACCURACY, 1.0), 0.5, 2),
  ]


def test_bad_input_is_named(samples):
  with pytest.raises(ValueError, match="samples is empty"):
    retrieve(subject(ORACLE), [])
  with pytest.raises(ValueError, match="crop is 3; an answer of 5 tokens"):
    retrieve(subject(ORACLE, crop=3), samples)
