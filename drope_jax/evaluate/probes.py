"""Cheap probes of what a model without positions may lose: order, and copying from afar.

- `order`: a variable is assigned several times among prose, and its value asked for. The latest assignment should win;
  a dropped model has been seen to prefer the first (paper.md section 10: recency turned into primacy).
- `induction`: random tokens, in which `A B` stood some way back; after `A`, is `B` next?
- `copy`: the same for a longer piece: after its first four tokens, the next twelve.

All are scored by log-likelihood, so that they say something about models of any size.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from drope_jax.data.recall import Line, Lines
from drope_jax.errors import ConfigError
from drope_jax.evaluate.likelihood import score_continuations
from drope_jax.evaluate.results import ACCURACY, LOSS
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.tasks import DEPTH_BINS, Figure, Subject, check_room, figures_by_depth, mean_figure
from drope_jax.evaluate.words import ADJECTIVES, NOUNS

NEAREST = 16  # tokens: the shortest distance of a copy; longer ones are its doubles


@dataclasses.dataclass(frozen=True)
class OrderSample:
  """A prompt that ends with `name =`, and the values in the order they were assigned."""

  tokens: np.ndarray
  values: tuple[tuple[int, ...], ...]  # token ids
  depth: float  # where the latest assignment is: 0 to 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
  """Which of `assignments` values a model finds likeliest: "latest" is right, and a guess has 1 / assignments."""

  lines: Lines
  num_samples: int = 100
  assignments: int = 4
  seed: int = 0
  name: str = "order"
  bounded: ClassVar[bool] = True

  def settings(self, length: int) -> dict[str, Any]:
    return {"samples": self.num_samples, "assignments": self.assignments, "text": self.lines.fingerprint}

  def check(self, length: int, crop: int | None) -> None:
    self.sample(length, 0)

  def sample(self, length: int, index: int) -> OrderSample:
    """A prompt of at most `length` tokens with its longest value."""
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
    contexts = [subject.begin(sample.tokens) for sample in samples]
    pairs = [(c, np.asarray(value, np.int32)) for c, one in zip(contexts, samples, strict=True) for value in one.values]
    log_probs = [one.log_prob for one in score_continuations(subject, pairs)]
    log_p_NA = np.reshape(log_probs, (len(samples), self.assignments))
    p_NA = np.exp(log_p_NA - log_p_NA.max(axis=1, keepdims=True))
    p_NA /= p_NA.sum(axis=1, keepdims=True)
    chosen_N = log_p_NA.argmax(axis=1)
    latest_N = chosen_N == self.assignments - 1
    figures = [
      mean_figure("latest", latest_N),
      mean_figure("first", chosen_N == 0),
      mean_figure("p_latest", p_NA[:, -1]),
      mean_figure("p_first", p_NA[:, 0]),
    ]
    return figures + figures_by_depth("latest", [sample.depth for sample in samples], latest_N, DEPTH_BINS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
  """Random tokens that end with the first `cue` tokens of a piece that stood `distance` tokens before.

  Figures: the share of samples whose next `predicted` tokens are all copied greedily, their mean loss, and how many
  nats less that is than for a piece that never stood there ("gain"), all of them by distance too.
  """

  name: str
  cue: int
  predicted: int
  alphabet: tuple[int, ...]  # token ids to draw from
  num_samples: int = 100
  seed: int = 0
  bounded: ClassVar[bool] = True

  def settings(self, length: int) -> dict[str, Any]:
    how = {"samples": self.num_samples, "cue": self.cue, "predicted": self.predicted}
    return {**how, "alphabet": fingerprint([np.asarray(self.alphabet, np.int32)])}

  def check(self, length: int, crop: int | None) -> None:
    check_room(self.name, length, None, 2 * (self.cue + self.predicted) + NEAREST)

  def distances(self, length: int) -> list[int]:
    """From NEAREST, doubled, as far as a whole piece fits before the cue."""
    longest = length - self.cue - self.predicted
    return [NEAREST << i for i in range(longest.bit_length()) if NEAREST << i <= longest]

  def sample(self, length: int, distance: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Context, the piece that follows by copying, and one that does not: int32 token ids."""
    rng = random.Random(f"{self.name} {self.seed} {index} {length} {distance}")
    size = length - self.predicted
    mark = rng.choice(self.alphabet)  # begins the piece, and stands nowhere else
    others = [token for token in self.alphabet if token != mark]
    context = rng.choices(others, k=size)
    begin = size - self.cue - distance
    context[begin] = mark
    context[size - self.cue :] = context[begin : begin + self.cue]
    copied = context[begin + self.cue : begin + self.cue + self.predicted]
    fresh = rng.choices(others, k=self.predicted)
    return tuple(np.asarray(part, np.int32) for part in (context, copied, fresh))  # type: ignore[return-value]

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    distances = self.distances(length)
    each = max(self.num_samples // len(distances), 1)
    samples = [self.sample(length, distance, index) for distance in distances for index in range(each)]
    contexts, copies, others = zip(*samples, strict=True)
    begun = [subject.begin(context) for context in contexts]
    pairs = [*zip(begun, copies, strict=True), *zip(begun, others, strict=True)]
    scored = score_continuations(subject, pairs)
    copied, fresh = scored[: len(samples)], scored[len(samples) :]
    greedy_N = np.array([one.greedy for one in copied])
    loss_N = -np.array([one.log_prob for one in copied]) / self.predicted
    gain_N = -np.array([one.log_prob for one in fresh]) / self.predicted - loss_N
    rows = {ACCURACY: greedy_N, LOSS: loss_N, "gain": gain_N}
    figures = [mean_figure(metric, row_N) for metric, row_N in rows.items()]
    for i, distance in enumerate(distances):
      part = slice(i * each, (i + 1) * each)
      figures += [mean_figure(f"{metric}@distance={distance}", row_N[part]) for metric, row_N in rows.items()]
    return figures


def copy_probes(ids: Sequence[int], num_samples: int, seed: int) -> dict[str, Copy]:
  """The probes `induction` and `copy` over the different ones among `ids`: tokens that the model has seen in texts."""
  probe = functools.partial(Copy, alphabet=tuple(sorted(set(ids))), num_samples=num_samples, seed=seed)
  return {"induction": probe(name="induction", cue=1, predicted=1), "copy": probe(name="copy", cue=4, predicted=12)}
