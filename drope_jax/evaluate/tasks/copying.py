"""Probes of copying from afar, which a model without positions may lose.

- `induction`: random tokens with `A B` at some distance before the end; after another `A`, is `B` predicted?
- `copy`: the same for a longer piece: after its first four tokens, are the next twelve predicted?

Both are scored by log-likelihood, so that they are informative for models of any size.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import ACCURACY, LOSS, Figure, figures_by, mean_figure
from drope_jax.evaluate.likelihood import score_continuations
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task, check_room

GAIN = "gain"  # a metric: by how many nats per token a copied piece is likelier than a fresh one
NEAREST = 16  # shortest distance of a copy in tokens; longer ones are doubled repeatedly
SIZES = {"induction": (1, 1), "copy": (4, 12)}  # of each probe: tokens of the cue, and tokens predicted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(Task):
  """Random tokens that end with the first `cue` tokens of a piece that occurred `distance` tokens earlier.

  Figures: the share of samples whose next `predicted` tokens are all copied greedily, their mean loss, and the
  difference in nats from a piece that did not occur ("gain"), each also by distance.
  """

  name: str
  cue: int
  predicted: int
  alphabet: tuple[int, ...]  # token ids to draw from
  num_samples: int = 100
  seed: int = 0

  @classmethod
  def names(cls) -> tuple[str, ...]:
    return tuple(SIZES)

  @classmethod
  def groups(cls) -> Mapping[str, tuple[str, ...]]:
    return {"probes": cls.names()}

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    cue, predicted = SIZES[name]
    seen = tuple(sorted({token for filler in data.essay_lines.fillers for token in filler.ids}))
    return cls(name=name, cue=cue, predicted=predicted, alphabet=seen, num_samples=data.num_samples, seed=data.seed)

  def settings(self, length: int) -> dict[str, Any]:
    how = {"samples": self.num_samples, "cue": self.cue, "predicted": self.predicted}
    return {**how, "alphabet": fingerprint([np.asarray(self.alphabet, np.int32)])}

  def check(self, length: int, crop: int | None) -> None:
    check_room(self.name, length, None, 2 * (self.cue + self.predicted) + NEAREST)

  def distances(self, length: int) -> list[int]:
    """NEAREST, doubled as long as a whole piece fits before the cue."""
    longest = length - self.cue - self.predicted
    return [NEAREST << i for i in range(longest.bit_length()) if NEAREST << i <= longest]

  def sample(self, length: int, distance: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prompt, the continuation by copying, and a random one: int32 token ids."""
    rng = random.Random(f"{self.name} {self.seed} {index} {length} {distance}")
    size = length - self.predicted
    mark = rng.choice(self.alphabet)  # begins the piece, and occurs nowhere else
    others = [token for token in self.alphabet if token != mark]
    prompt = rng.choices(others, k=size)
    begin = size - self.cue - distance
    prompt[begin] = mark
    prompt[size - self.cue :] = prompt[begin : begin + self.cue]
    copied = prompt[begin + self.cue : begin + self.cue + self.predicted]
    fresh = rng.choices(others, k=self.predicted)
    return tuple(np.asarray(part, np.int32) for part in (prompt, copied, fresh))  # type: ignore[return-value]

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    distances = self.distances(length)
    each = max(self.num_samples // len(distances), 1)
    samples = [self.sample(length, distance, index) for distance in distances for index in range(each)]
    prompts, copies, others = zip(*samples, strict=True)
    begun = [subject.begin(prompt) for prompt in prompts]
    pairs = [*zip(begun, copies, strict=True), *zip(begun, others, strict=True)]
    scored = score_continuations(subject, pairs)
    copied, fresh = scored[: len(samples)], scored[len(samples) :]
    greedy_N = np.array([one.greedy for one in copied])
    loss_N = -np.array([one.log_prob for one in copied]) / self.predicted
    gain_N = -np.array([one.log_prob for one in fresh]) / self.predicted - loss_N
    rows = {ACCURACY: greedy_N, LOSS: loss_N, GAIN: gain_N}
    figures = [mean_figure(metric, row_N) for metric, row_N in rows.items()]
    for i, distance in enumerate(distances):
      part = slice(i * each, (i + 1) * each)
      for metric, row_N in rows.items():
        figures += figures_by(metric, "distance", [(distance, row_N[part])])
    return figures
