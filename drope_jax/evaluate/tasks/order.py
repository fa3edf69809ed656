"""A probe of order: a variable is assigned several times among prose, and its value is queried.

The latest assignment should win; a dropped model has been seen to prefer the first, that is, recency turned into
primacy. It is scored by log-likelihood, so that it is informative for models of any size.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from drope_jax.data.recall import Line, Lines
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import Figure, figures_by_depth, mean_figure
from drope_jax.evaluate.likelihood import score_continuations
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task
from drope_jax.evaluate.words import ADJECTIVES, NOUNS


@dataclasses.dataclass(frozen=True)
class OrderSample:
  """A prompt that ends with `name =`, and the values in the order of their assignments."""

  tokens: np.ndarray
  values: tuple[tuple[int, ...], ...]  # token ids
  depth: float  # of the latest assignment, 0 to 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order(Task):
  """Which of `assignments` values a model finds most likely: "latest" is right, with a chance of 1 / assignments."""

  lines: Lines
  num_samples: int = 100
  assignments: int = 4
  seed: int = 0
  name = "order"

  @classmethod
  def groups(cls) -> Mapping[str, tuple[str, ...]]:
    return {"probes": (cls.name,)}

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    return cls(lines=data.essay_lines, num_samples=data.num_samples, seed=data.seed)

  def settings(self, length: int) -> dict[str, Any]:
    return {"samples": self.num_samples, "assignments": self.assignments, "text": self.lines.fingerprint}

  def check(self, length: int, crop: int | None) -> None:
    self.sample(length, 0)

  def sample(self, length: int, index: int) -> OrderSample:
    """A prompt that has at most `length` tokens together with its longest value."""
    rng = random.Random(f"order {self.seed} {index} {length}")
    name = rng.choice(NOUNS)
    values = rng.sample([one for one in ADJECTIVES if one != name], self.assignments)
    question = self.lines.line(f"\n{name} =")
    answers = [self.lines.line(f" {value}") for value in values]
    facts = [Line(question.text + answer.text, question.ids + answer.ids) for answer in answers]
    room = length - len(question.ids) - max(len(one.ids) for one in answers) - sum(len(one.ids) for one in facts)
    if room < 0:
      raise ConfigError(f"order: {self.assignments} assignments and a question do not fit into {length} tokens")
    fillers: list[Line] = []
    start = rng.randrange(len(self.lines.fillers))
    while True:
      filler = self.lines.fillers[(start + len(fillers)) % len(self.lines.fillers)]
      room -= len(filler.ids)
      if room < 0:
        break
      fillers.append(filler)
    places = sorted(rng.randint(0, len(fillers)) for _ in facts)
    tokens: list[int] = []
    begin = 0
    for place, fact in zip(places, facts, strict=True):
      tokens += [i for filler in fillers[begin:place] for i in filler.ids] + list(fact.ids)
      begin = place
    tokens += [i for filler in fillers[begin:] for i in filler.ids] + list(question.ids)
    depth = places[-1] / max(len(fillers), 1)
    return OrderSample(np.asarray(tokens, np.int32), tuple(one.ids for one in answers), depth)

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    samples = [self.sample(length, index) for index in range(self.num_samples)]
    prompts = [subject.begin(sample.tokens) for sample in samples]
    pairs = [(c, np.asarray(value, np.int32)) for c, one in zip(prompts, samples, strict=True) for value in one.values]
    log_probs = [one.log_prob for one in score_continuations(subject, pairs)]
    log_p_NA = np.reshape(log_probs, (len(samples), self.assignments))
    p_NA = np.exp(log_p_NA - log_p_NA.max(axis=1, keepdims=True))
    p_NA /= p_NA.sum(axis=1, keepdims=True)
    chosen_N = log_p_NA.argmax(axis=1)
    latest_N = chosen_N == self.assignments - 1
    figures = [
      mean_figure("latest", latest_N),
      mean_figure("first", chosen_N == 0, lower_is_better=True),
      mean_figure("p_latest", p_NA[:, -1]),
      mean_figure("p_first", p_NA[:, 0], lower_is_better=True),
    ]
    return figures + figures_by_depth("latest", [sample.depth for sample in samples], latest_N)
