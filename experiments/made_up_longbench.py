"""Made-up tasks in LongBench's format, for models too small for LongBench. They are not LongBench.

Each record is one of drope_jax/data/recall.py in the place of a text of LongBench: sentences of held-out documents with
facts among them ("color -> teal"), one of which is asked for (" color ->"). Two of LongBench's prompts end with what is
asked, so that a model which continues it answers; they are used with their scores: `triviaqa` (F1 of the first line)
and `trec` (which of the eight values of the topic it names). The prompts around them, their truncation, generation and
scores are those of the released tasks: what is tried is the whole path, and whether a fact is found far away.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drope_jax.data.recall import ARROW, Line, Lines
from drope_jax.files import replace_whole

DATASETS = ("triviaqa", "trec")
FACTS = 4  # of a record


def write(folder: Path, lines: Lines, lengths: Sequence[int], samples: int, seed: int) -> None:
  """Makes `folder` a folder as LongBench is released, with so many records of each data set; made once.

  Args:
    lines: whose fillers and facts the records are made of.
    lengths: tokens of a context, about; each is that of as many records as the others.
  """
  for dataset in DATASETS:
    path = folder / f"{dataset}.jsonl"
    if not path.exists():
      folder.mkdir(parents=True, exist_ok=True)
      made = records(dataset, lines, lengths, samples, seed)
      replace_whole(path, "".join(json.dumps(record) + "\n" for record in made))


def records(dataset: str, lines: Lines, lengths: Sequence[int], samples: int, seed: int) -> Iterator[dict[str, Any]]:
  """Records of a data set: a pure function of the arguments."""
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
  """Consecutive fillers of about so many tokens, and the facts among them at random places."""
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
