"""LongBench: the English and the code tasks, from a folder with the released files (`DIR/musique.jsonl`, ...).

This follows Bai et al. (arXiv 2308.14508) and THUDM/LongBench at 2e00731 for prompts (config/dataset2prompt.json),
numbers of generated tokens (dataset2maxlen.json), scores (eval.py), and truncation in the middle (pred.py). The
differences are:

- Prompts are used without a chat template, and truncated as tokens and not as text.
- For samsum the original forbids an empty first line; here it is skipped, as in its score.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.evaluate.answers import complete
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import Figure, figures_by, mean_figure
from drope_jax.evaluate.local_files import read_jsonl
from drope_jax.evaluate.samples import fingerprint
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.task import Task, check_room
from drope_jax.evaluate.text_scores import classification, counting, edit_similarity, f1, retrieval, rouge_l

FIRST_LINE = ("trec", "triviaqa", "samsum")  # data sets for which only the first line of an answer counts
WORDS = ((0, 4000), (4000, 8000), (8000, None))  # LongBench-E's buckets of context length, in words as in the files

_PASSAGES = (
  "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
  "The following are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the "
  "answer and do not output any other words.\n\nQuestion: {input}\nAnswer:"
)
_ARTICLE = (
  "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on "
  'the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", "no", or '
  '"unanswerable". Do not provide any explanation.\n\n'
)
_STORY = (  # "asconcisely" is theirs
  "asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
)


class Definition(NamedTuple):
  """A data set's prompt, score, and number of generated tokens."""

  prompt: str
  score: Callable[..., float]
  max_new_tokens: int


