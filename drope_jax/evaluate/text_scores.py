"""Scores of an answer against a reference, 0 to 1, as LongBench computes them (THUDM/LongBench at 2e00731, metrics.py).

| function       | there                                                                                   |
|----------------|-----------------------------------------------------------------------------------------|
| f1             | `qa_f1_score`: words in common, without case, punctuation and articles                  |
| rouge_l        | `rouge_score`: the F value that the package `rouge` 1.0.1 reports as rouge-l            |
| classification | `classification_score`                                                                  |
| counting       | `count_score`: which share of the numbers said is the right one                         |
| retrieval      | `retrieval_score`: the same for the number of a paragraph                               |
| edit_similarity| `code_sim_score`: the first line of code, by `fuzzywuzzy.fuzz.ratio` over `difflib`     |
"""

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"\d+")


def f1(answer: str, reference: str) -> float:
  """F1 of the bags of words of answer and reference."""
  said, true = (_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split() for text in (answer, reference))
  common = sum((Counter(said) & Counter(true)).values())
  if not common:
    return 0.0
  precision, recall = common / len(said), common / len(true)
  return 2 * precision * recall / (precision + recall)


def rouge_l(answer: str, reference: str) -> float:
  """ROUGE-L of summaries, on sets: the distinct words in longest common subsequences of any two sentences.

  A text without a sentence scores 0, as in the original.
  """
  said, true = ([" ".join(part.split()).split(" ") for part in text.split(".") if part] for text in (answer, reference))
  if not said or not true:
    return 0.0
  common = {word for sentence in true for other in said for word in _common_subsequence(sentence, other)}
  precision = len(common) / len({word for sentence in said for word in sentence})
  recall = len(common) / len({word for sentence in true for word in sentence})
  return 2 * precision * recall / (precision + recall + 1e-8)


def classification(answer: str, reference: str, classes: Sequence[str]) -> float:
  """1 over the number of classes that the answer names, if the right one is among them; else 0.

  A class whose name is a part of the right one's does not count, except directly after another such class: the original
  removes names from the list while iterating over it, and so skips some.
  """
  named = [name for name in classes if name in answer]
  place = 0
  while place < len(named):
    if named[place] in reference and named[place] != reference:
      named.remove(named[place])
    place += 1
  return 1 / len(named) if reference in named else 0.0


def counting(answer: str, reference: str) -> float:
  """The share of the numbers in the answer that are `reference`."""
  numbers = _NUMBER.findall(answer)
  return numbers.count(reference) / len(numbers) if numbers else 0.0


def retrieval(answer: str, reference: str) -> float:
  """The share of the numbers in the answer that are that of `reference`, such as "Paragraph 3".

  Raises:
    ValueError: if the reference names no paragraph.
  """
  paragraph = re.search(r"Paragraph (\d+)", reference)
  if paragraph is None:
    raise ValueError(f"the reference {reference!r} names no paragraph")
  return counting(answer, paragraph[1])


def edit_similarity(answer: str, reference: str) -> float:
  """The similarity, to two digits, of the reference and the answer's first line that is not a comment or fence."""
  lines = (line for line in answer.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//")))
  line = next(lines, "")
  if line == reference:
    return 1.0
  if not line or not reference:
    return 0.0
  return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


def _common_subsequence(reference: Sequence[str], other: Sequence[str]) -> list[str]:
  """A longest common subsequence; of several, the one found by backtracking in `other` first."""
  rows = [[0] * (len(other) + 1)]
  for word in reference:
    above, row = rows[-1], [0]
    for column, there in enumerate(other):
      row.append(above[column] + 1 if word == there else max(above[column + 1], row[column]))
    rows.append(row)
  found: list[str] = []
  i, j = len(reference), len(other)
  while i and j:
    if reference[i - 1] == other[j - 1]:
      found.append(reference[i - 1])
      i, j = i - 1, j - 1
    elif rows[i - 1][j] > rows[i][j - 1]:
      i -= 1
    else:
      j -= 1
  return found[::-1]
