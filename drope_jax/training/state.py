"""The first state of a run: its shapes and shardings, initialised from a seed, or from another run's checkpoint."""

import logging
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from drope_jax import checkpoint, drope
from drope_jax.additions import ADDITIONS, with_additions
from drope_jax.checkpoint import SavedStep, TrainState
from drope_jax.model import init_params
from drope_jax.model_config import ModelConfig
from drope_jax.optim import carried_over, make_optimizer
from drope_jax.parameters import Params, parameter_specs
from drope_jax.training.run import Run

logger = logging.getLogger(__name__)


def abstract_state(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings: moments are sharded like their parameters, everything else is replicated."""
  params = checkpoint.abstract_params(model, mesh)
  everywhere = NamedSharding(mesh, PartitionSpec())
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda moment, param: moment if isinstance(moment, optax.MaskedNode) else param,
    jax.eval_shape(optimizer.init, params),
    params,
    is_leaf=lambda node: isinstance(node, optax.MaskedNode),  # for a parameter of another optimizer in optax.partition
    transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
  )
  return TrainState(params, opt_state)


def fresh_state(
  model: ModelConfig, optimizer: optax.GradientTransformation, abstract: TrainState, seed: int
) -> TrainState:
  """Parameters initialised from `seed`, and an optimizer state, created with the shardings of `abstract`."""

  def draw(key: jax.Array) -> TrainState:
    params = init_params(model, key)
    return TrainState(params, optimizer.init(params))

  return jax.jit(draw, out_shardings=_shardings(abstract))(jax.random.key(seed))


def state_from_init(run: Run, mesh: Mesh, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
  """The weights of `config.init` with the new parts that it adds, and an optimizer state, fresh or carried over."""
  init = run.config.init
  assert init is not None and run.source is not None
  found = checkpoint.open_step(init.checkpoint, init.step)
  params = found.params(mesh)
  if init.qk_norm is not None:
    _, params = drope.insert_qk_norm(found.model, params, init.qk_norm)
  params = with_additions(params, parameter_specs(run.model))
  added = [field for field in ADDITIONS if getattr(init, field)]
  logger.info(
    "weights: from %s, step %d; transition %s, QK-norm %s, %soptimizer state %s",
    init.checkpoint,
    found.step,
    init.transition,
    "inserted" if init.qk_norm else "as it was",
    "".join(f"{field} added (all zero), " for field in added),
    "kept" if init.keep_optimizer else "fresh",
  )
  shardings = _shardings(abstract)
  params = jax.device_put(params, shardings.params)
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
  if init.keep_optimizer:
    assert found.config is not None  # see run.resolve
    theirs = make_optimizer(found.config.optim, found.model, found.config.steps)
    state = found.optimizer_state(abstract_state(found.model, theirs, mesh).opt_state)
    opt_state = carried_over(opt_state, state)
  return TrainState(params, opt_state)


def open_teacher(run: Run, step: int | None) -> SavedStep | None:
  """The checkpoint that holds the objective's frozen weights; None if it asks for none.

  Args:
    step: the step that an earlier start of the run used; None: as the config says.
  """
  whose, init = run.config.objective.frozen(), run.config.init
  if whose is None:
    return None
  if whose == "init":
    assert init is not None  # see TrainConfig
    return checkpoint.open_step(init.checkpoint, init.step if step is None else step)
  return checkpoint.open_step(whose, step)


def abstract_frozen(run: Run, mesh: Mesh) -> Params | None:
  """Shapes, dtypes and shardings of the objective's frozen weights, if it has any."""
  return None if run.teacher is None else checkpoint.abstract_params(run.teacher, mesh)


def _shardings(abstract: TrainState) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)
