"""One training step: micro-batches add up exactly, and how the layers run changes no loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny_run import tiny_model, tiny_run

from drope_jax.checkpoint import TrainState
from drope_jax.config import ComputeConfig
from drope_jax.data.pipeline import train_batches
from drope_jax.model import init_params
from drope_jax.training.run import resolve
from drope_jax.training.step import make_train_step, step_number


@pytest.fixture(scope="module")
def params():
  return jax.jit(functools.partial(init_params, tiny_model(init_std=0.2)))(jax.random.key(0))


def steps(config, optimizer, params, batches):
  """The state after a step on each of `batches`, and the reports."""
  run = resolve(config)
  step = jax.jit(make_train_step(run, optimizer, config.objective))
  state, reports = TrainState(params, optimizer.init(params)), []
  for number, batch in enumerate(batches):
    state, report = step(state, batch, step_number(number), None)
    reports.append(jax.device_get(report))
  return state, reports


@pytest.mark.parametrize(("document_mask", "accumulation"), [(False, 8), (True, 2)])
def test_accumulation_changes_nothing(corpus, params, document_mask, accumulation):
  whole = tiny_run(corpus, data={"document_mask": document_mask})
  batch = next(train_batches(whole.data, seed=0))
  if document_mask:
    real = (batch["segments"][:, 1:] == batch["segments"][:, :-1]).sum(axis=1)
    assert len({int(real[part::accumulation].sum()) for part in range(accumulation)}) > 1  # they weigh differently
  # With plain descent at rate 1 the new weights show the gradient; Adam would hide its length.
  one, (report,) = steps(whole, optax.sgd(1.0), params, [batch])
  config = tiny_run(corpus, data={"document_mask": document_mask}, optim={"accumulation": accumulation})
  several, (accumulated,) = steps(config, optax.sgd(1.0), params, [batch])
  assert float(abs(one.params["embedding"] - params["embedding"]).max()) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, several.params)
  assert accumulated["tokens"] == report["tokens"]
  assert accumulated["loss"] == pytest.approx(report["loss"], rel=1e-6)
  assert accumulated["grad_norm"] == pytest.approx(report["grad_norm"], rel=1e-5)


@pytest.fixture(scope="module")
def plain_losses(corpus, params):
  return three_losses(corpus, params)


def three_losses(corpus, params, **compute):
  config = tiny_run(corpus, compute=ComputeConfig(**{"dtype": "float32", **compute}))
  stream = train_batches(config.data, seed=0)
  state, reports = steps(config, optax.sgd(0.5), params, [next(stream) for _ in range(3)])
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
  return [float(report["loss"]) for report in reports]


# The other ways are in test_model.py: one function with one gradient.
@pytest.mark.parametrize("compute", [{"remat": "full"}, {"remat": "dots", "scan_layers": False}])
def test_how_layers_run_changes_no_loss(corpus, params, plain_losses, compute):
  assert three_losses(corpus, params, **compute) == pytest.approx(plain_losses, rel=1e-5)


@pytest.mark.slow
def test_bfloat16_computes_on_float32_weights(corpus, params, plain_losses):
  found = three_losses(corpus, params, dtype="bfloat16")
  assert found != plain_losses
  assert found == pytest.approx(plain_losses, rel=1e-2)
