"""Measured lengths, in tokens and as multiples of the training context."""

from typing import Protocol


class Lengths(Protocol):
  """Whatever knows the training context: the records of a study, or a summary of several."""

  @property
  def train_context(self) -> int:
    """C, in tokens."""

  def extension(self, context: float) -> float:
    """A length as a multiple of C."""


def at_length(name: str, context: int) -> str:
  """`loss (nats per token) at 256 tokens`, the name of a CSV column."""
  return f"{name} at {context} tokens"


def show_length(lengths: Lengths, context: int) -> str:
  """`2× (256)`."""
  return f"{lengths.extension(context):g}× ({context:,})"
