"""An objective of one micro-batch, outside of a run; and one that needs no model."""

import dataclasses

from drope_jax.config import ComputeConfig, DataConfig, OptimConfig, TrainConfig
from drope_jax.objective import Objective
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
  """The embeddings of the targets are pulled towards one: to trace a whole model would take most of a start."""

  def __call__(self, inputs):
    total = (((inputs.params["embedding"][inputs.targets_BT] - 1) ** 2).sum(-1) * inputs.weights_BT).sum()
    return total, {"nll": total, "tokens": inputs.weights_BT.sum()}
