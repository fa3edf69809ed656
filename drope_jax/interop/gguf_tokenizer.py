"""Reads and writes the tokenizer in the metadata of a GGUF file: vocabulary, merges, and the name of the rest.

The kind "gpt2" is byte-level BPE. Its pre-tokenizer is only given by name (`tokenizer.ggml.pre`), so only those with a
name can be read and written. The kind "llama" is SentencePiece's BPE with byte fallback: it has scores instead of
merges, and the merge whose token has the highest score comes first.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from drope_jax.data.cuts import LLAMA3_SPLIT, QWEN2_SPLIT
from drope_jax.data.roles import GENERATION, ROLES
from drope_jax.data.tokenizers import Tokenizer, is_failure
from drope_jax.errors import ConfigError, FileError, UserError
from drope_jax.interop.keys import shown

# The pre-tokenizers of byte-level BPE by their names in `tokenizer.ggml.pre`.
CUTS: dict[str, list[Any]] = {
  "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
  "qwen2": [
    pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ],
  "llama-bpe": [
    pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ],
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # of tokenizer.ggml.token_type
_KINDS = {str: "strings", int: "integers", float: "numbers"}
_SPACE = "▁"
_OTHER = "name a tokenizer.json of the same model with --tokenizer=PATH"


def read(metadata: Mapping[str, Any], path: Path, directory: Path) -> None:
  """Writes the tokenizer of a GGUF file such that `load_tokenizer(directory)` reads it.

  Raises:
    ConfigError: naming `path` and the key, if its kind or pre-tokenizer is not supported.
    FileError: likewise, if a value is damaged.
  """
  said = _Said(metadata, path)
  kind = said.choice("model", ("gpt2", "llama"))
  cut = said.choice("pre", tuple(CUTS)) if kind == "gpt2" else None
  tokens = said.listed("tokens", str)
  types = said.listed("token_type", int, [_NORMAL] * len(tokens))
  if len(types) != len(tokens):
    raise said.damaged("token_type", f"has {len(types)} entries for {len(tokens)} tokens")
  vocabulary = {token: i for i, (token, role) in enumerate(zip(tokens, types, strict=True)) if role != _UNUSED}
  roles = {role: said.token(role, tokens) for role in ("eos", "eot", "bos", "unknown", "padding")}
  try:
    if cut is None:
      tokenizer = _read_sentencepiece(said, vocabulary, types, roles["unknown"])
    else:
      tokenizer = _read_byte_level(said, vocabulary, cut)
    for token, role in zip(tokens, types, strict=True):
      if role in (_CONTROL, _UNKNOWN, _USER_DEFINED):
        added = tokenizers.AddedToken(token, special=role != _USER_DEFINED, normalized=False)
        (tokenizer.add_tokens if role == _USER_DEFINED else tokenizer.add_special_tokens)([added])
    begin = roles["bos"]
    if begin is not None and said.flag("add_bos_token", kind == "llama"):
      template = f"{begin} $A", f"{begin} $A {begin} $B", [(begin, tokens.index(begin))]
      tokenizer.post_processor = processors.TemplateProcessing(*template)
  except UserError:
    raise
  except BaseException as error:  # a panic of tokenizers is not an Exception
    if not is_failure(error):
      raise
    raise FileError(f"{path}: tokenizer.ggml.tokens and merges make no tokenizer ({error}); {_OTHER}") from error
  tokenizer.save(str(directory / "tokenizer.json"))
  _write_roles(metadata, roles, tokens, directory)


def _write_roles(
  metadata: Mapping[str, Any], roles: Mapping[str, str | None], tokens: list[str], directory: Path
) -> None:
  """Writes the companion files of a tokenizer.json, with the special tokens and the chat template."""
  said: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False}
  names = {"eos": "eos_token", "bos": "bos_token", "unknown": "unk_token", "padding": "pad_token"}
  said |= {name: roles[role] for role, name in names.items() if roles[role] is not None}
  if "tokenizer.chat_template" in metadata:
    said["chat_template"] = metadata["tokenizer.chat_template"]
  (directory / ROLES).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
  ends = [tokens.index(end) for end in dict.fromkeys((roles["eos"], roles["eot"])) if end is not None]
  if len(ends) > 1:  # either ends an answer
    (directory / GENERATION).write_text(json.dumps({"eos_token_id": ends}, indent=2) + "\n", encoding="utf-8")


class _Said:
  """Typed access to the entries `tokenizer.ggml.…` of a file."""

  def __init__(self, metadata: Mapping[str, Any], path: Path):
    self._metadata, self._path = metadata, path

  def damaged(self, key: str, what: str) -> FileError:
    return FileError(f"{self._path}: tokenizer.ggml.{key} {what}")

  def choice(self, key: str, allowed: tuple[str, ...], default: str = "") -> str:
    value = self._metadata.get(f"tokenizer.ggml.{key}", default)
    if value not in allowed:
      raise ConfigError(
        f"{self._path}: tokenizer.ggml.{key} is {shown(value)}; allowed: {', '.join(allowed)}; for others {_OTHER}"
      )
    return value

  def listed(self, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    value = self._metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
      raise self.damaged(key, f"is {'missing' if value is None else shown(value)}; it must be a list of {_KINDS[kind]}")
    return value

  def flag(self, key: str, default: bool) -> bool:
    value = self._metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
      raise self.damaged(key, f"is {shown(value)}; it must be true or false")
    return value

  def token(self, role: str, tokens: list[str]) -> str | None:
    """The token with a role, if there is one."""
    value = self._metadata.get(f"tokenizer.ggml.{role}_token_id")
    if value is None:
      return None
    if not isinstance(value, int) or not 0 <= value < len(tokens):
      raise self.damaged(f"{role}_token_id", f"is {shown(value)}; there are {len(tokens)} tokens")
    return tokens[value]


def _read_byte_level(said: _Said, vocabulary: dict[str, int], cut: str) -> tokenizers.Tokenizer:
  merges = [tuple(merge.split(" ", 1)) for merge in said.listed("merges", str, [])]
  whole = cut == "llama-bpe"  # words in the vocabulary are one token, whatever the merges
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
  if cut == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _read_sentencepiece(
  said: _Said, vocabulary: dict[str, int], types: list[int], unknown: str | None
) -> tokenizers.Tokenizer:
  scores = said.listed("scores", float)
  if len(scores) != len(types):
    raise said.damaged("scores", f"has {len(scores)} entries for {len(types)} tokens")
  pieces = {token: scores[i] for token, i in vocabulary.items() if types[i] == _NORMAL}
  merges = list(_merges(pieces, vocabulary))
  unknown = unknown or next((token for token, i in vocabulary.items() if types[i] == _UNKNOWN), None)
  bpe = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in types)
  tokenizer = tokenizers.Tokenizer(bpe)
  spaces = normalizers.Replace(" ", _SPACE)
  prefix = said.flag("add_space_prefix", True)
  tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
  parts: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
  return tokenizer


def _merges(pieces: Mapping[str, float], vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
  """The pairs of tokens whose concatenation is a token, by descending score, in the order of transformers."""
  for piece in sorted(pieces, key=lambda piece: -pieces[piece]):
    pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    known = [pair for pair in pairs if pair[0] in pieces and pair[1] in pieces]
    yield from sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))


def metadata_of(tokenizer: Tokenizer, file: Path, vocab_size: int) -> dict[str, Any]:
  """The metadata of a tokenizer in a GGUF file.

  Args:
    tokenizer: has the special tokens.
    file: its tokenizer.json.
    vocab_size: of the model; ids beyond the tokenizer's are marked as unused.

  Raises:
    ConfigError: if llama.cpp has no name for its pre-tokenizer, or it is not BPE.
  """
  content = json.loads(file.read_text(encoding="utf-8"))
  model = content["model"]
  if model.get("type") != "BPE":
    raise ConfigError(
      f"{file}: a tokenizer of type {model.get('type')}; GGUF files are written with BPE; choose another format"
    )
  merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
  said = _byte_fallback(content, merges) if model.get("byte_fallback") else _byte_level(content, merges, file)
  names: dict[int, tuple[str, int]] = {
    number: (token, _BYTE if model.get("byte_fallback") and _is_byte(token) else _NORMAL)
    for token, number in model["vocab"].items()
  }
  for added in content["added_tokens"]:
    unknown = added["content"] == model.get("unk_token")
    kind = _UNKNOWN if unknown else _CONTROL if added["special"] else _USER_DEFINED
    names[added["id"]] = (added["content"], kind)
  listed = [names.get(i, (f"[PAD{i}]", _UNUSED)) for i in range(vocab_size)]
  said |= {"tokens": [token for token, _ in listed], "token_type": [kind for _, kind in listed]}
  if "ranks" in said:
    ranks = said.pop("ranks")
    said["scores"] = [float(-ranks.get(token, len(ranks))) for token in said["tokens"]]
  said["eos_token_id"] = tokenizer.eos_id
  if len(tokenizer.eos_ids) > 1:
    said["eot_token_id"] = tokenizer.eos_ids[1]
  if tokenizer.bos_id is not None:
    said["bos_token_id"] = tokenizer.bos_id
  for role, key in (("unk_token", "unknown_token_id"), ("pad_token", "padding_token_id")):
    number = next((i for i, (token, _) in names.items() if token == tokenizer.special_tokens.get(role)), None)
    if number is not None:
      said[key] = number
  begun = tokenizers.Tokenizer.from_str(json.dumps(content)).encode("a").ids
  said["add_bos_token"] = tokenizer.bos_id is not None and begun[:1] == [tokenizer.bos_id]
  metadata = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
  if tokenizer.chat_template is not None:
    metadata["tokenizer.chat_template"] = tokenizer.chat_template
  return metadata


def _byte_level(content: Mapping[str, Any], merges: list[str], file: Path) -> dict[str, Any]:
  if not merges:
    cut = "gpt-2"  # without merges, tokens are bytes for any pre-tokenizer
  else:
    found = _signature(content["pre_tokenizer"])
    states = {name: json.loads(pre_tokenizers.Sequence(parts).__getstate__()) for name, parts in CUTS.items()}
    cut = next((name for name, state in states.items() if _signature(state) == found), "")
    if not cut:
      raise ConfigError(
        f"{file}: llama.cpp's name for its pre_tokenizer is not known; known: {', '.join(CUTS)}; choose another format"
      )
  return {"model": "gpt2", "pre": cut, "merges": merges}


def _signature(part: Mapping[str, Any] | None) -> list[Any]:
  """The steps of a pre-tokenizer, without options that do not affect the tokens."""
  if part is None:
    return []
  if part["type"] == "Sequence":
    return [one for inner in part["pretokenizers"] for one in _signature(inner)]
  return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _byte_fallback(content: Mapping[str, Any], merges: list[str]) -> dict[str, Any]:
  """The metadata of BPE with byte fallback, as in SentencePiece; `ranks` are those of the merged tokens."""
  ranks: dict[str, int] = {}
  for rank, merge in enumerate(merges):
    ranks.setdefault(merge.replace(" ", ""), rank)
  prefix = "Prepend" in json.dumps(content.get("normalizer")) or "Metaspace" in json.dumps(content["pre_tokenizer"])
  return {"model": "llama", "pre": "default", "add_space_prefix": prefix, "ranks": ranks}


def _is_byte(token: str) -> bool:
  return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
