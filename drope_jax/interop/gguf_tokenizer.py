"""The tokenizer in the metadata of a GGUF file, both ways: its vocabulary, its merges, and the name of the rest.

How text is cut before the merges is known by name alone (`tokenizer.ggml.pre`), so only cuts that have one are read and
written. The kind "gpt2" is byte-level BPE; "llama" is BPE with byte fallback, whose merges are told by scores.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from drope_jax.data.cuts import LLAMA3_SPLIT, QWEN2_SPLIT
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError

# What `tokenizer.ggml.pre` stands for: how text is cut before byte-level BPE merges.
CUTS = {
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


def read(metadata: Mapping[str, Any], path: Path, directory: Path) -> None:
  """Writes the tokenizer of a GGUF file as `load_tokenizer(directory)` reads it.

  Raises:
    ConfigError: naming `path` and the key, if it is of a kind or has a cut that is not known.
  """
  kind, cut = (metadata.get(f"tokenizer.ggml.{key}", "") for key in ("model", "pre"))
  for key, value, allowed in (("model", kind, ("gpt2",)), ("pre", cut, tuple(CUTS))):
    if value not in allowed:
      raise ConfigError(
        f"{path}: tokenizer.ggml.{key} is {value!r}; allowed: {', '.join(allowed)}; for others name a "
        "tokenizer.json of the same model with --tokenizer=PATH"
      )
  tokens: list[str] = metadata["tokenizer.ggml.tokens"]
  merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
  types = metadata.get("tokenizer.ggml.token_type", [])
  used = [token for token, role in zip(tokens, [*types, *[_NORMAL] * len(tokens)], strict=False) if role != _UNUSED]
  whole = cut == "llama-bpe"  # a word that is in the vocabulary is one token, whatever the merges give
  vocabulary = {token: i for i, token in enumerate(tokens) if token in set(used)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
  if cut == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
  tokenizer.decoder = decoders.ByteLevel()
  for token, role in zip(tokens, types, strict=False):
    if role in (_CONTROL, _USER_DEFINED):
      special = tokenizers.AddedToken(token, special=role == _CONTROL, normalized=False)
      (tokenizer.add_special_tokens if role == _CONTROL else tokenizer.add_tokens)([special])
  roles: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False}
  for role in ("eos", "bos", "unknown", "padding"):
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if number is not None:
      roles[{"unknown": "unk_token", "padding": "pad_token"}.get(role, f"{role}_token")] = tokens[number]
  if "tokenizer.chat_template" in metadata:
    roles["chat_template"] = metadata["tokenizer.chat_template"]
  tokenizer.save(str(directory / "tokenizer.json"))
  (directory / "tokenizer_config.json").write_text(json.dumps(roles, indent=2) + "\n", encoding="utf-8")


def metadata_of(tokenizer: Tokenizer, file: Path, vocab_size: int) -> dict[str, Any]:
  """What a GGUF file says of a tokenizer.

  Args:
    tokenizer: whose roles these are.
    file: its tokenizer.json.
    vocab_size: of the model; ids that are no token are said to be unused.

  Raises:
    ConfigError: if llama.cpp has no name for it.
  """
  content = json.loads(file.read_text(encoding="utf-8"))
  model = content["model"]
  if model.get("type") != "BPE":
    raise ConfigError(f"{file}: a tokenizer of type {model.get('type')}; GGUF files are written with BPE")
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
  begun = tokenizers.Tokenizer.from_str(json.dumps(content)).encode("a").ids
  said["add_bos_token"] = tokenizer.bos_id is not None and begun[:1] == [tokenizer.bos_id]
  metadata = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
  if tokenizer.chat_template is not None:
    metadata["tokenizer.chat_template"] = tokenizer.chat_template
  return metadata


def _byte_level(content: Mapping[str, Any], merges: list[str], file: Path) -> dict[str, Any]:
  if not merges:
    cut = "gpt-2"  # tokens are bytes, however text is cut
  else:
    found = _signature(content["pre_tokenizer"])
    states = {name: json.loads(pre_tokenizers.Sequence(parts).__getstate__()) for name, parts in CUTS.items()}
    cut = next((name for name, state in states.items() if _signature(state) == found), "")
    if not cut:
      raise ConfigError(f"{file}: llama.cpp's name for its pre_tokenizer is not known; known: {', '.join(CUTS)}")
  return {"model": "gpt2", "pre": cut, "merges": merges}


def _signature(part: Mapping[str, Any] | None) -> list[Any]:
  """What a pre-tokenizer does, without what makes no difference to the tokens."""
  if part is None:
    return []
  if part["type"] == "Sequence":
    return [one for inner in part["pretokenizers"] for one in _signature(inner)]
  return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _byte_fallback(content: Mapping[str, Any], merges: list[str]) -> dict[str, Any]:
  """As of SentencePiece: the pair whose token has the highest score is merged first."""
  ranks: dict[str, int] = {}
  for rank, merge in enumerate(merges):
    ranks.setdefault(merge.replace(" ", ""), rank)
  prefix = "Prepend" in json.dumps(content.get("normalizer")) or "Metaspace" in json.dumps(content["pre_tokenizer"])
  return {"model": "llama", "pre": "default", "add_space_prefix": prefix, "ranks": ranks}


def _is_byte(token: str) -> bool:
  return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
