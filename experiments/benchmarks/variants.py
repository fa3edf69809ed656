"""What is measured on a card: variants, as one writes them and as they are read, and which are compared."""

import dataclasses
from typing import Any, NamedTuple

from drope_jax.config import ComputeConfig
from drope_jax.errors import ConfigError
from experiments.benchmarks.shapes import Shape, shape_named

VARIANTS = (
  "494m:16",
  "torch_compiled:494m:16",
  "smollm2_135m:16",
  "text:smollm2_135m:131072",
  "torch_text:smollm2_135m:131072",
  "smollm_1.7b:8",
  "documents:494m:16",
  "decode:494m:8",
  "kernels:494m:1024",  # heads of 256 among them
  "decode:494m:8:attention=reference",
  "documents:494m:16:attention=blockwise",
  "494m:16:scan_layers=True",
  "494m:32",
  "494m:32:remat=full:remat_keep=attention+qkv",
  "494m:16:remat=dots",
  "torch:494m:16",
)
OURS = ("documents", "decode", "kernels", "text")  # beside the training step, which has no word before its shape
TORCH = {"torch": "ours", "torch_compiled": "ours", "torch_text": "text"}  # and what of ours each is compared with
PLAIN: dict[str, Any] = {"scan_layers": False}


class Variant(NamedTuple):
  """What is measured: "ours", one of OURS or of TORCH, at a shape, with so many rows (of text and kernels: tokens)."""

  text: str
  side: str
  shape: Shape
  size: int
  compute: dict[str, Any]

  @property
  def is_plain(self) -> bool:
    """Whether it has no settings of its own."""
    return self.compute == PLAIN


def parse_variant(text: str) -> Variant:
  """Raises ConfigError, naming what is wrong with it."""
  words = text.split(":")
  side = words.pop(0) if words[0] in (*TORCH, *OURS) else "ours"
  if len(words) < 2 or not words[1].isdigit():
    raise ConfigError(
      f"{text!r} is no variant; allowed: [{'|'.join((*TORCH, *OURS))}:]SHAPE:NUMBER[:SETTING=VALUE ...]"
    )
  known = {field.name for field in dataclasses.fields(ComputeConfig)}
  compute = dict(PLAIN)
  for word in words[2:]:
    name, _, value = word.partition("=")
    if name not in known or not value:
      raise ConfigError(f"{text!r} has {word!r}; allowed: SETTING=VALUE, with SETTING of {', '.join(sorted(known))}")
    if name in ("remat_keep", "remat_offload"):
      compute[name] = tuple(value.split("+"))
    else:
      compute[name] = int(value) if value.isdigit() else {"True": True, "False": False}.get(value, value)
  ComputeConfig(**compute)
  return Variant(text, side, shape_named(words[0]), int(words[1]), compute)


class Comparison:
  """Of torch's variants, how many times as fast ours is that was measured before with as many tokens."""

  def __init__(self) -> None:
    self._speeds: dict[tuple[str, Shape, int], float] = {}

  def of(self, variant: Variant, record: dict[str, Any]) -> dict[str, float]:
    """What is to be added to a record; remembers those of ours without settings."""
    speed = record.get("tokens_per_second")
    if speed is None:
      return {}
    if variant.is_plain and variant.side not in TORCH:
      self._speeds[variant.side, variant.shape, variant.size] = speed
    own = self._speeds.get((TORCH.get(variant.side, ""), variant.shape, variant.size))
    return {} if own is None else {"ours_relative": own / speed}
