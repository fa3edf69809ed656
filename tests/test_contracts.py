"""What every experiment config promises: it builds, its docstring's numbers are true, and its train step lowers."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from drope_jax.checkpoint import TrainState
from drope_jax.config import ConfigError, checked
from drope_jax.drope import drop
from drope_jax.metrics import flops_per_token
from drope_jax.model import count_parameters, map_specs
from drope_jax.optim import make_optimizer
from drope_jax.sharding import AXES, named_sharding
from drope_jax.train import make_train_step
from experiments.configs import pretrain


@pytest.mark.parametrize("arg", [arg for arg in pretrain.ARGS if arg != "drope"])
def test_the_train_step_of_every_config_lowers_on_an_abstract_mesh(arg):
  config = checked(pretrain.get_config(arg))
  mesh = AbstractMesh((2, 4, 2, 1), AXES, axis_types=(AxisType.Auto,) * 4)

  def abstract(spec):
    return jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=named_sharding(mesh, spec.dimensions))

  params = map_specs(abstract, config.model)
  optimizer = make_optimizer(config.optim, config.model, config.steps)
  state = TrainState(params, jax.eval_shape(optimizer.init, params))
  rows = (config.data.batch_size, config.data.context + 1)
  batch = {"tokens": jax.ShapeDtypeStruct(rows, jnp.int32, sharding=named_sharding(mesh, ("batch",)))}
  step = jax.jit(make_train_step(config, optimizer), donate_argnums=0)
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = step.trace(state, batch).lower(lowering_platforms=("tpu",))
  assert "sharding" in lowered.as_text()


def test_the_numbers_in_the_docstring_are_those_of_the_model():
  config = pretrain.get_config("rope")
  parameters = count_parameters(config.model)
  embedding = config.model.vocab_size * config.model.d_model
  per_token = flops_per_token(config.model, config.data.context)
  per_run = per_token * config.data.context * config.data.batch_size * config.steps
  text = pretrain.__doc__
  assert f"{parameters / 1e6:.1f}M ({(parameters - embedding) / 1e6:.1f}M without the embedding)" in text
  assert f"{per_token:.3e}".replace("e+0", "e") in text
  assert f"a 16,000-step run: {per_run:.2e}".replace("e+", "e") in text


@pytest.mark.parametrize("arg", [arg for arg in pretrain.ARGS])
def test_the_tokens_in_the_docstring_are_those_of_the_run(arg):
  config = pretrain.get_config(arg)
  tokens = config.steps * config.data.batch_size * config.data.context
  row = re.search(rf"^\| {arg} .*$", pretrain.__doc__, re.MULTILINE).group()
  assert f"{config.steps:,}" in row
  assert f"{tokens / 1e9:.1f}B" in row


def test_dropping_any_of_them_leaves_the_parameters_alone():
  model = pretrain.get_config("rope").model
  assert map_specs(lambda s: s.shape, drop(model)) == map_specs(lambda s: s.shape, model)


def test_an_unknown_argument_is_refused_by_name():
  with pytest.raises(ConfigError, match="no 'rop'"):
    pretrain.get_config("rop")
