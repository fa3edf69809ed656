"""Recall: facts "topic -> value" placed in prose and asked for again; to learn from, and to test with as needles.

Everything is made of lines. A filler is one sentence; a fact is a topic, an arrow and a value of that topic; the
question is the same line without its value, so that a model which continues it answers. What a topic's values are can
be learnt; which of them it has here must be read. Whatever is generated is a pure function of the `Lines`, the
parameters, the seed and the index.
"""

import dataclasses
import functools
import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError

ARROW = " ->"
# Eight values each, so that knowing a topic's values but not the context is right one time in eight.
TOPICS: Mapping[str, tuple[str, ...]] = {
  "bird": ("robin", "falcon", "pelican", "raven", "finch", "magpie", "stork", "cuckoo"),
  "boat": ("canoe", "yacht", "raft", "ferry", "kayak", "barge", "sloop", "dinghy"),
  "city": ("lisbon", "oslo", "cairo", "lima", "kyoto", "dublin", "quito", "tunis"),
  "color": ("crimson", "teal", "amber", "violet", "ivory", "indigo", "maroon", "beige"),
  "dish": ("soup", "stew", "curry", "pasta", "salad", "risotto", "pancake", "paella"),
  "fabric": ("linen", "velvet", "denim", "satin", "wool", "silk", "cotton", "tweed"),
  "flower": ("tulip", "daisy", "orchid", "lily", "poppy", "lotus", "dahlia", "peony"),
  "fruit": ("mango", "papaya", "cherry", "quince", "lemon", "apricot", "peach", "plum"),
  "gem": ("ruby", "opal", "topaz", "pearl", "jade", "garnet", "emerald", "sapphire"),
  "instrument": ("cello", "flute", "harp", "banjo", "oboe", "viola", "tuba", "lute"),
  "mammal": ("otter", "badger", "hyena", "lynx", "walrus", "ferret", "bison", "zebra"),
  "metal": ("copper", "zinc", "nickel", "cobalt", "silver", "chrome", "brass", "iridium"),
  "rock": ("granite", "marble", "slate", "basalt", "gypsum", "chalk", "quartz", "flint"),
  "sport": ("tennis", "hockey", "fencing", "rowing", "judo", "rugby", "cricket", "golf"),
  "tool": ("hammer", "chisel", "wrench", "pliers", "trowel", "sickle", "spade", "shovel"),
  "tree": ("birch", "cedar", "willow", "maple", "aspen", "larch", "spruce", "beech"),
}
_VALUES = re.compile(r"\b(?:" + "|".join(value for values in TOPICS.values() for value in values) + ")", re.IGNORECASE)


def vocabulary(topics: Mapping[str, Sequence[str]] = TOPICS) -> list[str]:
  """What a tokenizer should hold as one token each for a small model: topics with their arrow, and values.

  The value then follows the one token that asks for it, and a model need not carry the topic over the arrow.
  """
  return [f" {topic}{ARROW}" for topic in topics] + [f" {value}" for values in topics.values() for value in values]


def sentences(text: str) -> list[str]:
  """The sentences of `text` that can be fillers: 15 to 120 characters of prose, without an arrow or a topic's value."""
  candidates = (" ".join(part.split()) for part in re.split(r"(?<=[.!?:])\s+|\n+", text))
  prose = (one for one in candidates if 15 <= len(one) <= 120 and one[0].isalpha())
  return [one for one in prose if ARROW not in one and not _VALUES.search(one)]


@dataclasses.dataclass(frozen=True)
class Line:
  """A piece of text and its token ids."""

  text: str
  ids: tuple[int, ...]


