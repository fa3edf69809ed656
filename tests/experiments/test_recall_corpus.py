"""The corpus of prose and recall documents: its splits, its mixture, its record, and that its recipe determines it."""

import dataclasses

import pytest

from drope_jax.data.recall import ARROW
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from experiments.recall_corpus import Recipe, build, cut, small

PARAGRAPHS = [f"Paragraph {i} tells of the weather and of what was seen on the road." for i in range(60)]
SPLITS = {name: ["\n\n".join([f"{name} {part}", *PARAGRAPHS]) for part in range(4)] for name in ("train", "heldout")}
RECIPE = Recipe(vocab_size=420, context=64, recall_share=0.5, piece=500, held_out_piece=1000, tokenizer_texts=2)


def test_a_text_is_cut_at_paragraphs_and_nothing_is_lost():
  text = SPLITS["train"][0]
  pieces = list(cut(text, 500))
  assert "\n\n".join(pieces) == text
  assert max(map(len, pieces)) <= 500 + 2
  assert list(cut(text, None)) == [text]


def test_prose_and_recall_documents_are_mixed_by_tokens(tmp_path):
  build(tmp_path / "corpus", tmp_path / "tokenizer", lambda: SPLITS, RECIPE, "weather")
  tokenizer = load_tokenizer(tmp_path / "tokenizer")
  assert tokenizer.vocab_size <= RECIPE.vocab_size
  train = list(documents(tmp_path / "corpus", "train"))
  recall = [text for text in train if ARROW in text]
  share = sum(len(tokenizer.encode(text)) for text in recall) / sum(len(tokenizer.encode(text)) for text in train)
  assert 0.4 < share < 0.6
  assert len(set(recall)) == len(recall)
  held_out = list(documents(tmp_path / "corpus", "heldout"))
  assert "\n\n".join(held_out) == "\n\n".join(SPLITS["heldout"]) and len(held_out) > len(SPLITS["heldout"])

  build(tmp_path / "again", tmp_path / "tokenizer 2", lambda: SPLITS, RECIPE, "weather")
  assert list(documents(tmp_path / "again", "train")) == train


def never():
  raise AssertionError("the prose is read again")


def test_a_corpus_is_kept_for_what_it_was_made_for_and_refused_to_others(tmp_path):
  corpus, tokenizer = tmp_path / "corpus", tmp_path / "tokenizer"
  build(corpus, tokenizer, lambda: SPLITS, RECIPE, "weather")
  build(corpus, tokenizer, never, RECIPE, "weather")
  with pytest.raises(ConfigError, match="corpus was made with text 'weather', and here text is 'roads'; name another"):
    build(corpus, tokenizer, never, RECIPE, "roads")
  for field, value in {"vocab_size": 430, "context": 128, "recall_share": 0.2, "held_out_piece": None}.items():
    with pytest.raises(ConfigError, match=f"made with {field} {getattr(RECIPE, field)}, and here {field} is {value}"):
      build(corpus, tokenizer, never, dataclasses.replace(RECIPE, **{field: value}), "weather")


def test_a_corpus_without_a_record_is_taken_as_it_is(tmp_path):
  """Earlier versions wrote none, and a corpus may be a user's own."""
  build(tmp_path / "corpus", tmp_path / "tokenizer", lambda: SPLITS, RECIPE, "weather")
  (tmp_path / "corpus_made_of.json").unlink()
  build(tmp_path / "corpus", tmp_path / "tokenizer", never, small(), "roads")
