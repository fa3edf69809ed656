"""The special tokens of a released tokenizer: which ones begin and end a document, according to its files.

A tokenizer.json does not contain this. It is looked up next to it, in tokenizer_config.json, special_tokens_map.json
and the model's config.json, in this order. A `null` for BOS means that the model was trained without one.
"""

import json
import logging
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from drope_jax.errors import ConfigError, FileError

# Names in released models, for a tokenizer.json without other files.
KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
KNOWN_BOS = ("<|begin_of_text|>", "<s>", "<bos>")

ROLES = "tokenizer_config.json"  # the first file in which roles are looked up
TOKENS_MAP = "special_tokens_map.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
# Other files of a released tokenizer, besides tokenizer.json and ROLES: they are copied with it.
COMPANIONS = (TOKENS_MAP, "added_tokens.json", TEMPLATE, GENERATION)

MOST_TOKENS = 1 << 22  # upper limit of ids, several times the size of any released tokenizer
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

logger = logging.getLogger(__name__)


class Roles(NamedTuple):
  """The special tokens of a tokenizer."""

  eos: str  # ends a document
  eos_ids: tuple[int, ...]  # every token that ends an answer; the id of `eos` comes first
  bos: str | None = None
  bos_id: int | None = None
  chat_template: str | None = None  # in Jinja
  texts: Mapping[str, str] = types.MappingProxyType({})  # the texts of all special tokens, by role


def read_roles(tokenizer: tokenizers.Tokenizer, file: Path, eos: str | None = None, bos: str | None = None) -> Roles:
  """The special tokens of a tokenizer that was read from `file`, according to the files next to it.

  Args:
    eos: the token that ends a document; overrides the files.
    bos: the token that begins a document; overrides the files.

  Raises:
    FileError: naming the file that cannot be read.
    ConfigError: if a file names a token that is not in the vocabulary, or nothing says which token ends a document.
  """
  config = read_object(file.with_name(ROLES))
  tokens_map, model = read_object(file.with_name(TOKENS_MAP)), read_object(file.with_name("config.json"))
  ids = {
    role: _said(role, tokenizer, file, config, tokens_map, model, given)
    for role, given in (("eos_token", eos), ("bos_token", bos))
  }
  end, begin = ids["eos_token"], ids["bos_token"]
  if end is None:
    raise ConfigError(f"{file}: no end-of-document token; name one as eos_token in a {ROLES} beside it")
  others = token_ids(read_object(file.with_name(GENERATION)), "eos_token_id") or token_ids(model, "eos_token_id")
  known = [one for one in others if tokenizer.id_to_token(one) is not None]
  texts = {role: token_text(said) for role, said in {**tokens_map, **config}.items() if role.endswith("_token")}
  texts["eos_token"] = ending = str(tokenizer.id_to_token(end))
  texts["bos_token"] = None if begin is None else tokenizer.id_to_token(begin)
  return Roles(
    ending,
    tuple(dict.fromkeys((end, *known))),
    texts["bos_token"],
    begin,
    _chat_template(config, file),
    {role: text for role, text in texts.items() if text is not None},
  )


def _said(
  role: str,
  tokenizer: tokenizers.Tokenizer,
  file: Path,
  config: Mapping[str, Any],
  tokens_map: Mapping[str, Any],
  model: Mapping[str, Any],
  given: str | None,
) -> int | None:
  """The id of the token with a role, from the first file that has it; None if there is no such token."""
  for said in [given] if given else [source[role] for source in (config, tokens_map) if role in source]:
    token = token_text(said)
    if token is not None:
      return _id_of(token, tokenizer, file)
    if role == "bos_token":
      return None
  if f"{role}_id" in model:
    known = [one for one in token_ids(model, f"{role}_id") if tokenizer.id_to_token(one) is not None]
    if known or role == "bos_token":
      return known[0] if known else None
  special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
  guess = next((one for one in (KNOWN_EOS if role == "eos_token" else KNOWN_BOS) if one in special), None)
  if guess is None:
    return None
  logger.warning("%s: no file beside it says its %s; %s is taken to be it", file, role, guess)
  return _id_of(guess, tokenizer, file)


def _id_of(token: str, tokenizer: tokenizers.Tokenizer, file: Path) -> int:
  found = tokenizer.token_to_id(token)
  if found is None:
    raise ConfigError(f"{file}: the special token {token!r} is not in the vocabulary; correct the files beside it")
  return found


def token_text(said: Any) -> str | None:
  """The text of a token in these files: a string, or an object with `content`."""
  text = said.get("content") if isinstance(said, dict) else said
  return text if isinstance(text, str) else None


def token_ids(config: Mapping[str, Any], key: str) -> list[int]:
  """The ids at a key of these files: one id, a list, or null."""
  said = config.get(key)
  listed = said if isinstance(said, list) else [said]
  return [one for one in listed if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < MOST_TOKENS]


def _chat_template(config: Mapping[str, Any], file: Path) -> str | None:
  """The chat template, from its own file or from the config; of several, the one named `default`."""
  own = file.with_name(TEMPLATE)
  if own.exists():
    return read_text(own)
  said = config.get("chat_template")
  if isinstance(said, list):
    said = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}.get("default")
  return said if isinstance(said, str) else None


def read_object(path: Path) -> dict[str, Any]:
  """The object in a JSON file; empty if the file is missing. Raises FileError if it is not a JSON object."""
  if not path.exists():
    return {}
  text = read_text(path)
  try:
    data = json.loads(text)
    json.dumps(data, ensure_ascii=False).encode()  # raises an error for lone surrogates, "\\ud800"
  except (ValueError, RecursionError) as error:
    raise FileError(f"{path}: not readable as JSON ({error}); mend it or fetch it again") from error
  if not isinstance(data, dict):
    raise FileError(f"{path}: holds no JSON object, {{...}}")
  return data


def read_text(path: Path) -> str:
  """The text of a file. Raises FileError if it is not UTF-8, or a Git LFS pointer."""
  try:
    content = path.read_bytes()
    refuse_pointer(content, path)
    return content.decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise FileError(f"{path}: not readable ({error})") from error


def refuse_pointer(content: bytes, path: Any) -> None:
  """Raises FileError if a file is a Git LFS pointer, whose actual content was not fetched."""
  if content.startswith(_LFS_POINTER):
    raise FileError(f"{path}: a Git LFS pointer and not the file itself; fetch it with `git lfs pull`")