DATASETS: Mapping[str, Definition] = {
  "narrativeqa": Definition(
    "You are given a story, which can be either a novel or a movie script, and a question. Answer the question "
    + _STORY
    + "Story: {context}\n\nNow, answer the question based on the story "
    + _STORY
    + "Question: {input}\n\nAnswer:",
    f1,
    128,
  ),
  "qasper": Definition(
    "You are given a scientific article and a question. Answer the question "
    + _ARTICLE
    + "Article: {context}\n\n Answer the question based on the above article "
    + _ARTICLE
    + "Question: {input}\n\nAnswer:",
    f1,
    128,
  ),
  "multifieldqa_en": Definition(
    "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question based on the above "
    "text, only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:",
    f1,
    64,
  ),
  "hotpotqa": Definition(_PASSAGES, f1, 32),
  "2wikimqa": Definition(_PASSAGES, f1, 32),
  "musique": Definition(_PASSAGES, f1, 32),
  "gov_report": Definition(
    "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n{context}\n\n"
    "Now, write a one-page summary of the report.\n\nSummary:",
    rouge_l,
    512,
  ),
  "qmsum": Definition(
    "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or "
    "more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript in one "
    "or more sentences.\n\nQuery: {input}\nAnswer:",
    rouge_l,
    512,
  ),
  "multi_news": Definition(
    "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\nNow, write a "
    "one-page summary of all the news.\n\nSummary:",
    rouge_l,
    512,
  ),
  "trec": Definition(
    "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
    classification,
    64,
  ),
  "triviaqa": Definition(
    "Answer the question based on the given passage. Only give me the answer and do not output any other words. The "
    "following are some examples.\n\n{context}\n\n{input}",
    f1,
    32,
  ),
  "samsum": Definition(
    "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
    rouge_l,
    128,
  ),
  "passage_count": Definition(
    "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
    "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other words, "
    "how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count of unique "
    "paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, 3, and so "
    "on.\n\nThe "
    "final answer is: ",
    counting,
    32,
  ),
  "passage_retrieval_en": Definition(
    "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is "
    "from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that "
    'the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
    retrieval,
    32,
  ),
  "lcc": Definition("Please complete the code given below. \n{context}Next line of code:\n", edit_similarity, 64),
  "repobench-p": Definition(
    "Please complete the code given below. \n{context}{input}Next line of code:\n", edit_similarity, 64
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongBench(Task):
  """The task of one data set.

  Args:
    dataset: a key of DATASETS.
    folder: contains `DATASET.jsonl`, or LongBench-E's `DATASET_e.jsonl`.
    limit: number of samples, from the start; None: all.
    whole: whether prompts are never truncated; the measured length then only affects the method.
  """

  dataset: str
  folder: Path
  limit: int | None = None
  whole: bool = False

  @property
  def name(self) -> str:  # type: ignore[override]
    """Such as "longbench_lcc", or "longbench_lcc_whole"."""
    return f"longbench_{self.dataset}" + ("_whole" if self.whole else "")

  @property
  def bounded(self) -> bool:  # type: ignore[override]
    """Whether long prompts are truncated."""
    return not self.whole

  @classmethod
  def names(cls) -> tuple[str, ...]:
    return tuple(name for group in cls.groups().values() for name in group)

  @classmethod
  def groups(cls) -> Mapping[str, tuple[str, ...]]:
    cut = tuple(f"longbench_{dataset}" for dataset in DATASETS)
    return {"longbench": cut, "longbench_whole": tuple(f"{name}_whole" for name in cut)}

  @classmethod
  def make(cls, name: str, data: EvalData) -> Self:
    if data.longbench is None:
      raise ConfigError(f"task {name!r} needs the folder of LongBench's released files (--longbench)")
    dataset = name.removeprefix("longbench_")
    whole = dataset.endswith("_whole")
    return cls(dataset=dataset.removesuffix("_whole"), folder=data.longbench, limit=data.limit, whole=whole)

  @functools.cached_property
  def records(self) -> list[dict[str, Any]]:
    """The released records. Raises ConfigError naming the file, and the record whose references cannot be scored."""
    path = self.folder / f"{self.dataset}.jsonl"
    if not path.exists() and (self.folder / f"{self.dataset}_e.jsonl").exists():
      path = self.folder / f"{self.dataset}_e.jsonl"
    records = read_jsonl(path, ("input", "context", "answers", "length", "all_classes"), self.limit)
    for number, record in enumerate(records, start=1):
      try:
        score(self.dataset, "", record)
      except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: record {number} is not one of {self.dataset} ({error})") from error
    return records

  def settings(self, length: int) -> dict[str, Any]:
    return {"samples": len(self.records), "text": fingerprint(json.dumps(record) for record in self.records)}

  def check(self, length: int, crop: int | None) -> None:
    check_room(self.name, length, crop, DATASETS[self.dataset].max_new_tokens + 1)
    _ = self.records  # read now, so that a bad file is named before anything is measured

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    definition = DATASETS[self.dataset]
    prompts = [subject.encode(definition.prompt.format(**record)) for record in self.records]
    room = length - definition.max_new_tokens
    shown = prompts if self.whole else [cut_middle(prompt, room) for prompt in prompts]
    answers = complete(subject, shown, definition.max_new_tokens)
    scores_N = np.array([score(self.dataset, *pair) for pair in zip(answers, self.records, strict=True)])
    tokens_N = np.array([len(prompt) for prompt in prompts])
    words_N = np.array([record["length"] for record in self.records])
    figures = [mean_figure("score", scores_N)]
    figures += _by_size("words", WORDS, words_N, scores_N)
    buckets = token_buckets(subject.train_context, int(tokens_N.max()))
    return figures + _by_size("tokens", buckets, tokens_N, scores_N)


def score(dataset: str, answer: str, record: Mapping[str, Any]) -> float:
  """The score of an answer, 0 to 1: the maximum over all references."""
  if dataset in FIRST_LINE:
    answer = answer.lstrip("\n").split("\n")[0]
  function = DATASETS[dataset].score
  if function is classification:
    return max((classification(answer, true, record["all_classes"]) for true in record["answers"]), default=0.0)
  return max((function(answer, true) for true in record["answers"]), default=0.0)


def cut_middle(tokens: np.ndarray, limit: int) -> np.ndarray:
  """Truncates to at most `limit` tokens by keeping `limit` // 2 tokens from each end."""
  half = limit // 2
  return tokens if len(tokens) <= limit else np.concatenate([tokens[:half], tokens[len(tokens) - half :]])


def token_buckets(train_context: int, longest: int) -> list[tuple[int, int]]:
  """Buckets of 0 to 2, 2 to 4, 4 to 8 ... times the training context, as in the paper's tables 8 and 9."""
  buckets = [(0, 2 * train_context)]
  while buckets[-1][1] <= longest:
    buckets.append((buckets[-1][1], 2 * buckets[-1][1]))
  return buckets


def _by_size(
  by: str, buckets: Sequence[tuple[int, int | None]], sizes_N: np.ndarray, scores_N: np.ndarray
) -> list[Figure]:
  """The mean score of the prompts in each bucket of size."""
  inside = [(sizes_N >= start) & (sizes_N < (np.inf if stop is None else stop)) for start, stop in buckets]
  return figures_by("score", by, [(bucket, scores_N[part_N]) for bucket, part_N in zip(buckets, inside, strict=True)])
