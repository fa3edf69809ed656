"""Objectives for tests: evaluated outside of a run, without a model, and one that spoils a run."""

import dataclasses

import jax.numpy as jnp

from drope_jax.config import ComputeConfig, DataConfig, OptimConfig, TrainConfig
from drope_jax.objective import NextToken, Objective
from drope_jax.training.run import Run
from drope_jax.training.step import MicroBatch, step_number


def sums(objective, model, params, batch, compute=None, *, source=None, frozen=None, step=0, steps=10, init=None):
  """The sum to differentiate and the sums to report, at a step of a run of `model` (see Run for `source`)."""
  config = TrainConfig(
    model=model,
    init=init,
    objective=objective,
    data=DataConfig(directory="none", context=16, batch_size=8),
    optim=OptimConfig(peak_lr=1e-3),
    compute=compute or ComputeConfig(dtype="float32"),
    steps=steps,
  )
  number = step_number(step) if isinstance(step, int) else step
  return objective(MicroBatch(Run(config, model, source), params, frozen, batch, number))


@dataclasses.dataclass(unsafe_hash=True)
class Pull(Objective):
  """Pulls the embeddings of the targets towards one; it needs no model, whose tracing would take most of the time."""

  def __call__(self, inputs):
    total = (((inputs.params["embedding"][inputs.targets_BT] - 1) ** 2).sum(-1) * inputs.weights_BT).sum()
    return total, {"nll": total, "tokens": inputs.weights_BT.sum()}


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class PoisonedSteps(NextToken):
  """Next-token loss that is NaN at these steps, counted from 1, as after a bad batch."""

  steps: tuple[int, ...] = ()

  def __call__(self, inputs):
    total, sums = super().__call__(inputs)
    factor = jnp.where(jnp.isin(inputs.step + 1, jnp.array(self.steps)), jnp.nan, 1.0)
    return total * factor, {**sums, "nll": sums["nll"] * factor}
