"""Endless repetition: what counts as a loop, and a model that says one token for ever."""

import numpy as np
import pytest
from support.counting_task import subject

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
