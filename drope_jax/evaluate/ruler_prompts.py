"""RULER's synthetic prompts: eight with needles, variable tracking, common words, frequent words.

This follows Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?" (arXiv
2404.06654), and its published settings (NVIDIA/RULER at c3f5e3b, scripts/synthetic.yaml and
scripts/data/synthetic/constants.py), for the wording, the counts, the 40 depths, the places of needles, the room left
for the answer, and the score. The two question-answering tasks, which need data sets, are not included. The differences
are:

- Keys and words come from words.py and the haystack's own text, the haystack from haystack.py: all work offline.
- If common words need more different words than these, the rest are keys (RULER falls back on a longer list, too).
- Essays are split into sentences by a regular expression, where RULER uses nltk.
- Every sample is fitted to the length separately; RULER fits one and shortens the others in large steps.
- Keys and values of a sample are all different, so that no question has two answers.
"""

import dataclasses
import functools
import itertools
import math
import random
import re
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.haystack import split_sentences
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.words import ADJECTIVES, NOUNS, key_words

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = tuple(round(100 * i / 39) for i in range(40))  # per cent of the haystack's sentences

NEEDLE = "One of the special magic {type} for {key} is: {value}."
NIAH = (
  "Some special magic {type} are hidden within the following text. Make sure to memorize it. I will quiz you about the "
  "{type} afterwards.\n{context}\nWhat are all the special magic {type} for {query} mentioned in the provided text?"
  " The special magic {type} for {query} mentioned in the provided text are"
)
VARIABLES = (
  "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find "
  "all variables that are assigned the value {query} in the text above. Answer: According to the chain(s) of variable "
  "assignment in the text above, {count} variables are assigned the value {query}, they are: "
)
COMMON = (
  "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
  "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
  "words that appear most often in the list are:"
)
FREQUENT = (
  "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
  "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
  "most frequently appeared words in the above coded text? Answer: According to the coded text above, the three most "
  "frequently appeared words are:"
)


@dataclasses.dataclass(frozen=True)
class Sample:
  """A prompt, the strings that its answer should contain, and the depth of each in the haystack.

  A depth is the share of the haystack's characters (without needles) before the needle. This is its actual place, which
  differs from the intended one by up to the length of a sentence.
  """

  prompt: str
  references: tuple[str, ...]
  depths: tuple[float, ...] = ()  # one per reference; empty for tasks without depths


class Material:
  """The material of samples: a tokenizer to count tokens, and words."""

  def __init__(self, tokenizer: Tokenizer, essay: str):
    self.tokenizer = tokenizer
    self.essay = essay.split()
    self.keys = key_words()
    self.words = sorted({*ADJECTIVES, *NOUNS, *re.findall(r"\b[a-z]{3,}\b", essay)})
    if not self.essay:
      raise ConfigError("the haystack has no words")

  @functools.cached_property
  def fingerprint(self) -> str:
    """Identifies the haystack by content."""
    return fingerprint([" ".join(self.essay)])

  def count(self, text: str) -> int:
    return len(self.tokenizer.encode(text))


