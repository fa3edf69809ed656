"""Recall: facts "topic -> value" hidden in prose and asked for later, as training documents and as needle tests.

Texts consist of lines. A filler is one sentence; a fact is a topic, an arrow and a value of that topic; the question is
the same line without its value, so that a model answers by continuing it. The possible values of a topic can be learnt,
but its value in a given text must be read there. Everything is a pure function of the `Lines`, the parameters, the seed
and the index.
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
# Eight values each, so that guessing among a topic's values is right one time in eight.
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
  """The strings that should be single tokens for a small model: topics with their arrow, and values.

  The value then directly follows the token that asks for it, and a model need not carry the topic over the arrow.
  """
  return [f" {topic}{ARROW}" for topic in topics] + [f" {value}" for values in topics.values() for value in values]


def sentences(text: str) -> list[str]:
  """The sentences of `text` that can be fillers: 15 to 120 characters of prose, without arrows or values of topics."""
  candidates = (" ".join(part.split()) for part in re.split(r"(?<=[.!?:])\s+|\n+", text))
  prose = (one for one in candidates if 15 <= len(one) <= 120 and one[0].isalpha())
  return [one for one in prose if ARROW not in one and not _VALUES.search(one)]


@dataclasses.dataclass(frozen=True)
class Line:
  """A piece of text and its token ids."""

  text: str
  ids: tuple[int, ...]


class Lines:
  """The material of recall documents and needle samples.

  Args:
    tokenizer: counts the tokens.
    fillers: sentences to hide facts among; for a test, from held-out documents.
    topics: topics with their values, from which facts are drawn.
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
    """Identifies the fillers (as tokens) and topics by content."""
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
    """A question and its answer, with the same tokens as when they are separate."""
    question, answer = self.question(topic), self.answer(value)
    return Line(question.text + answer.text, question.ids + answer.ids)

  def draw_facts(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` different topics, each with one of its values."""
    if count > len(self.topics):
      raise ConfigError(f"{count} facts need {count} topics; there are {len(self.topics)}")
    return [(topic, rng.choice(self.topics[topic])) for topic in rng.sample(list(self.topics), count)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallParameters:
  """The variation of recall documents; small models learn to retrieve from dense ones."""

  tokens: tuple[int, int] = (64, 128)  # range of a document's length, which is exceeded by one line at most
  facts: tuple[int, int] = (4, 12)  # range of the number of facts; fewer, at least 2, if they would fill half of it
  filler: tuple[float, ...] = (0.0, 0.3, 0.6)  # choices for the share of tokens that are filler


def recall_document(lines: Lines, parameters: RecallParameters, seed: int, index: int) -> str:
  """Facts among fillers: one round states them, further rounds repeat them in other orders, up to the length."""
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
  depth: float  # position of the queried fact in the haystack: 0 before it, 1 after it
  needle: slice  # the tokens of that fact; the last `len(answer)` are its value


def needle_sample(lines: Lines, length: int, depth: float, seed: int, index: int, facts: int = 6) -> NeedleSample:
  """A haystack of consecutive fillers with facts between them, and the question for one of the facts.

  Args:
    lines: their fillers are the haystack, repeated if necessary.
    length: exact length of the prompt in tokens; the haystack's last filler is cut to fit.
    depth: where to put the queried fact, 0 to 1; it moves to the nearest end of a filler.
    seed: of the whole set of samples.
    index: of this sample in the set.
    facts: number of hidden facts; those not queried are at random depths.

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
  """The first `length` tokens of the fillers from index `start` on, and where fillers begin or end in them."""
  tokens: list[int] = []
  ends: list[int] = []
  while len(tokens) < length:
    filler = lines.fillers[(start + len(ends)) % len(lines.fillers)]
    ends.append(len(tokens))
    tokens += filler.ids
  return tokens[:length], [*ends, length]
