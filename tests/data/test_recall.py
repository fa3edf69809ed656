"""Recall documents and needles: what is in them, how long they are, and that they are reproducible."""

import collections
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drope_jax.data.recall import (
  TOPICS,
  Lines,
  RecallParameters,
  needle_sample,
  recall_document,
  sentences,
  vocabulary,
)
from drope_jax.data.tokenizers import ByteTokenizer, train_bpe
from drope_jax.errors import ConfigError

FILLERS = [f"Sentence number {i} says nothing that matters here." for i in range(50)]
FACT = re.compile(r"\n (\w+) -> (\w+)")


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
  return Lines(train_bpe(FILLERS, 500, tmp_path_factory.mktemp("bpe"), whole=vocabulary()), FILLERS)


def test_values_belong_to_one_topic():
  values = [value for topic in TOPICS.values() for value in topic]
  assert len(set(values)) == len(values)
  assert {len(topic) for topic in TOPICS.values()} == {8}  # the chance of a guess that the docstring and report state


def test_a_question_and_an_answer_end_in_one_token_each(lines):
  for topic, values in TOPICS.items():
    assert lines.tokenizer.decode(lines.question(topic).ids[-1:]) == f" {topic} ->"
    for value in values:
      assert len(lines.answer(value).ids) == 1
      fact = lines.fact(topic, value)
      assert fact.ids == tuple(lines.tokenizer.encode(fact.text))


def test_sentences():
  text = "A first sentence, over two\tlines. Short.\n\n>>> print('this is code')\n"
  text += "A map f -> g is no prose. A Robin redbreast is a value.\nIt ends: without a full stop"
  assert sentences(text) == ["A first sentence, over two lines.", "without a full stop"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 10**6))
def test_recall_documents_are_consistent_dense_and_of_the_length_asked_for(lines, seed, index):
  parameters = RecallParameters(tokens=(80, 160), facts=(3, 6))
  document = recall_document(lines, parameters, seed, index)
  assert document == recall_document(lines, parameters, seed, index)
  facts = FACT.findall(document)
  pairs = dict(facts)
  assert len(set(facts)) == len(pairs)  # a topic has one value
  assert all(value in TOPICS[topic] for topic, value in pairs.items())
  assert len(pairs) <= 6
  assert all(line in FILLERS or FACT.fullmatch(f"\n{line}") for line in document.split("\n")[1:])
  longest = max(len(line.ids) for line in lines.fillers)
  assert 80 <= len(lines.tokenizer.encode(document)) < 160 + longest


def test_recall_documents_vary_and_most_ask_again(lines):
  parameters = RecallParameters(tokens=(100, 200))
  documents = [recall_document(lines, parameters, 0, index) for index in range(200)]
  assert len(set(documents)) == 200
  repeats = [sum(collections.Counter(FACT.findall(document)).values()) for document in documents]
  distinct = [len(set(FACT.findall(document))) for document in documents]
  assert np.sum(repeats) > 2 * np.sum(distinct)
  without_filler = [document for document in documents if "Sentence" not in document]
  assert 40 < len(without_filler) < 90  # a third


@settings(max_examples=60, deadline=None)
@given(
  length=st.integers(80, 700), depth=st.floats(0, 1), index=st.integers(0, 1000), facts=st.integers(1, 6)
)  # fmt: skip
@example(length=162, depth=0.75, index=28, facts=4)  # lies midway between two ends of fillers
def test_needles(lines, length, depth, index, facts):
  sample = needle_sample(lines, length, depth, seed=0, index=index, facts=facts)
  again = needle_sample(lines, length, depth, seed=0, index=index, facts=facts)
  assert np.array_equal(sample.tokens, again.tokens) and (sample.answer, sample.depth) == (again.answer, again.depth)
  assert sample.tokens.shape == (length,) and sample.tokens.dtype == np.int32

  text, answer = lines.tokenizer.decode(sample.tokens), lines.tokenizer.decode(sample.answer)
  haystack, question = text.rsplit("\n", 1)
  assert re.fullmatch(r" \w+ ->", question)
  assert haystack.count(f"\n{question}{answer}") == 1
  pairs = FACT.findall(haystack + "\n")
  assert len(pairs) == len(dict(pairs)) == facts
  assert text.count(answer) == 1  # no filler gives it away

  # The needle lies where it was asked to, to half a filler, and that is the depth reported.
  before = lines.tokenizer.encode(FACT.sub("", haystack[: haystack.index(f"\n{question}{answer}")]))
  prose = length - sum(len(lines.fact(*pair).ids) for pair in pairs) - len(lines.tokenizer.encode(f"\n{question}"))
  assert sample.depth == pytest.approx(len(before) / prose)
  from_wanted = round(abs(sample.depth - depth) * prose, 6)  # tokens; exactly half a filler may come out a bit above
  assert from_wanted <= max(len(line.ids) for line in lines.fillers) / 2


def test_needles_lie_between_sentences(lines):
  for index in range(20):
    text = lines.tokenizer.decode(needle_sample(lines, 300, 0.5, seed=1, index=index).tokens)
    others = [row for row in text.split("\n")[1:-1] if row not in FILLERS and not FACT.fullmatch(f"\n{row}")]
    assert len(others) <= 1  # the last filler may be cut
    assert all(any(filler.startswith(row) for filler in FILLERS) for row in others)


def test_depth_zero_and_one_are_the_ends(lines):
  first = lines.tokenizer.decode(needle_sample(lines, 200, 0.0, seed=0, index=0, facts=1).tokens)
  last = lines.tokenizer.decode(needle_sample(lines, 200, 1.0, seed=0, index=0, facts=1).tokens)
  assert FACT.match(first)
  assert FACT.fullmatch("\n" + last.split("\n")[-2])


def test_topics_can_be_ones_own_and_need_not_be_single_tokens():
  lines = Lines(ByteTokenizer(), FILLERS, {"one": ["two"], "three": ["four", "five"]})
  sample = needle_sample(lines, 200, 0.5, seed=0, index=0, facts=2)
  assert ByteTokenizer().decode(sample.answer).strip() in {"two", "four", "five"}


def test_errors_are_one_line(lines):
  with pytest.raises(ConfigError, match="do not fit into 19"):
    needle_sample(lines, 19, 0.5, seed=0, index=0)
  with pytest.raises(ConfigError, match="17 facts need 17 topics; there are 16"):
    needle_sample(lines, 500, 0.5, seed=0, index=0, facts=17)
  with pytest.raises(ConfigError, match="at least one filler"):
    Lines(ByteTokenizer(), [])