class Lines:
  """What recall documents and needle samples are made of.

  Args:
    tokenizer: counts the tokens.
    fillers: sentences to hide facts among; of held-out documents for a test.
    topics: and their values, to draw facts from.
  """

  def __init__(self, tokenizer: Tokenizer, fillers: Iterable[str], topics: Mapping[str, Sequence[str]] = TOPICS):
    self.tokenizer = tokenizer
    self.topics = topics
    self.fillers = [self.line(f"\n{sentence}") for sentence in fillers]
    if not self.fillers:
      raise ConfigError("recall needs at least one filler sentence")
    self.mean_filler = sum(len(filler.ids) for filler in self.fillers) / len(self.fillers)  # tokens

  @functools.cached_property
  def fingerprint(self) -> str:
    """What the fillers and topics are known by, in tokens."""
    known = hashlib.sha256(repr(sorted((topic, tuple(values)) for topic, values in self.topics.items())).encode())
    for filler in self.fillers:
      known.update(repr(filler.ids).encode())
    return known.hexdigest()[:12]

  def line(self, text: str) -> Line:
    return Line(text, tuple(self.tokenizer.encode(text)))

  def question(self, topic: str) -> Line:
    return self.line(f"\n {topic}{ARROW}")

  def answer(self, value: str) -> Line:
    return self.line(f" {value}")

  def fact(self, topic: str, value: str) -> Line:
    """A question and its answer, in the same tokens as when they come apart."""
    question, answer = self.question(topic), self.answer(value)
    return Line(question.text + answer.text, question.ids + answer.ids)

  def draw_facts(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` different topics, each with one of its values."""
    if count > len(self.topics):
      raise ConfigError(f"{count} facts need {count} topics; there are {len(self.topics)}")
    return [(topic, rng.choice(self.topics[topic])) for topic in rng.sample(list(self.topics), count)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallParameters:
  """How recall documents vary; dense ones are what a small model learns to retrieve from."""

  tokens: tuple[int, int] = (64, 128)  # a document's length is drawn from this range, and exceeded by a line at most
  facts: tuple[int, int] = (4, 12)  # of a document; fewer, down to 2, where stating them would take half of it
  filler: tuple[float, ...] = (0.0, 0.3, 0.6)  # the share of tokens that are filler is one of these


def recall_document(lines: Lines, parameters: RecallParameters, seed: int, index: int) -> str:
  """Facts among fillers: a round that states them, then rounds that repeat them in other orders, until it is full."""
  rng = random.Random(f"recall {seed} {index}")
  length = rng.randint(*parameters.tokens)
  share = rng.choice(parameters.filler)
  fewest, most = parameters.facts
  facts = [lines.fact(*fact) for fact in lines.draw_facts(rng, most)]
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
      waiting = waiting or rng.sample(facts, len(facts))
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
  needle: slice  # the tokens of that fact; its last `len(answer)` are its value


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
  drawn = lines.draw_facts(rng, facts)
  topic, value = drawn[0]
  question = lines.question(topic).ids
  needles = [lines.fact(*fact).ids for fact in drawn]
  room = length - len(question) - sum(map(len, needles))
  if room < 0:
    raise ConfigError(f"{facts} facts and a question take {length - room} tokens; they do not fit into {length}")

  haystack, ends = _haystack(lines, room, rng.randrange(len(lines.fillers)))
  depths = [depth, *(rng.random() for _ in drawn[1:])]
  places = [min(ends, key=lambda end: abs(end - wanted * room)) for wanted in depths]
  in_order = sorted(zip(places, (rng.random() for _ in drawn), needles, strict=True))  # ties in random order
  tokens: list[int] = []
  begin, asked = 0, slice(0)
  for place, _, needle in in_order:
    tokens += (*haystack[begin:place], *needle)
    begin = place
    if needle is needles[0]:
      asked = slice(len(tokens) - len(needle), len(tokens))
  tokens += (*haystack[begin:], *question)
  return NeedleSample(np.asarray(tokens, np.int32), lines.answer(value).ids, places[0] / max(room, 1), asked)


def _haystack(lines: Lines, length: int, start: int) -> tuple[list[int], list[int]]:
  """The first `length` tokens of the fillers from the one at `start` on, and where in them one begins or ends."""
  tokens: list[int] = []
  ends: list[int] = []
  while len(tokens) < length:
    filler = lines.fillers[(start + len(ends)) % len(lines.fillers)]
    ends.append(len(tokens))
    tokens += filler.ids
  return tokens[:length], [*ends, length]
