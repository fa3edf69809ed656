"""Tokenizers of the kinds that are released, as files: with byte fallback (Llama 2) and byte-level (Qwen)."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from drope_jax.data.token_bytes import byte_characters

SPACE = "▁"
WORDS = ("wind", "stone", "river")


def _merges(word: str) -> list[tuple[str, str]]:
  """A word put together from left to right."""
  return [(word[:i], word[i]) for i in range(1, len(word))]


def byte_fallback(special: tuple[str, ...] = ("<unk>", "<s>", "</s>")) -> Tokenizer:
  """As Llama 2's: it sets a space in front, has bytes for characters that it lacks, and its template sets a BOS."""
  merges = [merge for word in WORDS for merge in _merges(SPACE + word)]
  letters = [SPACE, *map(chr, range(ord("a"), ord("z") + 1))]
  names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
  vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
  bpe = models.BPE(vocabulary, merges, unk_token=special[0], fuse_unk=True, byte_fallback=True)
  tokenizer = Tokenizer(bpe)
  tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
  parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  tokenizer.decoder = decoders.Sequence(parts)
  tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
  if "<s>" in special:
    both = "<s> $A <s> $B"
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", both, [("<s>", special.index("<s>"))])
  return tokenizer


def byte_level(special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> Tokenizer:
  """As Qwen's: every byte is a character; the roles' usual names among ordinary words mean nothing."""
  vocabulary = {name: i for i, name in enumerate([*byte_characters(), "<s>", "</s>"])}
  tokenizer = Tokenizer(models.BPE(vocabulary, []))
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
  return tokenizer


def write(tokenizer: Tokenizer, directory: Path, **beside: object) -> Path:
  """The tokenizer.json, and files beside it: `tokenizer_config={...}` writes tokenizer_config.json."""
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(directory / "tokenizer.json"))
  for name, content in beside.items():
    (directory / f"{name}.json").write_text(json.dumps(content))
  return directory
