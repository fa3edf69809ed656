"""The learning-rate schedule, and the complete chain of transformations from gradients to updates."""

from typing import Any

import jax
import optax

from drope_jax.config import OptimConfig
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import parameter_specs


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
  """The learning-rate schedule: linear warmup, then cosine, constant with a linear decay at the end, or constant.

  Args:
    steps: optimizer steps of the whole run.
  """
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
  # Warmup rises in warmup + 1 equal increments, so that the first step already has a learning rate above 0.
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
  """The optimizer state of a new run, with the moments of another run's state of the same optimizer.

  The learning-rate schedule starts again. Moments of parameters that the other run lacks (an inserted QK-norm) stay
  fresh.

  Args:
    fresh, source: states of `make_optimizer`, of the new run and of the other one.
  """
  found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(source[:-1])}
  carried = jax.tree.map_with_path(lambda path, leaf: found.get(jax.tree_util.keystr(path), leaf), fresh[:-1])
  return (*carried, fresh[-1])
