"""Recall: facts "key -> value" placed in prose and asked for again; to learn from, and to test with as needles.

Everything is made of lines. A filler is one sentence; a fact is a key, an arrow and a value; the question is the same
line without its value, so that a model which continues it answers. Whatever is generated is a pure function of the
`Lines`, the parameters, the seed and the index.
"""

import collections
import dataclasses
import random
import re
from collections.abc import Iterable, Sequence

import numpy as np

from drope_jax.config import ConfigError
from drope_jax.data.tokenizers import Tokenizer

ARROW = " ->"


def single_token_words(tokenizer: Tokenizer, texts: Iterable[str], minimum_count: int = 50) -> tuple[str, ...]:
  """Whole words of four letters or more that are one token after a space and common in `texts`, sorted.

  A vocabulary alone would not do: it also holds the beginnings of words.
  """
  counts = collections.Counter(word for text in texts for word in re.findall(r"(?<= )[a-z]{4,}(?= )", text))
  common = (word for word, count in counts.items() if count >= minimum_count)
  return tuple(sorted(word for word in common if len(tokenizer.encode(f" {word}")) == 1))


def sentences(text: str) -> list[str]:
  """The sentences of `text` that read as prose: 15 to 120 characters, beginning with a letter, without an arrow."""
  candidates = (" ".join(part.split()) for part in re.split(r"(?<=[.!?:])\s+|\n+", text))
  return [one for one in candidates if 15 <= len(one) <= 120 and one[0].isalpha() and ARROW not in one]


@dataclasses.dataclass(frozen=True)
class Line:
  """A piece of text and its token ids."""

  text: str
  ids: tuple[int, ...]


class Lines:
  """What recall documents and needle samples are made of.

  Args:
    tokenizer: counts the tokens.
    words: to draw from; every other one is a key, the rest are values.
    fillers: sentences to hide facts among; of held-out documents for a test.
  """

  def __init__(self, tokenizer: Tokenizer, words: Sequence[str], fillers: Iterable[str]):
    self.tokenizer = tokenizer
    self.keys, self.values = words[::2], words[1::2]
    self.fillers = [self.line(f"\n{sentence}") for sentence in fillers]
    if not self.fillers:
      raise ConfigError("recall needs at least one filler sentence")
    self.mean_filler = sum(len(filler.ids) for filler in self.fillers) / len(self.fillers)  # tokens

  def line(self, text: str) -> Line:
    return Line(text, tuple(self.tokenizer.encode(text)))

  def question(self, key: str) -> Line:
    return self.line(f"\n {key}{ARROW}")

  def answer(self, value: str) -> Line:
    return self.line(f" {value}")

  def fact(self, key: str, value: str) -> Line:
    """A question and its answer, in the same tokens as when they come apart."""
    question, answer = self.question(key), self.answer(value)
    return Line(question.text + answer.text, question.ids + answer.ids)

  def draw_pairs(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` different keys, with different values."""
    if count > len(self.values):
      raise ConfigError(f"{count} facts need {count} keys and values; there are {len(self.values)}")
    return list(zip(rng.sample(self.keys, count), rng.sample(self.values, count), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallParameters:
  """How recall documents vary; dense ones are what a small model learns to retrieve from."""

  tokens: tuple[int, int] = (64, 128)  # a document's length is drawn from this range, and exceeded by a line at most
  pairs: tuple[int, int] = (2, 8)  # facts of a document; fewer, down to 2, where stating them would take half of it
  filler: tuple[float, ...] = (0.0, 0.3, 0.6)  # the share of tokens that are filler is one of these
  ordered: float = 0.5  # chance that a round repeats the facts in the order in which they were stated


def recall_document(lines: Lines, parameters: RecallParameters, seed: int, index: int) -> str:
  """Facts among fillers: a round that states them, then rounds that repeat them, until the document is full.

  Rounds in the same order are the easiest to continue (all of a line can be foretold, not its value alone), and what a
  small model learns first; those in another order want the key looked up.
  """
  rng = random.Random(f"recall {seed} {index}")
  length = rng.randint(*parameters.tokens)
  share = rng.choice(parameters.filler)
  fewest, most = parameters.pairs
  facts = [lines.fact(key, value) for key, value in lines.draw_pairs(rng, most)]
  fact_tokens = len(facts[0].ids)
  fitting = max(2, int(length / 2 * (1 - share) / fact_tokens))
  facts = facts[: rng.randint(min(fewest, fitting), min(most, fitting))]
  # A filler is longer than a fact, so it comes up less often than its share of the tokens says.
  filler_chance = share * fact_tokens / (share * fact_tokens + (1 - share) * lines.mean_filler)
  document: list[str] = []
  tokens = 0
  waiting: list[Line] = []
  while tokens < length:
    if rng.random() < filler_chance:
      line = rng.choice(lines.fillers)
    else:
      if not waiting:
        again = bool(document) and rng.random() >= parameters.ordered
        waiting = rng.sample(facts, len(facts)) if again else facts[::-1]
      line = waiting.pop()
    document.append(line.text)
    tokens += len(line.ids)
  return "".join(document)


@dataclasses.dataclass(frozen=True)
class NeedleSample:
  """A prompt that ends with a question, and what should come next."""

  tokens: np.ndarray  # int32 (length,)
  answer: tuple[int, ...]  # token ids
  depth: float  # where in the haystack the fact lies that is asked for: 0 before it, 1 after it


def needle_sample(lines: Lines, length: int, depth: float, seed: int, index: int, facts: int = 6) -> NeedleSample:
  """A haystack of consecutive fillers with facts between them, and the question for one of the facts.

  Args:
    lines: whose fillers make the haystack; they are repeated if it is longer than all of them.
    length: of the prompt, exactly, in tokens; the haystack's last filler is cut to fit.
    depth: where the fact goes that is asked for, 0 to 1; it moves to the nearest end of a filler.
    seed: of the whole set of samples.
    index: of this sample in the set.
    facts: how many are hidden; those not asked for lie at random depths.

  Raises:
    ConfigError: if `length` is too short for the facts and the question.
  """
  rng = random.Random(f"needle {seed} {index} {length} {depth}")
  pairs = lines.draw_pairs(rng, facts)
  key, value = pairs[0]
  question = lines.question(key).ids
  needles = [lines.fact(*pair).ids for pair in pairs]
  room = length - len(question) - sum(map(len, needles))
  if room < 0:
    raise ConfigError(f"{facts} facts and a question take {length - room} tokens; they do not fit into {length}")

  haystack, ends = _haystack(lines, room, rng.randrange(len(lines.fillers)))
  depths = [depth, *(rng.random() for _ in pairs[1:])]
  places = [min(ends, key=lambda end: abs(end - wanted * room)) for wanted in depths]
  in_order = sorted(zip(places, (rng.random() for _ in pairs), needles, strict=True))  # ties in random order
  tokens: list[int] = []
  begin = 0
  for place, _, needle in in_order:
    tokens += (*haystack[begin:place], *needle)
    begin = place
  tokens += (*haystack[begin:], *question)
  return NeedleSample(np.asarray(tokens, np.int32), lines.answer(value).ids, places[0] / max(room, 1))


def _haystack(lines: Lines, length: int, start: int) -> tuple[list[int], list[int]]:
  """The first `length` tokens of the fillers from the one at `start` on, and where in them one begins or ends."""
  tokens: list[int] = []
  ends: list[int] = []
  while len(tokens) < length:
    filler = lines.fillers[(start + len(ends)) % len(lines.fillers)]
    ends.append(len(tokens))
    tokens += filler.ids
  return tokens[:length], [*ends, length]
