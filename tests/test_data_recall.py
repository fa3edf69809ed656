"""Recall documents and needles: what is in them, how long they are, and that they are reproducible."""

import collections
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drope_jax.config import ConfigError
from drope_jax.data.recall import (
  Lines,
  RecallParameters,
  needle_sample,
  recall_document,
  sentences,
  single_token_words,
)
from drope_jax.data.tokenizers import ByteTokenizer, train_bpe

WORDS = [left + right for left in ("value", "array", "shape", "index") for right in "abcdefgh"]
FILLERS = [f"Sentence number {i} says nothing that matters here." for i in range(50)]
FACT = re.compile(r"\n (\w+) -> (\w+)")


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
  texts = [f" {word} {word}" for word in WORDS for _ in range(20)]
  return Lines(train_bpe([*texts, *FILLERS], 600, tmp_path_factory.mktemp("bpe")), WORDS, FILLERS)


def test_single_token_words(tmp_path):
  texts = ["the frequent frequent word and the frequency of some rarest word " * 30, "rarest of words"]
  tokenizer = train_bpe(texts, 320, tmp_path)
  assert single_token_words(tokenizer, texts, minimum_count=31) == ("frequent", "word")
  assert single_token_words(ByteTokenizer(), texts) == ()


def test_sentences():
  text = "A first sentence, over two\tlines. Short.\n\n>>> print('this is code')\n"
  text += "A map f -> g is no prose.\nIt ends: without a full stop"
  assert sentences(text) == ["A first sentence, over two lines.", "without a full stop"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 10**6))
def test_recall_documents_are_consistent_dense_and_of_the_length_asked_for(lines, seed, index):
  parameters = RecallParameters(tokens=(80, 160), pairs=(3, 6))
  document = recall_document(lines, parameters, seed, index)
  assert document == recall_document(lines, parameters, seed, index)
  facts = FACT.findall(document)
  pairs = dict(facts)
  assert len(set(facts)) == len(pairs)  # a key has one value
  assert len({*pairs.keys(), *pairs.values()}) == 2 * len(pairs)
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

  # The needle lies where it was asked to, to half a filler, and that is the depth reported.
  before = lines.tokenizer.encode(FACT.sub("", haystack[: haystack.index(f"\n{question}{answer}")]))
  prose = length - sum(len(lines.fact(*pair).ids) for pair in pairs) - len(lines.tokenizer.encode(f"\n{question}"))
  assert sample.depth == pytest.approx(len(before) / prose)
  assert abs(sample.depth - depth) * prose <= max(len(line.ids) for line in lines.fillers) / 2


def test_needles_lie_between_sentences(lines):
  for index in range(20):
    text = lines.tokenizer.decode(needle_sample(lines, 300, 0.5, seed=1, index=index).tokens)
    rows = text.split("\n")
    assert all(row in FILLERS or FACT.fullmatch(f"\n{row}") for row in rows[1:-2])  # the last filler may be cut


def test_depth_zero_and_one_are_the_ends(lines):
  first = lines.tokenizer.decode(needle_sample(lines, 200, 0.0, seed=0, index=0, facts=1).tokens)
  last = lines.tokenizer.decode(needle_sample(lines, 200, 1.0, seed=0, index=0, facts=1).tokens)
  assert FACT.match(first)
  assert FACT.fullmatch("\n" + last.split("\n")[-2])


def test_byte_tokenizer_needs_no_single_token_words():
  lines = Lines(ByteTokenizer(), ["one", "two", "three", "four"], FILLERS)
  sample = needle_sample(lines, 200, 0.5, seed=0, index=0, facts=2)
  assert ByteTokenizer().decode(sample.answer).strip() in {"one", "two", "three", "four"}


def test_errors_are_one_line(lines):
  with pytest.raises(ConfigError, match="do not fit into 20"):
    needle_sample(lines, 20, 0.5, seed=0, index=0)
  with pytest.raises(ConfigError, match="17 facts need 17 keys and values; there are 16"):
    needle_sample(lines, 500, 0.5, seed=0, index=0, facts=17)
  with pytest.raises(ConfigError, match="at least one filler"):
    Lines(ByteTokenizer(), WORDS, [])
