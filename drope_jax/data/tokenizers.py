"""Tokenizers: bytes, any `tokenizer.json`, and training a new one.

A tokenizer is named by "byte" or a path, which `load_tokenizer` reads. A tokenizer that is saved next to a checkpoint
can be named by that directory.
"""

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from drope_jax.data.cuts import Cuts, cuts_of
from drope_jax.data.panics import kept_from_stderr
from drope_jax.data.roles import (
  COMPANIONS,
  GENERATION,
  KNOWN_EOS,
  MOST_TOKENS,
  ROLES,
  Roles,
  read_object,
  read_roles,
  read_text,
  token_ids,
  token_text,
)
from drope_jax.data.token_bytes import TokenBytes
from drope_jax.errors import ConfigError, FileError
from drope_jax.files import replace_whole, writing


class Tokenizer(Protocol):
  """Maps text to token ids below `vocab_size`, and back; picklable, since data workers receive a copy."""

  vocab_size: int
  eos_id: int  # ends a document
  eos_ids: tuple[int, ...]  # each ends an answer; `eos_id` is the first
  bos_id: int | None  # begins a document, where the model was trained with it
  chat_template: str | None  # in Jinja; see chat.py
  special_tokens: Mapping[str, str]  # texts by role ("bos_token", ...), for the template

  def encode(self, text: str, special_tokens: bool = False) -> list[int]:
    """The ids of `text`, without EOS or BOS.

    Args:
      special_tokens: whether the spelling of a special token in the text is parsed as that token (as in a chat
        template). By default it is ordinary text, so that a document cannot end itself.
    """

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without EOS, BOS and other special tokens."""

  def piece(self, token: int) -> bytes:
    """The bytes of one token within a text; empty for a special token.

    A token may be a part of a character. The concatenated pieces of a text are its UTF-8, except that tokenizers that
    prepend a space to a text (Llama 2's) have that space in the first piece.
    """

  def save(self, directory: Path) -> None:
    """Writes what `load_tokenizer(directory)` reads back."""


class ByteTokenizer:
  """UTF-8 bytes, shifted by one: id 0 is EOS, and byte b is id b + 1."""

  vocab_size: int = 257
  eos_id: int = 0
  eos_ids: tuple[int, ...] = (0,)
  bos_id: int | None = None
  chat_template: str | None = None
  special_tokens: Mapping[str, str] = types.MappingProxyType({})

  def encode(self, text: str, special_tokens: bool = False) -> list[int]:
    return [byte + 1 for byte in text.encode()]

  def decode(self, ids: Sequence[int]) -> str:
    # A model may have more ids than the tokenizer; those have no text.
    return b"".join(map(self.piece, ids)).decode(errors="replace")

  def piece(self, token: int) -> bytes:
    return bytes([token - 1]) if 0 < token < self.vocab_size else b""

  def save(self, directory: Path) -> None:
    _write(directory / ROLES, json.dumps({"tokenizer_class": "ByteTokenizer"}))


class JsonTokenizer:
  """A `tokenizer.json` as Hugging Face publishes it.

  Truncation and padding in the file are settings of whoever saved it, and are switched off. For the tokens that begin
  and end a document see roles.py.

  Args:
    path: the tokenizer.json.
    eos: the token that ends a document; overrides the files.
    bos: the token that begins a document; overrides the files.

  Raises:
    FileError: naming the file that cannot be read: `path`, or one next to it.
    ConfigError: if it has no EOS.
  """

  def __init__(self, path: str | Path, eos: str | None = None, bos: str | None = None):
    file = epath.Path(path)
    self._tokenizer = _parsed(file)
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if not 0 < self.vocab_size <= MOST_TOKENS:
      raise FileError(
        f"{file}: its ids reach {self.vocab_size - 1}; allowed: up to {MOST_TOKENS - 1}, and at least one"
      )
    beside = {name: file.with_name(name) for name in (ROLES, *COMPANIONS)}
    self._beside = {name: read_text(one) for name, one in beside.items() if one.exists()}
    self._roles = read_roles(self._tokenizer, file, eos, bos)
    self.eos_ids, self.bos_id = self._roles.eos_ids, self._roles.bos_id
    self.eos_id = self.eos_ids[0]
    self.chat_template, self.special_tokens = self._roles.chat_template, self._roles.texts
    self._prepare()

  def _prepare(self) -> None:
    """Sets up the attributes that are not pickled."""
    self._tokenizer.encode_special_tokens = True
    self._bytes = TokenBytes(self._tokenizer)
    self._cuts: Cuts | None = cuts_of(self._tokenizer)
    self._parsing: tokenizers.Tokenizer | None = None  # a copy that parses special tokens; created on first use

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in ("_bytes", "_cuts", "_parsing")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._prepare()

  def encode(self, text: str, special_tokens: bool = False) -> list[int]:
    if special_tokens:
      if self._parsing is None:
        self._parsing = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
      return _encode(self._parsing, text)
    if self._cuts is None:
      return _encode(self._tokenizer, text)
    return [one for part in self._cuts.parts(text) for one in _encode(self._tokenizer, part)]

  def decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

  def piece(self, token: int) -> bytes:
    return self._bytes[int(token)]

  def save(self, directory: Path) -> None:
    _save_json(self._tokenizer, directory, self._roles, self._beside)


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
  """Encodes as a batch, which unlike `encode` releases the GIL; the fast variant does not compute offsets."""
  return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _parsed(file: epath.Path) -> tokenizers.Tokenizer:
  text = read_text(file)
  try:
    with kept_from_stderr():
      return tokenizers.Tokenizer.from_str(text)
  except BaseException as error:  # a panic in Rust is not an Exception
    if not is_failure(error):
      raise
    raise FileError(f"{file}: not a readable tokenizer.json ({error})") from error


def is_failure(error: BaseException) -> bool:
  """Whether an error may come from the library tokenizers: an Exception, or a panic of its Rust code."""
  return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def train_bpe(texts: Iterable[str], vocab_size: int, directory: str | Path, whole: Sequence[str] = ()) -> JsonTokenizer:
  """Trains byte-level BPE with separate digits (as SmolLM's), and saves it. The same texts give the same file.

  Args:
    texts: to learn merges from.
    vocab_size: number of ids, at least 257 (EOS, which is id 0, and the bytes) plus one for each of `whole`; too little
      text gives fewer.
    directory: where tokenizer.json and tokenizer_config.json are saved.
    whole: strings that are always one token, however rare they are.

  Raises:
    ConfigError: if `vocab_size` is too small.
  """
  needed = 257 + len(whole)
  if vocab_size < needed:
    raise ConfigError(
      f"vocab_size is {vocab_size}; it must be at least {needed}, for the bytes, EOS and {len(whole)} strings"
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  eos = KNOWN_EOS[0]
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - len(whole),
    special_tokens=[eos],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_tokens([tokenizers.AddedToken(string, normalized=False) for string in whole])
  _save_json(tokenizer, Path(directory), Roles(eos, (0,)))
  return JsonTokenizer(Path(directory) / "tokenizer.json")


def load_tokenizer(spec: str | Path) -> Tokenizer:
  """The tokenizer that `spec` names: "byte", the path of a tokenizer.json, or a directory that holds a saved one.

  Raises:
    ConfigError: naming the path, if there is none.
    FileError: if it cannot be read.
  """
  if spec == "byte":
    return ByteTokenizer()
  path = epath.Path(spec).expanduser()
  if not path.exists():
    raise ConfigError(f'{path}: there is no such file or directory; name a tokenizer.json, its directory, or "byte"')
  if not path.is_dir():
    return JsonTokenizer(path)
  if (path / "tokenizer.json").exists():
    return JsonTokenizer(path / "tokenizer.json")
  if read_object(path / ROLES).get("tokenizer_class") == "ByteTokenizer":
    return ByteTokenizer()
  raise ConfigError(f"{path}: no tokenizer here (neither tokenizer.json nor a saved byte tokenizer)")


def _save_json(
  tokenizer: tokenizers.Tokenizer, directory: Path, roles: Roles, beside: Mapping[str, str] | None = None
) -> None:
  """Writes a tokenizer and its companion files, in which the special tokens are set to `roles`."""
  beside = beside or {}
  config = json.loads(beside.get(ROLES, '{"tokenizer_class": "PreTrainedTokenizerFast"}'))
  for role, token in (("eos_token", roles.eos), ("bos_token", roles.bos)):
    if role not in config or token_text(config[role]) != token:
      config[role] = token
  files = {name: text.removesuffix("\n") for name, text in beside.items()}
  generation = json.loads(files.get(GENERATION, "{}"))
  if not {*roles.eos_ids} <= {roles.eos_ids[0], *token_ids(generation, "eos_token_id")}:  # they came from a config.json
    files[GENERATION] = json.dumps({**generation, "eos_token_id": list(roles.eos_ids)}, indent=2)
  for name in files.keys() - {ROLES}:
    _write(directory / name, files[name])
  _write(directory / ROLES, json.dumps(config, indent=2, ensure_ascii=False))
  # Last, so that its special tokens exist if it does.
  _write(directory / "tokenizer.json", tokenizer.to_str(pretty=True))


def _write(path: Path, text: str) -> None:
  """Writes a file atomically, creating its directory."""
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  replace_whole(path, text + "\n")
