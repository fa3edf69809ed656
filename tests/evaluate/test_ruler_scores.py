"""RULER under models whose score is known."""

import re
from collections import Counter

import pytest
from support.ruler import ESSAY, PUBLISHED
from support.stub_model import put, reader

from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.evaluate.answers import complete
from drope_jax.evaluate.ruler_prompts import Material
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.tasks.ruler import Ruler, found_references


def needles_read(text: str) -> str:
  """What a perfect reader still has to say: every value of the keys that are asked for last."""
  found = list(re.finditer(r"The special magic \w+ for (.+?) mentioned in the provided text (?:is|are)", text))
  if not found:  # a row that only fills the batch up
    return ""
  question = found[-1]
  keys = re.split(r", and |, ", question[1])
  needle = r"One of the special magic \w+ for {} is: (\S+)\."
  wanted = " " + ", ".join(value for key in keys for value in re.findall(needle.format(re.escape(key)), text)) + "."
  said = text[question.end() :]
  return wanted[len(said) :] if wanted.startswith(said) else ""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_perfect_reader_scores_one(material, monkeypatch, name):
  subject = put(monkeypatch, reader(needles_read, material.tokenizer), material.tokenizer)
  figures = Ruler(name=name, material=material, num_samples=4).measure(subject, 900)
  assert {figure.value for figure in figures} == {1.0}
  assert [figure.metric for figure in figures[:2]] == ["string_match_all", "all_or_nothing"]
  assert all(figure.by == "depth" for figure in figures[2:]) and len(figures) > 2


def variables_read(text: str) -> str:
  asked, _, said = text.rpartition("they are: ")
  lines = asked.rpartition("Memorize and track")[2]
  value = re.search(r"assigned the value (\d+) in", lines)
  chain, held = [], {value[1] if value else ""}
  for name, source in re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", lines):
    if source in held:
      held.add(name)
      chain.append(name)
  return " ".join(chain)[len(said) :]


def common_words_read(text: str) -> str:
  asked, _, said = text.rpartition("in the list are:")
  words = re.findall(r"\d+\. (\S+)", asked.rpartition("Below is a numbered list")[2])
  return (" " + " ".join(word for word, _ in Counter(words).most_common(10)))[len(said) :]


def frequent_words_read(text: str) -> str:
  asked, _, said = text.rpartition("appeared words are:")
  words = asked.partition("coded words. ")[2].partition("\nQuestion")[0].split()
  most = [word for word, _ in Counter(words).most_common(4) if word != "..."]
  return (" " + " ".join(most))[len(said) :]


@pytest.mark.parametrize(
  ("name", "read"), [("vt", variables_read), ("cwe", common_words_read), ("fwe", frequent_words_read)]
)
def test_a_perfect_reader_scores_one_where_there_are_no_needles(material, monkeypatch, name, read):
  subject = put(monkeypatch, reader(read, material.tokenizer), material.tokenizer)
  figures = Ruler(name=name, material=material, num_samples=3).measure(subject, 1500)
  assert [(figure.metric, figure.value) for figure in figures] == [("string_match_all", 1.0), ("all_or_nothing", 1.0)]


def answered(task: Ruler, subject: Subject, length: int) -> list[bool]:
  """Which samples are answered in full."""
  samples = task.samples(length)
  answers = complete(subject, [subject.encode(sample.prompt) for sample in samples], task.puzzle.max_new_tokens)
  return [all(found_references(answer, s.references)) for answer, s in zip(answers, samples, strict=True)]


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_1"])
def test_one_that_sees_the_last_tokens_fails_exactly_on_needles_outside(monkeypatch, name):
  tokenizer, reach, length = ByteTokenizer(), 900, 1800
  task = Ruler(name=name, material=Material(tokenizer, ESSAY), num_samples=16)
  samples = task.samples(length)
  # From the begin of the needle that is asked for to the end of the prompt; a value is a blank and seven digits, and
  # when it says the last one, the others stand between the prompt's end and where it is.
  far = [len(s.prompt) - s.prompt.rindex("One of the special", 0, s.prompt.index(s.references[0])) for s in samples]
  within = [distance + 7 <= reach for distance in far]
  assert 0 < sum(within) < len(within)
  subject = put(monkeypatch, reader(needles_read, tokenizer, reach), tokenizer)
  assert answered(task, subject, length) == within
  assert task.measure(subject, length)[1].value == sum(within) / len(within)
  cropped = put(monkeypatch, reader(needles_read, tokenizer), tokenizer, crop=reach)
  assert answered(task, cropped, length) == [distance <= reach - 128 for distance in far]


def test_one_that_says_one_value_of_four_has_a_quarter_of_the_score_and_none_of_all_or_nothing(material, monkeypatch):
  def first_only(text):
    rest = needles_read(text)
    return rest.split(",")[0] if "," in rest else ""

  subject = put(monkeypatch, reader(first_only, material.tokenizer), material.tokenizer)
  figures = Ruler(name="niah_multivalue", material=material, num_samples=4).measure(subject, 700)
  assert [figure.value for figure in figures[:2]] == [0.25, 0.0]


def test_needles_of_one_prompt_are_one_sample_of_their_depth(material, monkeypatch):
  subject = put(monkeypatch, reader(needles_read, material.tokenizer), material.tokenizer)
  task = Ruler(name="niah_multivalue", material=material, num_samples=4)
  figures = task.measure(subject, 700)[2:]
  needles = [len(sample.depths) for sample in task.samples(700)]
  assert sum(needles) == 16 and all(figure.n <= 4 for figure in figures)


def test_one_that_says_random_numbers_finds_nothing(material, monkeypatch):
  subject = put(monkeypatch, reader(lambda text: " 5", material.tokenizer), material.tokenizer)
  figures = Ruler(name="niah_single_2", material=material, num_samples=4).measure(subject, 700)
  assert figures[0].value == 0.0
