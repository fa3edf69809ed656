"""The train step of a config as lowered text, for accelerators that are not here."""

import jax
import jax.numpy as jnp

from drope_jax.checkpoint import TrainState
from drope_jax.optim import make_optimizer
from drope_jax.parameters import map_specs
from drope_jax.sharding import named_sharding
from drope_jax.training.run import Run
from drope_jax.training.step import make_train_step, step_number


def lower(config, mesh, platform="tpu"):
  """The train step of a config, which must have its model, lowered for a platform, as text."""
  return lower_run(Run(config, config.model), mesh, platform)


def lower_run(run, mesh, platform="tpu"):
  """The train step of a run, with the weights of its teacher if it has one, as text."""
  return lowered_run(run, mesh, platform).as_text()


def lowered_run(run, mesh, platform="tpu"):
  """The same as JAX has it lowered, with its inputs' shapes: (state, batch, step, the teacher's weights)."""
  with jax.sharding.use_abstract_mesh(mesh):
    return traced_run(run, mesh).lower(lowering_platforms=(platform,))


def traced_run(run, mesh):
  """The same traced, for whichever platform."""
  config = run.config

  def abstract(spec):
    return jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=named_sharding(mesh, spec.dimensions))

  params = map_specs(abstract, config.model)
  optimizer = make_optimizer(config.optim, config.model, config.steps)
  state = TrainState(params, jax.eval_shape(optimizer.init, params))
  rows = (config.data.batch_size, config.data.context + 1)
  names = ("tokens", "segments", "positions") if config.data.document_mask else ("tokens",)
  batch = dict.fromkeys(names, jax.ShapeDtypeStruct(rows, jnp.int32, sharding=named_sharding(mesh, ("batch",))))
  frozen = None if run.teacher is None else map_specs(abstract, run.teacher)
  step = jax.jit(make_train_step(run, optimizer, config.objective), donate_argnums=0)
  with jax.sharding.use_abstract_mesh(mesh):
    return step.trace(state, batch, step_number(0), frozen)
