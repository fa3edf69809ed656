"""The learning rate of each step, and the whole chain from gradients to updates."""

from typing import Any

import jax
import optax

from drope_jax.config import OptimConfig
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import parameter_specs


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
  """Clipping by the global norm, the optimizer of `config`, and the scheduled learning rate."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    *config.optimizer.transforms(parameter_specs(model)),
    optax.scale_by_learning_rate(learning_rate(config, steps)),
  )


def carried_over(fresh: Any, source: Any) -> Any:
  """The state of a new run's optimizer with what `source`, that of another run of the same optimizer, has for it.

  The count of the learning rate starts again. Moments of weights that the source does not have (an inserted QK-norm)
  stay as they are.

  Args:
    fresh, source: states of `make_optimizer`.
  """
  found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(source[:-1])}
  carried = jax.tree.map_with_path(lambda path, leaf: found.get(jax.tree_util.keystr(path), leaf), fresh[:-1])
  return (*carried, fresh[-1])
