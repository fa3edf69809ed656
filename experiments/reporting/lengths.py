"""Lengths of what was measured: in tokens, and as multiples of the training context."""

from typing import Protocol


class Lengths(Protocol):
  """Records of a study or a summary of several: both know the training context."""

  @property
  def train_context(self) -> int:
    """C, in tokens."""

  def extension(self, context: float) -> float:
    """A length as a multiple of C."""


def at_length(name: str, context: int) -> str:
  """`loss (nats per token) at 256 tokens`, as a CSV names a column."""
  return f"{name} at {context} tokens"


def show_length(lengths: Lengths, context: int) -> str:
  """`2× (256)`."""
  return f"{lengths.extension(context):g}× ({context:,})"
