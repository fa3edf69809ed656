"""Endless repetition: what counts as a loop, and a model that says one token for ever."""

import numpy as np
import pytest
from support.counting_task import MODEL, subject

from drope_jax.errors import ConfigError
from drope_jax.evaluate.measure import check
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.tasks import loops
from drope_jax.evaluate.tasks.loops import LONGEST_PERIOD, Loops, distinct, loop_period


@pytest.mark.parametrize(
  ("tokens", "period"),
  [
    ([1, 2, 3, 4, 5, 6, 7, 8], None),
    ([9, 8, 7, 5, 5, 5, 5], 1),
    ([9, 8, 7, 5, 5, 5], None),  # three times are not a loop
    ([9, *[1, 2, 3] * 4], 3),
    ([*[1, 2, 3] * 4, 9], None),  # it has ended
    ([*range(LONGEST_PERIOD)] * 4, LONGEST_PERIOD),
    ([*range(LONGEST_PERIOD + 1)] * 4, None),
    ([], None),
  ],
)
def test_a_loop_is_a_short_piece_said_four_times_at_the_end(tokens, period):
  assert loop_period(tokens) == period


def test_sequences_that_differ_are_counted():
  assert distinct([1, 2, 3, 4, 5]) == 1.0
  assert distinct([1] * 7) == 1 / 4
  assert distinct([1, 2]) == 1.0


def test_answers_fill_the_length_and_are_scored():
  task = Loops(documents=[np.arange(200, dtype=np.int32) % 250, np.arange(90, dtype=np.int32)], num_samples=5)
  assert [prompt.tolist() for prompt in task.prompts(80)[:3]] == [
    list(range(40)), list(range(40)), list(range(40, 80)),
  ]  # fmt: skip
  assert len(task.prompts(80)) == 5
  looping, unlike = task.measure(subject(), 80)
  assert (looping.metric, looping.better, looping.n, unlike.n) == ("looping", "lower", 5, 5)
  assert looping.value in [i / 5 for i in range(6)] and 0 < unlike.value <= 1


DOCUMENTS = [np.arange(200, dtype=np.int32) % 250]


def test_a_crop_that_has_no_room_for_half_the_length_is_refused_before_anything_is_measured():
  """At every multiple of the context: the answer alone fills what a cropped model sees."""
  task = Loops(documents=DOCUMENTS)
  check(MODEL, 64, ["rope", "yarn"], [64, 128], [task])
  said = "loops at 128 tokens: 64 of them are seen; .* leave out this task, this length, or method 'crop'"
  with pytest.raises(ConfigError, match=said):
    check(MODEL, 64, ["crop", "rope"], [64, 128], [task])
  with pytest.raises(ConfigError, match=r"loops at 32 tokens: .* leave out this task, or this length$"):
    check(MODEL, 16, ["crop", "rope"], [32], [task])


@pytest.mark.parametrize("length", [80, 81])
def test_a_cropped_model_sees_no_more_than_its_window(monkeypatch, length):
  asked = []

  def continuations(subject, prompts, new_tokens, eos_ids):
    asked.extend((len(prompt), new_tokens) for prompt in prompts)
    return [[0] * new_tokens for _ in prompts]

  monkeypatch.setattr(loops, "continuations", continuations)
  task = Loops(documents=DOCUMENTS, num_samples=2)
  task.check(length, 60)
  task.measure(subject(how=Inference(MODEL, crop=60)), length)
  assert asked == [(60 - (length - 40), length - 40)] * 2
