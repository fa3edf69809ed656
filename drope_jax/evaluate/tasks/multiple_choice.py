"""Multiple choice by log-likelihood: ARC, HellaSwag, OpenBookQA, PIQA, WinoGrande (the paper's table 5).

The data are the released files, with these names in one folder: `arc_easy.jsonl`, `arc_challenge.jsonl`,
`openbookqa.jsonl`, `hellaswag.jsonl`, `winogrande.jsonl`, `piqa.jsonl` with its labels in `piqa-labels.lst`. ARC and
OpenBookQA may be AI2's release (`question.stem`) or the hub's (`question` or `question_stem`, `choices.text`). Prompts
and scoring are those of lm-evaluation-harness 0.4.13, zero-shot.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import ACCURACY, Figure, mean_figure
from drope_jax.evaluate.likelihood import score_continuations
from drope_jax.evaluate.local_files import read_jsonl
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task


class Question(NamedTuple):
  """A pair of prompt and continuation per choice, the index of the right one, and the length of each in characters."""

  pairs: tuple[tuple[str, str], ...]
  right: int
  characters: tuple[int, ...]


def same_prompt(prompt: str, choices: list[str], right: int) -> Question:
  """A question whose choices follow the same prompt after a space."""
  return Question(tuple((prompt, f" {choice}") for choice in choices), right, tuple(map(len, choices)))


def _lettered(record: Mapping[str, Any]) -> tuple[str, list[str], int]:
  """The question, the choices and the right one of a record of ARC or OpenBookQA."""
  question = record.get("question_stem", record.get("question"))
  choices: Any = record.get("choices")
  if isinstance(question, Mapping):  # AI2's release
    question, choices = question["stem"], question["choices"]
  if isinstance(choices, Mapping):  # the hub's
    texts, labels = choices["text"], choices["label"]
  else:
    texts, labels = [one["text"] for one in choices], [one["label"] for one in choices]
  return question, list(texts), list(labels).index(record["answerKey"].strip())


def _arc(record: Mapping[str, Any]) -> Question:
  question, choices, right = _lettered(record)
  return same_prompt(f"Question: {question}\nAnswer:", choices, right)


def _openbookqa(record: Mapping[str, Any]) -> Question:
  return same_prompt(*_lettered(record))


def _hellaswag(record: Mapping[str, Any]) -> Question:
  def clean(text: str) -> str:
    """Removes remains of WikiHow's markup."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

  prompt = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
  return same_prompt(clean(prompt), [clean(ending) for ending in record["endings"]], int(record["label"]))


def _piqa(record: Mapping[str, Any]) -> Question:
  return same_prompt(f"Question: {record['goal']}\nAnswer:", [record["sol1"], record["sol2"]], int(record["label"]))


def _winogrande(record: Mapping[str, Any]) -> Question:
  before, after = record["sentence"].split("_", 1)
  end = f" {after.strip()}"
  options = (record["option1"], record["option2"])
  return Question(tuple((before + option, end) for option in options), int(record["answer"]) - 1, (len(end), len(end)))


READERS: Mapping[str, Callable[[Mapping[str, Any]], Question]] = {
  "arc_easy": _arc,
  "arc_challenge": _arc,
  "hellaswag": _hellaswag,
  "openbookqa": _openbookqa,
  "piqa": _piqa,
  "winogrande": _winogrande,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
  """The task of one data set: the share of questions whose right choice is the most likely.

  "accuracy" compares log-likelihoods, "accuracy_norm" log-likelihoods per character.
  """

  name: str  # of READERS
  folder: Path
  limit: int | None = None
  bounded: ClassVar[bool] = False

  @classmethod
  def names(cls) -> tuple[str, ...]:
    return tuple(READERS)

  @classmethod
  def groups(cls) -> Mapping[str, tuple[str, ...]]:
    return {"multiple_choice": cls.names()}

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    if data.multiple_choice is None:
      raise ConfigError(f"task {name!r} needs the folder of its released file (--multiple_choice)")
    return cls(name=name, folder=data.multiple_choice, limit=data.limit)

  @functools.cached_property
  def questions(self) -> list[Question]:
    """The questions. Raises ConfigError naming the file, and a record that is not as released."""
    path = self.folder / f"{self.name}.jsonl"
    records = read_jsonl(path, (), self.limit)
    if self.name == "piqa" and "label" not in records[0]:
      records = [{**record, "label": label} for record, label in zip(records, self._labels(len(records)), strict=True)]
    questions = []
    for number, record in enumerate(records, start=1):
      try:
        questions.append(READERS[self.name](record))
      except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: record {number} is not one of {self.name} ({error!r})") from error
    return questions

  def settings(self, length: int) -> dict[str, Any]:
    return {"samples": len(self.questions), "text": fingerprint(repr(question) for question in self.questions)}

  def check(self, length: int, crop: int | None) -> None:
    _ = self.questions  # read now, so that a bad file is named before anything is measured

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    pairs = [encode_pair(subject, *pair) for question in self.questions for pair in question.pairs]
    scored = iter(score_continuations(subject, pairs))
    raw, normalised = [], []
    for question in self.questions:
      log_probs = np.array([next(scored).log_prob for _ in question.pairs])
      raw.append(log_probs.argmax() == question.right)
      normalised.append((log_probs / np.array(question.characters)).argmax() == question.right)
    return [mean_figure(ACCURACY, raw), mean_figure("accuracy_norm", normalised)]

  def _labels(self, count: int) -> list[str]:
    path = self.folder / "piqa-labels.lst"
    try:
      labels = path.read_text().split()[: count if self.limit else None]
    except OSError as error:
      raise ConfigError(f"{path}: cannot be read ({error}); piqa's labels are a file of their own") from error
    if len(labels) != count:
      raise ConfigError(f"{path}: {len(labels)} labels for {count} questions")
    return labels


def encode_pair(subject: Subject, prompt: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
  """The token ids of both, tokenised as one text; spaces between them belong to the continuation."""
  blanks = len(prompt) - len(prompt.rstrip())
  if blanks:
    prompt, continuation = prompt[:-blanks], prompt[-blanks:] + continuation
  whole, size = subject.encode(prompt + continuation), len(subject.encode(prompt))
  return whole[:size], whole[size:]
