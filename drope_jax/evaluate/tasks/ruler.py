"""RULER: answers to the prompts of ruler_prompts.py, scored as in RULER."""

import dataclasses
import functools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from drope_jax.errors import ConfigError
from drope_jax.evaluate.answers import complete
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import DEPTH_BINS, Figure, figures_by_depth, mean_figure
from drope_jax.evaluate.ruler_prompts import PUZZLES, Material, Puzzle, Sample, fitted
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task, check_room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruler(Task):
  """The task of one puzzle."""

  name: str  # a key of PUZZLES
  material: Material
  num_samples: int = 100
  seed: int = 0

  @classmethod
  def names(cls) -> tuple[str, ...]:
    return tuple(PUZZLES)

  @classmethod
  def groups(cls) -> Mapping[str, tuple[str, ...]]:
    return {"ruler": cls.names(), "niah": tuple(name for name in PUZZLES if name.startswith("niah"))}

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    return cls(name=name, material=data.material, num_samples=data.num_samples, seed=data.seed)

  @property
  def puzzle(self) -> Puzzle:
    return PUZZLES[self.name]

  def settings(self, length: int) -> dict[str, Any]:
    return {"samples": self.num_samples, "text": self.material.fingerprint}

  def check(self, length: int, crop: int | None) -> None:
    check_room(self.name, length, crop, self.puzzle.max_new_tokens)
    self._sample(length, 0, self.puzzle.smallest)

  def samples(self, length: int) -> list[Sample]:
    """Prompts that leave room for the answer within `length` tokens; they only depend on the seed."""
    return _samples(self, length)

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    samples = self.samples(length)
    prompts = [subject.encode(sample.prompt) for sample in samples]
    answers = complete(subject, prompts, self.puzzle.max_new_tokens)
    found = [found_references(answer, sample.references) for answer, sample in zip(answers, samples, strict=True)]
    figures = [
      mean_figure("string_match_all", [sum(row) / len(row) for row in found]),
      mean_figure("all_or_nothing", [all(row) for row in found]),
    ]
    needles = [
      (depth, hit, index)
      for index, (row, sample) in enumerate(zip(found, samples, strict=True))
      for depth, hit in zip(sample.depths, row, strict=False)
    ]
    if not needles:  # of a puzzle without depths
      return figures
    depths, hits, indices = zip(*needles, strict=True)
    return figures + figures_by_depth("string_match_all", depths, hits, DEPTH_BINS, indices)

  def _sample(self, length: int, index: int, guess: int) -> tuple[Sample, int]:
    def build(size: int) -> Sample:
      # Seeded again for each size, so that the size does not change what is drawn.
      rng = random.Random(f"{self.name} {self.seed} {index} {length}")
      return self.puzzle.sample(rng, size, length, self.material)

    room = length - self.puzzle.max_new_tokens - 1  # one for a BOS
    try:
      return fitted(build, self.material.count, room, smallest=self.puzzle.smallest, guess=guess)
    except ConfigError as error:
      raise ConfigError(f"{self.name} at {length} tokens: {error}") from error


@functools.lru_cache(maxsize=1)  # every method is asked the same
def _samples(task: Ruler, length: int) -> list[Sample]:
  _, size = task._sample(length, 0, task.puzzle.smallest)
  return [task._sample(length, index, size)[0] for index in range(task.num_samples)]


def found_references(answer: str, references: Sequence[str]) -> list[bool]:
  """Which references are in the answer, ignoring case; their mean is RULER's `string_match_all` of a sample."""
  cleaned = re.sub(r"[\x00-\x1f]", "\n", answer).strip().lower()
  return [reference.lower() in cleaned for reference in references]
