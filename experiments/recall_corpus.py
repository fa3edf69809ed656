"""A corpus of prose and recall documents with a tokenizer: text from which small models learn to retrieve.

`python -m experiments.recall_corpus --prose=data/prose --out=DIR` writes DIR/corpus and DIR/tokenizer for studies of
size `small`. `--prose` is a dataset with the splits `train`, `heldout` and `fit`, such as `python -m experiments.prose`
makes. A study reads nothing but the two folders, so they can be copied to a machine without a network.

Splits: `train` has prose and recall documents, `heldout` and `fit` prose that is in no training document. What a corpus
is made of is recorded beside it (copy this file too), so that no study trains on documents that were made for another.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from drope_jax import cli
from drope_jax.data.corpus import build_corpus, is_built
from drope_jax.data.recall import Lines, RecallParameters, recall_document, sentences, vocabulary
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import train_bpe
from drope_jax.errors import ConfigError
from drope_jax.files import write_json
from experiments.reporting.stored import read_json

FILLER_PIECES = 1000  # pieces of prose whose sentences fill recall documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """How prose and recall documents are mixed."""

  vocab_size: int
  context: int  # tokens; a recall document has between half of this and all of it
  recall_share: float  # approximate share of recall documents in the training tokens
  seed: int = 0
  piece: int = 2000  # approximate characters of a training document of prose
  held_out_piece: int | None = None  # likewise of a held-out document; None: documents stay whole
  tokenizer_texts: int | None = None  # train the tokenizer on every n-th text; None: on all


def small(vocab_size: int = 4096, context: int = 256) -> Recipe:
  """The recipe of size `small`.

  From experiments.prose it makes 12M tokens of prose and 3.2M of recall documents, 23 MiB on disk. Pieces are long
  because they compress better. Nearly all held-out pieces are longer than 8 times the context.
  """
  return Recipe(
    vocab_size=vocab_size,
    context=context,
    recall_share=0.2,
    piece=32_000,
    held_out_piece=12_000 * context // 256,
    tokenizer_texts=8,
  )


def build(
  corpus: Path, tokenizer: Path, prose: Callable[[], Mapping[str, Sequence[str]]], recipe: Recipe, text: str
) -> None:
  """Writes a corpus of prose and recall documents, and a tokenizer; a corpus that is there already is kept.

  Args:
    prose: reads the splits: `train`, which is cut into pieces and mixed with recall documents, and the held-out ones.
    text: what the prose is, for the record.

  Raises:
    ConfigError: the corpus that is there was made by another recipe or of another text. A corpus without a record, by
      an earlier version or of the user's own, is taken as it is.
  """
  made_of, record = {"text": text, **dataclasses.asdict(recipe)}, corpus.with_name(f"{corpus.name}_made_of.json")
  if is_built(corpus):
    if record.exists():
      _check_same(corpus, read_json(record), made_of)
    return
  splits = prose()
  train = splits["train"]
  encoder = train_bpe(train[:: recipe.tokenizer_texts], recipe.vocab_size, tokenizer, whole=vocabulary())
  pieces = [piece for text in train for piece in cut(text, recipe.piece)]
  random.Random(recipe.seed).shuffle(pieces)
  tokens_per_character = len(encoder.encode("".join(pieces[:200]))) / sum(map(len, pieces[:200]))
  prose_tokens = sum(map(len, pieces)) * tokens_per_character
  fillers = [sentence for piece in pieces[:FILLER_PIECES] for sentence in sentences(piece)]
  recall = _recall(Lines(encoder, fillers), recipe, prose_tokens)
  held_out = {
    name: [piece for text in texts for piece in cut(text, recipe.held_out_piece)]
    for name, texts in splits.items()
    if name != "train"
  }
  write_json(made_of, record)  # before the corpus, which must not stand without it if this process is stopped
  build_corpus(corpus, {"train": itertools.chain(pieces, recall), **held_out})


def _check_same(corpus: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  for field, value in wanted.items():
    found = recorded.get(field, value)
    if found != value:
      raise ConfigError(
        f"{corpus} was made with {field} {found!r}, and here {field} is {value!r}; name another folder of data"
      )


def cut(text: str, characters: int | None) -> Iterator[str]:
  """Cuts a text at paragraphs into pieces of about `characters`; None: a single piece."""
  if characters is None:
    yield text
    return
  piece = ""
  for paragraph in text.split("\n\n"):
    if piece and len(piece) + len(paragraph) > characters:
      yield piece
      piece = ""
    piece += ("\n\n" if piece else "") + paragraph
  yield piece


def _recall(lines: Lines, recipe: Recipe, prose_tokens: float) -> Iterator[str]:
  """Different recall documents, as many as make up `recall_share` of all tokens."""
  parameters = RecallParameters(tokens=(recipe.context // 2, recipe.context))
  mean_tokens = sum(parameters.tokens) / 2
  count = round(prose_tokens * recipe.recall_share / (1 - recipe.recall_share) / mean_tokens)
  return (recall_document(lines, parameters, recipe.seed, index) for index in range(count))


def build_from(prose: str, corpus: Path, tokenizer: Path, recipe: Recipe) -> None:
  """`build` with the prose of a dataset, at any path that data/sources/at.py knows."""

  def splits() -> dict[str, list[str]]:
    return {name: list(documents(prose, name)) for name in ("train", "heldout", "fit")}

  build(corpus, tokenizer, splits, recipe, prose)


def main(prose: flags.FlagHolder, out: flags.FlagHolder) -> None:
  directory = Path(out.value)
  build_from(prose.value, directory / "corpus", directory / "tokenizer", small())


if __name__ == "__main__":
  PROSE = cli.define_path("prose", "data/prose", "Dataset of prose: `python -m experiments.prose --out=DIR`.")
  OUT = cli.define_path("out", None, "Where the corpus and the tokenizer go.", required=True, local=True)
  cli.run(lambda: main(PROSE, OUT))