class Puzzle(Protocol):
  """A kind of task, which generates samples of any size; the largest one that fits is used."""

  max_new_tokens: int
  smallest: int

  def sample(self, rng: random.Random, size: int, length: int, material: Material) -> Sample:
    """A sample with `size` units of haystack, for sequences of `length` tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Niah(Puzzle):
  """Needles in a haystack, which consists of words of an essay, lines of noise, or needles that are not queried."""

  haystack: Literal["essay", "noise", "needle"] = "essay"
  keys: str = "words"  # or "uuids"
  values: str = "numbers"  # or "uuids"
  num_keys: int = 1
  num_values: int = 1  # of each key
  num_queries: int = 1
  max_new_tokens: int = 128
  smallest: int = 4

  def sample(self, rng: random.Random, size: int, length: int, material: Material) -> Sample:
    used: set[str] = set()

    def draw(kind: str) -> str:
      while (drawn := _DRAWS[kind](rng, material)) in used:
        pass
      used.add(drawn)
      return drawn

    def needle(key: str, value: str) -> str:
      return NEEDLE.format(type=self.values, key=key, value=value)

    facts = {draw(self.keys): [draw(self.values) for _ in range(self.num_values)] for _ in range(self.num_keys)}
    needles = [(value, needle(key, value)) for key, values in facts.items() for value in values]
    rng.shuffle(needles)
    queries = rng.sample(list(facts), self.num_queries)
    texts = [text for _, text in needles]
    if self.haystack == "essay":
      haystack = _among_sentences(rng, _cycled(material.essay, size), texts)
    else:
      line = {"noise": lambda: NOISE, "needle": lambda: needle(draw(self.keys), draw(self.values))}[self.haystack]
      haystack = _among_lines(rng, [line() for _ in range(size)], texts)
    depth_of = dict(zip((value for value, _ in needles), _depths(haystack, texts), strict=True))
    template, kind = NIAH, self.values
    if self.num_queries * self.num_values == 1:
      template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
      kind = kind.removesuffix("s")
    query = queries[0] if len(queries) == 1 else f"{', '.join(queries[:-1])}, and {queries[-1]}"
    references = tuple(value for key in queries for value in facts[key])
    prompt = template.format(type=kind, context=haystack, query=query)
    return Sample(prompt, references, tuple(depth_of[value] for value in references))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariableTracking(Puzzle):
  """A chain of assignments among lines of noise, after a short worked example; all its variables are queried."""

  hops: int = 4
  example_tokens: int = 500
  max_new_tokens: int = 30
  smallest: int = 5

  def sample(self, rng: random.Random, size: int, length: int, material: Material) -> Sample:
    begin = rng.getstate()

    def example(lines: int) -> Sample:
      rng.setstate(begin)
      return self._tracked(rng, lines, letters=3)

    few = self.hops + 1
    # With tokens as short as bytes, even the smallest example is longer.
    limit = max(self.example_tokens, material.count(example(few).prompt))
    shown, _ = fitted(example, material.count, limit, smallest=few, guess=few)
    asked = self._tracked(rng, size, letters=5)
    return Sample(f"{shown.prompt} {' '.join(shown.references)}\n\n{asked.prompt}", asked.references)

  def _tracked(self, rng: random.Random, lines: int, letters: int) -> Sample:
    names: dict[str, None] = {}
    while len(names) <= self.hops:
      names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    chain = list(names)
    value = str(rng.randrange(10_000, 99_999))
    assignments = [f"VAR {chain[0]} = {value}"]
    assignments += [f"VAR {name} = VAR {before} " for before, name in itertools.pairwise(chain)]
    haystack = [NOISE] * lines
    for shift, place in enumerate(sorted(rng.sample(range(lines), len(assignments)))):
      haystack.insert(place + shift, assignments[shift])
    return Sample(VARIABLES.format(context="\n".join(haystack), query=value, count=len(chain)), tuple(chain))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonWords(Puzzle):
  """A numbered list in which ten words occur more often than all others, after a short worked example."""

  max_new_tokens: int = 120
  smallest: int = 11

  def sample(self, rng: random.Random, size: int, length: int, material: Material) -> Sample:
    short = length < 4096
    shown = self._listed(rng, 20 if short else 40, (3, 1) if short else (10, 3), material)
    asked = self._listed(rng, size, (6, 1) if short else (30, 3), material)
    return Sample(f"{shown.prompt} {_numbered(shown.references)}\n{asked.prompt}", asked.references)

  def _listed(self, rng: random.Random, size: int, repeats: tuple[int, int], material: Material) -> Sample:
    more = max(size - len(material.words), 0)
    if more > len(material.keys):
      there = len(material.words) + len(material.keys)
      raise ConfigError(f"common words: {size} different words are needed; there are {there}")
    drawn = rng.sample(material.words, size - more) + rng.sample(material.keys, more)
    common, others = drawn[:10], drawn[10:]
    listed = common * repeats[0] + others * repeats[1]
    rng.shuffle(listed)
    return Sample(COMMON.format(context=_numbered(listed)), tuple(common))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequentWords(Puzzle):
  """Coded words whose frequencies follow a zeta distribution; the most frequent one is replaced by dots."""

  alpha: float = 2.0
  max_new_tokens: int = 50
  smallest: int = 100

  def sample(self, rng: random.Random, size: int, length: int, material: Material) -> Sample:
    words: dict[str, None] = {}
    while len(words) < max((length - self.max_new_tokens) // 50, 5):
      words["".join(rng.choices(string.ascii_lowercase, k=6))] = None
    vocabulary = ["...", *list(words)[1:]]
    zeta = sum(k**-self.alpha for k in range(1, 1000)) + 1000 ** (1 - self.alpha) / (self.alpha - 1)
    text = [word for k, word in enumerate(vocabulary, 1) for _ in range(int(size * k**-self.alpha / zeta))]
    rng.shuffle(text)
    return Sample(FREQUENT.format(context=" ".join(text)), tuple(vocabulary[1:4]))


PUZZLES: Mapping[str, Puzzle] = {
  "niah_single_1": Niah(haystack="noise"),
  "niah_single_2": Niah(),
  "niah_single_3": Niah(values="uuids"),
  "niah_multikey_1": Niah(num_keys=4),
  "niah_multikey_2": Niah(haystack="needle"),
  "niah_multikey_3": Niah(haystack="needle", keys="uuids", values="uuids"),
  "niah_multivalue": Niah(num_values=4),
  "niah_multiquery": Niah(num_keys=4, num_queries=4),
  "vt": VariableTracking(),
  "cwe": CommonWords(),
  "fwe": FrequentWords(),
}


def fitted(
  build: Callable[[int], Sample], count: Callable[[str], int], limit: int, *, smallest: int, guess: int
) -> tuple[Sample, int]:
  """The largest sample, to within a hundredth, whose prompt has at most `limit` tokens; and its size.

  Raises:
    ConfigError: if the smallest is longer.
  """
  fits: tuple[Sample, int] | None = None
  # Bisection: `low` fits (or is below the smallest), `high` does not.
  low, high, size = smallest - 1, math.inf, max(guess, smallest)
  while True:
    sample = build(size)
    tokens = count(sample.prompt)
    if tokens <= limit:
      fits, low = (sample, size), size
      if limit - tokens <= limit // 100:
        return fits
    else:
      high = size
    if high - low <= 1:
      break
    wanted = size + math.trunc((limit - tokens) * size / tokens)  # a cautious step, since not all tokens are haystack
    size = int(min(max(wanted, low + 1), high - 1))
  if fits is None:
    raise ConfigError(f"the smallest prompt has {tokens} tokens; {limit} are left for it")
  return fits


_DRAWS: Mapping[str, Callable[[random.Random, Material], str]] = {
  "numbers": lambda rng, material: str(rng.randint(10**6, 10**7 - 1)),
  "words": lambda rng, material: rng.choice(material.keys),
  "uuids": lambda rng, material: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
}


def _among_sentences(rng: random.Random, words: list[str], needles: list[str]) -> str:
  sentences = split_sentences(" ".join(words))
  pieces, begin = [], 0
  for depth, needle in zip(sorted(rng.sample(DEPTHS, len(needles))), needles, strict=True):
    end = int(len(sentences) * depth / 100)
    pieces += [" ".join(sentences[begin:end]), needle]
    begin = end
  return " ".join([*pieces, " ".join(sentences[begin:])])


def _among_lines(rng: random.Random, lines: list[str], needles: list[str]) -> str:
  places = sorted(rng.sample(range(len(lines)), len(needles)), reverse=True)
  for place, needle in zip(places, needles, strict=True):
    lines.insert(place, needle)
  return "\n".join(lines)


def _depths(text: str, needles: list[str]) -> list[float]:
  """The depth of each needle, see Sample."""
  places = {needle: text.index(needle) for needle in needles}
  in_order = sorted(needles, key=places.__getitem__)
  before = dict(zip(in_order, itertools.accumulate(map(len, in_order), initial=0), strict=False))
  haystack = len(text) - sum(map(len, needles))
  return [(places[needle] - before[needle]) / haystack for needle in needles]


def _cycled(words: list[str], size: int) -> list[str]:
  return (words * -(-size // len(words)))[:size]


def _numbered(words: Sequence[str]) -> str:
  return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
