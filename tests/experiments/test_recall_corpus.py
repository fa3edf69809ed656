"""The corpus of prose and recall documents: its splits, its mixture, and that its recipe determines it."""

from drope_jax.data.recall import ARROW
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import load_tokenizer
from experiments.recall_corpus import Recipe, build, cut

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
  build(tmp_path / "corpus", tmp_path / "tokenizer", SPLITS, RECIPE)
  tokenizer = load_tokenizer(tmp_path / "tokenizer")
  assert tokenizer.vocab_size <= RECIPE.vocab_size
  train = list(documents(tmp_path / "corpus", "train"))
  recall = [text for text in train if ARROW in text]
  share = sum(len(tokenizer.encode(text)) for text in recall) / sum(len(tokenizer.encode(text)) for text in train)
  assert 0.4 < share < 0.6
  assert len(set(recall)) == len(recall)
  held_out = list(documents(tmp_path / "corpus", "heldout"))
  assert "\n\n".join(held_out) == "\n\n".join(SPLITS["heldout"]) and len(held_out) > len(SPLITS["heldout"])

  build(tmp_path / "again", tmp_path / "tokenizer 2", SPLITS, RECIPE)
  assert list(documents(tmp_path / "again", "train")) == train
