"""Made-up tasks in LongBench's format, for models too small for LongBench. They are not LongBench.

Instead of a text of LongBench, each record holds sentences of held-out documents with facts among them ("color ->
teal"; drope_jax/data/recall.py), and asks for one of the facts (" color ->"). Two of LongBench's prompts end with the
question, so that a model answers by continuing it; these two are used, with their scores: `triviaqa` (F1 of the first
line) and `trec` (which of the topic's eight values the answer names). Prompts, truncation, generation and scores are
those of the released tasks, so this exercises the whole pipeline and tests whether a fact is found far away.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drope_jax.data.recall import ARROW, Line, Lines
from drope_jax.files import replace_whole

DATASETS = ("triviaqa", "trec")
FACTS = 4  # per record


def write(folder: Path, lines: Lines, lengths: Sequence[int], samples: int, seed: int) -> None:
  """Writes a folder laid out like LongBench's release, with `samples` records per data set; existing files are kept.

  Args:
    lines: the fillers and facts that records are made of.
    lengths: approximate tokens of a context; the records take them in turn.
  """
  for dataset in DATASETS:
    path = folder / f"{dataset}.jsonl"
    if not path.exists():
      folder.mkdir(parents=True, exist_ok=True)
      made = records(dataset, lines, lengths, samples, seed)
      replace_whole(path, "".join(json.dumps(record) + "\n" for record in made))


def records(dataset: str, lines: Lines, lengths: Sequence[int], samples: int, seed: int) -> Iterator[dict[str, Any]]:
  """The records of a data set, determined by the arguments alone."""
  for index in range(samples):
    rng = random.Random(f"{dataset} {seed} {index}")
    facts = lines.draw_facts(rng, FACTS)
    topic, value = facts[0]
    text = [line.text for line in _context(lines, facts, lengths[index % len(lengths)], rng)]
    context = "".join(text).lstrip("\n")
    yield {
      "input": f" {topic}{ARROW}",
      "context": context,
      "answers": [value],
      "length": len(context.split()),
      "dataset": dataset,
      "language": "en",
      "all_classes": list(lines.topics[topic]),
      "_id": f"{dataset}-{seed}-{index}",
    }


def _context(lines: Lines, facts: Sequence[tuple[str, str]], tokens: int, rng: random.Random) -> list[Line]:
  """Consecutive fillers and, at random places among them, the facts: about `tokens` tokens in all."""
  needles = [lines.fact(*fact) for fact in facts]
  found: list[Line] = []
  number, room = rng.randrange(len(lines.fillers)), tokens - sum(len(needle.ids) for needle in needles)
  while room > 0:
    found.append(lines.fillers[number % len(lines.fillers)])
    room -= len(found[-1].ids)
    number += 1
  for needle in needles:
    found.insert(rng.randint(0, len(found)), needle)
  return found
