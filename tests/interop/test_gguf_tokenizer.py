"""Tokenizers in GGUF files: SentencePiece's, byte-level ones, their roles, and what is refused."""

import json
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.tiny_run import tiny_model
from support.tokenizer_files import byte_fallback, byte_level, write

from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import FileError
from drope_jax.interop import gguf_tokenizer
from drope_jax.interop.exporting import export_model
from drope_jax.interop.importing import import_model

pytest.importorskip("gguf")
MADE_BY_SENTENCEPIECE = json.loads((Path(__file__).parents[1] / "fixtures/sentencepiece.json").read_text("utf-8"))
TEXTS = ("", " ", "river", "the river  stone\n", "Ж и я 🜁", "<s> is text")


def metadata(said, **changes):
  entries = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
  entries |= {name: said[name] for name in ("tokens", "scores", "token_type")}
  return {f"tokenizer.ggml.{key}": value for key, value in (entries | changes).items()}


@pytest.mark.parametrize("kind", ["prefix", "no prefix"])
def test_scores_give_the_ids_of_sentencepiece(kind, tmp_path):
  said = MADE_BY_SENTENCEPIECE[kind]
  prefix = {} if kind == "prefix" else {"add_space_prefix": False}  # which a file may leave out
  gguf_tokenizer.read(metadata(said, **prefix), Path("a.gguf"), tmp_path)
  ours = load_tokenizer(tmp_path)
  assert [ours.encode(text) for text in said["texts"]] == said["ids"]
  assert [ours.decode(ids) for ids in said["ids"]] == said["texts"]
  assert (ours.eos_id, ours.bos_id) == (2, 1)


@pytest.mark.parametrize("kind", [byte_fallback, byte_level])
def test_an_exported_tokenizer_comes_back(kind, tmp_path):
  """With its roles, both ends of an answer, the template, and whether a BOS is set before a text."""
  tokenizer = kind()
  roles = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
  if kind is byte_level:
    roles = {"eos_token": "<|im_end|>", "bos_token": None}
  ends = [tokenizer.token_to_id(roles["eos_token"]), tokenizer.token_to_id("stone") or 258]
  write_checkpoint(tiny_model(vocab_size=320, positions=None), tmp_path / "run", tokenizer=False)
  config = {**roles, "chat_template": "{{ messages }}"}
  write(tokenizer, tmp_path / "run", tokenizer_config=config, generation_config={"eos_token_id": ends})
  export_model(tmp_path / "run", tmp_path / "out", format="gguf")
  import_model(tmp_path / "out/model.gguf", tmp_path / "again")
  before, after = load_tokenizer(tmp_path / "run"), load_tokenizer(tmp_path / "again")
  for text in TEXTS:
    assert after.encode(text) == before.encode(text)
    assert after.encode("<s>" + text, special_tokens=True) == before.encode("<s>" + text, special_tokens=True)
  assert (after.eos_ids, after.bos_id, after.chat_template) == (before.eos_ids, before.bos_id, before.chat_template)
  assert len(before.eos_ids) == 2
  template = json.loads((tmp_path / "again/tokenizer.json").read_text())["post_processor"]
  assert (template is not None) == (kind is byte_fallback)


DAMAGED = {
  "scores": ([0.0], "scores has 1 entries for 500 tokens"),
  "token_type": ([1], "token_type has 1 entries for 500 tokens"),
  "tokens": ([1, 2], r"tokens is \[1, 2\]; it must be a list of strings"),
  "eos_token_id": (500, "eos_token_id is 500; there are 500 tokens"),
  "add_bos_token": (3, "add_bos_token is 3; it must be true or false"),
}


@pytest.mark.parametrize("key", DAMAGED)
def test_a_damaged_entry_is_named(key, tmp_path):
  value, said = DAMAGED[key]
  with pytest.raises(FileError, match=rf"a\.gguf: tokenizer\.ggml\.{said}"):
    gguf_tokenizer.read(metadata(MADE_BY_SENTENCEPIECE["prefix"], **{key: value}), Path("a.gguf"), tmp_path)
  assert not list(tmp_path.iterdir())
