"""The bytes that each token of a `tokenizer.json` stands for.

A token may be a part of a character, so decoding single tokens does not give their bytes: incomplete characters become
replacement characters. The bytes follow from the token's entry in the vocabulary and the kind of decoder.
"""

import functools
import json
import re
from typing import Any

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # the name of a byte under byte fallback
_BEFORE = "a"  # decoded before a piece, because some decoders drop a space at the start of a text


class TokenBytes:
  """Maps ids to bytes; special tokens and unused ids have no bytes."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._tokenizer = tokenizer
    self._added = tokenizer.get_added_tokens_decoder()
    kinds = _kinds(json.loads(tokenizer.to_str())["decoder"])
    self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
    self._known: dict[int, bytes] = {}

  def __getitem__(self, token: int) -> bytes:
    if token not in self._known:
      self._known[token] = self._spelled(token)
    return self._known[token]

  def _spelled(self, token: int) -> bytes:
    if token in self._added:
      added = self._added[token]
      return b"" if added.special else added.content.encode()
    piece = self._tokenizer.id_to_token(token)
    if piece is None:
      return b""
    if self._byte_level:
      table = _bytes_of_characters()
      return bytes(table[one] for one in piece) if all(one in table for one in piece) else piece.encode()
    byte = _BYTE.fullmatch(piece) if self._byte_fallback else None
    if byte is not None:
      return bytes([int(byte[1], 16)])
    decoder = self._tokenizer.decoder
    if decoder is None:  # tokens are words, separated by spaces
      return f" {piece}".encode()
    return decoder.decode([_BEFORE, piece])[len(decoder.decode([_BEFORE])) :].encode()


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
  """The types of a decoder and its components."""
  if decoder is None:
    return set()
  return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def byte_characters() -> list[str]:
  """The character of each byte in byte-level BPE: itself if it is printable, else the next one from 256 on."""
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
  return {character: byte for byte, character in enumerate(byte_characters())}
