"""AdamW, its schedules, and which parameters decay."""

import optax

from drope_jax.config import ModelConfig, OptimConfig
from drope_jax.model import map_specs


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
  """The learning rate of each step: linear warmup, then cosine, stable-then-linear-decay, or constant."""
  peak, warmup = config.peak_lr, config.warmup_steps
  floor = 0.1 if config.floor is None else config.floor
  after = steps - warmup
  match config.schedule:
    case "cosine":
      main = optax.cosine_decay_schedule(peak, max(after, 1), alpha=floor)
    case "wsd":
      decay = optax.linear_schedule(peak, floor * peak, config.decay_steps)
      main = optax.join_schedules([optax.constant_schedule(peak), decay], [after - config.decay_steps])
    case _:
      main = optax.constant_schedule(peak)
  # The first step already moves: it takes the first of warmup + 1 equal rises.
  rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  return optax.join_schedules([rise, main], [warmup]) if warmup else main


def make_optimizer(config: OptimConfig, model: ModelConfig, steps: int) -> optax.GradientTransformation:
  """Clip by global norm, Adam, decoupled weight decay on what `parameter_specs` marks, scheduled learning rate."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(config.beta1, config.beta2, config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=map_specs(lambda spec: spec.decay, model)),
    optax.scale_by_learning_rate(learning_rate(config, steps)),
  )
