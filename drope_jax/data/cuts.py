"""Cutting long texts such that the concatenated tokens of the parts are those of the whole text.

Encoding takes about 100 bytes of memory per byte of text, and blocks other threads while the ids are handed over, so a
document of megabytes is encoded in parts. A cut must be a place where the tokenizer always ends a token, whatever the
context. This holds for the two kinds of BPE below; texts for other tokenizers are not cut.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tokenizers

PART = 1 << 18  # characters of a part, up to the next possible cut

_SPACE = "▁"
# How released byte-level tokenizers split a text (GPT-2; Llama 3 and GPT-4; Qwen2). All of them end a token before a
# single space or newline between two letters or digits: no alternative matches both a letter and white space after it.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = (GPT2_SPLIT, QWEN2_SPLIT, LLAMA3_SPLIT)

_WORD = "[A-Za-z0-9А-яЁё一-龥가-힣]"  # letters and digits in every version of Unicode
_BETWEEN_WORDS = re.compile(f"(?<={_WORD})(?=[ \n]{_WORD})")
_BEFORE_SPACE = re.compile(f"(?<={_WORD})(?= {_WORD})")


class Cuts(NamedTuple):
  """Where texts may be cut for a tokenizer."""

  pattern: re.Pattern[str]  # matches at each possible cut
  dropped: int = 0  # characters to skip after a cut, because the tokenizer itself prepends them to a text

  def parts(self, text: str) -> Iterator[str]:
    """The text in parts of about PART characters."""
    start = 0
    while start + PART < len(text):
      found = self.pattern.search(text, start + PART)
      if found is None:
        break
      yield text[start : found.start()]
      start = found.start() + self.dropped
    yield text[start:]


def cuts_of(tokenizer: tokenizers.Tokenizer) -> Cuts | None:
  """Where texts may be cut for a tokenizer that does not parse special tokens; None if no safe cut is known."""
  content = json.loads(tokenizer.to_str())
  model = content["model"]
  added = [token for token in content["added_tokens"] if not token["special"]]
  if model["type"] != "BPE" or model["dropout"] or any(_reaches_over(token) for token in added):
    return None
  normalizers = _flat(content["normalizer"], "normalizers")
  splits = _flat(content["pre_tokenizer"], "pretokenizers")
  if all(part["type"] == "NFC" for part in normalizers) and _split_between_words(splits):
    prefixed = any(part.get("add_prefix_space") for part in splits)  # a space is prepended to a text without one
    return Cuts(_BEFORE_SPACE if prefixed else _BETWEEN_WORDS)
  affixes = model["continuing_subword_prefix"] or model["end_of_word_suffix"]
  if added or model["ignore_merges"] or affixes or _SPACE not in model["vocab"]:
    return None
  if any(_SPACE in token.lstrip(_SPACE) for token in model["vocab"]):
    return None  # merges may cross a space
  return _sentencepiece(normalizers, splits)


def _reaches_over(token: Mapping[str, Any]) -> bool:
  """Whether an added token, which is matched before anything else, may contain a cut, or absorb the space after it."""
  return token["rstrip"] or re.search(r"\S\s\S", token["content"]) is not None


def _flat(part: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
  """The steps of a pipeline component, with sequences flattened."""
  if part is None:
    return []
  return [one for inner in part[parts] for one in _flat(inner, parts)] if part["type"] == "Sequence" else [part]


def _split_between_words(splits: list[Mapping[str, Any]]) -> bool:
  """Whether the pre-tokenizer splits before a single space or newline between words; later steps only see pieces."""
  first = [part for part in splits if part["type"] != "Digits"][:1]
  return any(_known(part) for part in first)


def _known(split: Mapping[str, Any]) -> bool:
  if split["type"] == "ByteLevel":
    return bool(split["use_regex"])
  if split["type"] != "Split" or split["behavior"] != "Isolated" or split["invert"]:
    return False
  return split["pattern"].get("Regex") in _SPLITS


def _sentencepiece(normalizers: list[Mapping[str, Any]], splits: list[Mapping[str, Any]]) -> Cuts | None:
  """The cuts if spaces become `▁`, one may be prepended, and there is no other split, as in SentencePiece."""
  replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
  prepend = {"type": "Prepend", "prepend": _SPACE}
  if not splits and normalizers == [prepend, replace]:
    return Cuts(_BEFORE_SPACE, dropped=1)
  if not splits and normalizers == [replace]:
    return Cuts(_BEFORE_SPACE)
  if len(splits) == 1 and not normalizers and splits[0]["type"] == "Metaspace" and splits[0]["replacement"] == _SPACE:
    scheme = splits[0]["prepend_scheme"]  # it sets none before a text that begins with a space
    return Cuts(_BEFORE_SPACE) if scheme in ("always", "first", "never") else None
  return None
