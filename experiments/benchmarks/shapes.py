"""What is measured, by name: a model, the tokens of a row, and the rows of a training step."""

from typing import NamedTuple

from drope_jax.config import ModelConfig
from drope_jax.errors import ConfigError
from experiments.configs import pretrain, recalibrate


class Shape(NamedTuple):
  """`context` T in tokens, `batch_size` B in rows."""

  model: ModelConfig
  context: int
  batch_size: int


def _square(vocab: int, width: int, layers: int, heads: int, d_ff: int) -> ModelConfig:
  """A model whose heads share no keys and fill its width."""
  return ModelConfig(
    vocab_size=vocab,
    d_model=width,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=width // heads,
    d_ff=d_ff,
  )


_PAPER = pretrain.get_config("rope").model
assert _PAPER is not None

# The first three for a CPU. Of the others `--batch` sets how many rows a card has room for, with both sides on it.
SHAPES = {
  "tiny": Shape(_square(64, 16, 2, 2, 32), 16, 2),  # for the tests of these programs
  "1m": Shape(_square(1024, 128, 4, 4, 384), 128, 32),
  "30m": Shape(_square(8192, 512, 8, 8, 1408), 256, 8),
  "smollm2_135m": Shape(recalibrate.BASES["smollm2_135m"].model, 2048, 8),
  "494m": Shape(_PAPER, 1024, 16),
  "smollm_1.7b": Shape(recalibrate.BASES["smollm_1_7b"].model, 2048, 8),
}


def shape_named(name: str) -> Shape:
  """Raises ConfigError for a name that is none."""
  if name not in SHAPES:
    raise ConfigError(f"--shapes has {name!r}; allowed: {', '.join(SHAPES)}")
  return SHAPES[name]
