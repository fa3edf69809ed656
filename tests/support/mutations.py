"""Damaged files: random bytes, and seeded mutations of whole ones (bits, lengths, ends, values of JSON)."""

import json
import random
import struct
from typing import Any

_LENGTHS = (0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
_VALUES = (None, True, False, 0, 1, -1, 2, 10**6, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, "", "x", "\ud800", [], {})
_VALUES += ([None], [[0, 1]], {"a": {}}, [0] * 40, "a b", "<0x41>", "\n", float("inf"), float("nan"))


def mutated_bytes(content: bytes, rng: random.Random, header: int) -> bytes:
  """The content with one fault, mostly within its first `header` bytes.

  Args:
    header: size of the part with lengths and names; the rest are numbers, where any change is valid.
  """
  data, at = bytearray(content), rng.randrange(max(1, min(header, len(content))))
  kind = rng.choice(("bit", "byte", "length", "length", "short length", "cut", "gap", "insert", "random"))
  if kind == "bit":
    data[at] ^= 1 << rng.randrange(8)
  elif kind == "byte":
    data[at] = rng.choice((0, 1, 9, 0x22, 0x2C, 0x7B, 0x7F, 0x80, 0xFF))
  elif kind == "length":
    data[at : at + 8] = struct.pack("<Q", rng.choice(_LENGTHS))
  elif kind == "short length":
    data[at : at + 4] = struct.pack("<I", rng.choice(_LENGTHS) & 0xFFFFFFFF)
  elif kind == "cut":
    del data[rng.choice((at, rng.randrange(len(data)), len(data) - 1)) :]
  elif kind == "gap":
    del data[at : at + rng.randrange(1, 40)]
  elif kind == "insert":
    data[at:at] = rng.randbytes(rng.randrange(1, 40))
  else:
    data[:] = data[: rng.choice((0, 4, 8, 24))] + rng.randbytes(rng.randrange(400))
  return bytes(data)


def mutated_json(text: str, rng: random.Random) -> str:
  """The text of a JSON object with one value or key replaced, removed or repeated."""
  root = json.loads(text)
  places = list(_places(root))
  parent, key = rng.choice(places)
  # Prefer small objects: the entries of large ones (a vocabulary) are mostly alike.
  for _ in range(rng.randrange(3)):
    parent, key = min((parent, key), rng.choice(places), key=lambda place: len(place[0]))
  kind = rng.choice(("value", "value", "value", "without", "renamed"))
  if kind == "value":
    parent[key] = rng.choice(_VALUES)
  elif kind == "without":
    del parent[key]
  elif isinstance(parent, dict):
    parent[rng.choice(("", "type", "x", key + "_"))] = parent.pop(key)
  else:
    parent.append(parent[key])
  return json.dumps(root)


def _places(node: Any):
  """Every object or list in a value, with each of its keys or indices."""
  for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
    yield node, key
    if isinstance(value, dict | list):
      yield from _places(value)
