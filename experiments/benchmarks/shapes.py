"""The shapes that benchmarks measure, by name: a model, the tokens per row, and the rows of a training step."""

from typing import NamedTuple

from drope_jax.config import ModelConfig
from drope_jax.errors import ConfigError
from experiments.configs import pretrain, recalibrate


class Shape(NamedTuple):
  """A model with its context T in tokens and its batch size B in rows."""

  model: ModelConfig
  context: int
  batch_size: int


def _square(vocab: int, width: int, layers: int, heads: int, d_ff: int) -> ModelConfig:
  """A model without grouped queries whose heads fill its width."""
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

# The first three are for a CPU. For the others, set `--batch` to the rows that fit on a GPU together with torch's side.
SHAPES = {
  "tiny": Shape(_square(64, 16, 2, 2, 32), 16, 2),  # for tests of the benchmarks
  "1m": Shape(_square(1024, 128, 4, 4, 384), 128, 32),
  "30m": Shape(_square(8192, 512, 8, 8, 1408), 256, 8),
  "smollm2_135m": Shape(recalibrate.BASES["smollm2_135m"].model, 2048, 8),
  "494m": Shape(_PAPER, 1024, 16),
  "smollm_1.7b": Shape(recalibrate.BASES["smollm_1_7b"].model, 2048, 8),
}


def shape_named(name: str) -> Shape:
  """The shape with this name. Raises ConfigError if there is none."""
  if name not in SHAPES:
    raise ConfigError(f"--shapes has {name!r}; allowed: {', '.join(SHAPES)}")
  return SHAPES[name]
