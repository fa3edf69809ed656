"""Tokenizers: bytes, any `tokenizer.json`, and one trained on the spot.

Wherever a tokenizer is asked for by name, the name is "byte" or a path; `load_tokenizer` reads it. A tokenizer can be
saved beside a checkpoint, and that directory is a name again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from drope_jax.errors import ConfigError
from drope_jax.files import replace_whole

# What released models call them, for a tokenizer.json that comes without its tokenizer_config.json.
KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
KNOWN_BOS = ("<|begin_of_text|>", "<s>", "<bos>")

ROLES = "tokenizer_config.json"  # what says which tokens these are
# What else a released tokenizer comes with; we read none of it, and keep it for those who do.
COMPANIONS = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json")


class Tokenizer(Protocol):
  """Text to token ids below `vocab_size`, and back; picklable, since data workers receive a copy."""

  vocab_size: int
  eos_id: int  # ends a document
  bos_id: int | None  # begins one, where the model was trained with it

  def encode(self, text: str) -> list[int]:
    """The ids of `text`: no EOS, no BOS, even if it spells them out."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`; EOS, BOS and other special tokens leave no trace."""

  def save(self, directory: Path) -> None:
    """Writes what `load_tokenizer(directory)` reads back."""


class ByteTokenizer:
  """UTF-8 bytes, shifted by one: id 0 is EOS, and byte b is id b + 1."""

  vocab_size: int = 257
  eos_id: int = 0
  bos_id: int | None = None

  def encode(self, text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]

  def decode(self, ids: Sequence[int]) -> str:
    # A model may have more ids than there are tokens; those have no text.
    return bytes(i - 1 for i in ids if 0 < i < self.vocab_size).decode(errors="replace")

  def save(self, directory: Path) -> None:
    _write(directory / ROLES, json.dumps({"tokenizer_class": "ByteTokenizer"}))


class JsonTokenizer:
  """A `tokenizer.json` as Hugging Face publishes it.

  The file does not say which tokens end and begin a document. That is read from the `tokenizer_config.json` beside it,
  else guessed from KNOWN_EOS and KNOWN_BOS. A text that spells a special token out is read as text: a document cannot
  end itself.

  Args:
    path: the tokenizer.json.
    eos: the token that ends a document, if the files do not say or say otherwise.
    bos: likewise the token that begins one.

  Raises:
    ConfigError: naming `path`, if it cannot be read or has no EOS.
  """

  def __init__(self, path: str | Path, eos: str | None = None, bos: str | None = None):
    file = epath.Path(path)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
      raise ConfigError(f"{path}: not a readable tokenizer.json ({error})") from error
    ids = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = max(ids.values()) + 1
    roles = _roles(file.with_name(ROLES))
    beside = {name: file.with_name(name) for name in (ROLES, *COMPANIONS)}
    self._beside = {name: one.read_text(encoding="utf-8") for name, one in beside.items() if one.exists()}
    eos = eos or roles.get("eos_token") or next((token for token in KNOWN_EOS if token in ids), None)
    bos = bos or roles.get("bos_token") or next((token for token in KNOWN_BOS if token in ids), None)
    if eos is None:
      raise ConfigError(f"{path}: no end-of-document token; name one as eos_token in a tokenizer_config.json beside it")
    for token in filter(None, (eos, bos)):
      if token not in ids:
        raise ConfigError(f"{path}: the special token {token!r} is not in the vocabulary")
    self._eos, self._bos = eos, bos
    self.eos_id: int = ids[eos]
    self.bos_id: int | None = ids[bos] if bos else None
    self._tokenizer.encode_special_tokens = True

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._tokenizer.encode_special_tokens = True  # lost in pickling

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

  def save(self, directory: Path) -> None:
    _save_json(self._tokenizer, directory, self._eos, self._bos, self._beside)


def train_bpe(texts: Iterable[str], vocab_size: int, directory: str | Path, whole: Sequence[str] = ()) -> JsonTokenizer:
  """Trains byte-level BPE, digits apart (as SmolLM's), and saves it. The same texts give the same file.

  Args:
    texts: what to learn merges from.
    vocab_size: ids in all, at least 257 (EOS, which is id 0, and the bytes) and one for each of `whole`; fewer come out
      of too little text.
    directory: where tokenizer.json and tokenizer_config.json go.
    whole: strings that are one token wherever they occur, however rare they are in the texts.
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
  _save_json(tokenizer, Path(directory), eos, None)
  return JsonTokenizer(Path(directory) / "tokenizer.json")


def load_tokenizer(spec: str | Path) -> Tokenizer:
  """The tokenizer that `spec` names: "byte", the path of a tokenizer.json, or a directory that holds a saved one.

  Raises:
    ConfigError: naming the path, if there is none.
  """
  if spec == "byte":
    return ByteTokenizer()
  path = epath.Path(spec)
  if not path.is_dir():
    return JsonTokenizer(path)
  if (path / "tokenizer.json").exists():
    return JsonTokenizer(path / "tokenizer.json")
  if _roles(path / ROLES).get("tokenizer_class") == "ByteTokenizer":
    return ByteTokenizer()
  raise ConfigError(f"{path}: no tokenizer here (neither tokenizer.json nor a saved byte tokenizer)")


def _roles(path: Path) -> dict[str, str]:
  """The strings of a tokenizer_config.json; a special token may be written as an object with its text as `content`."""
  try:
    config = json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: not readable ({error})") from error
  return _strings(config)


def _strings(config: dict[str, Any]) -> dict[str, str]:
  texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
  return {key: text for key, text in texts.items() if isinstance(text, str)}


def _save_json(
  tokenizer: tokenizers.Tokenizer, directory: Path, eos: str, bos: str | None, beside: Mapping[str, str] | None = None
) -> None:
  """Writes a tokenizer, and what lay beside it where it was read; the roles there say what they are here."""
  beside = beside or {}
  config = json.loads(beside.get(ROLES, '{"tokenizer_class": "PreTrainedTokenizerFast"}'))
  said = _strings(config)
  for role, token in (("eos_token", eos), ("bos_token", bos)):
    if said.get(role) != token:
      config[role] = token
  for name in beside.keys() - {ROLES}:
    _write(directory / name, beside[name].removesuffix("\n"))
  _write(directory / ROLES, json.dumps(config, indent=2, ensure_ascii=False))
  _write(directory / "tokenizer.json", tokenizer.to_str(pretty=True))  # last: where it is, its roles are too


def _write(path: Path, text: str) -> None:
  """Writes all of a file or nothing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  replace_whole(path, text + "\n")
