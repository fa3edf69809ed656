"""A small model and run for tests of configs that compute nothing."""

from drope_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

SHAPE = dict(vocab_size=11, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=24)


def model(**changes):
  return ModelConfig(**{**SHAPE, **changes})


def run(**changes):
  defaults = dict(model=model(), data=DataConfig(directory="d", context=8, batch_size=4), steps=10)
  return TrainConfig(**{**defaults, "optim": OptimConfig(peak_lr=1e-3), **changes})
