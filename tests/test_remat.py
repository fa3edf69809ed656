"""What the backward pass keeps by name: its bytes, the kernel that does not run twice, the gradient that stays."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gpu import lowered, on_h200
from support.tiny_decoder import random_params, random_tokens, tiny

from drope_jax.model import hidden_states, init_params
from drope_jax.model_config import KEPT, ComputeConfig
from drope_jax.remat import bytes_per_token

ROWS, LENGTH = 2, 16
CONFIG = tiny(num_layers=3)


def total(params, compute):
  return (hidden_states(params, CONFIG, random_tokens(ROWS, LENGTH), compute=compute)[0] ** 2).sum()


def saved(scan_layers: bool, **settings) -> int:
  """Bytes that the forward pass leaves to the backward pass."""
  compute = ComputeConfig(dtype="bfloat16", attention="blockwise", scan_layers=scan_layers, **settings)
  params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
  pullback = jax.eval_shape(lambda params: jax.vjp(functools.partial(total, compute=compute), params)[1], params)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))


@pytest.mark.parametrize("names", [("qkv",), ("attention",), ("mlp",), KEPT], ids=str)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_names_take_the_bytes_that_are_said(names, scan_layers):
  added = saved(scan_layers, remat="full", remat_keep=names) - saved(scan_layers, remat="full")
  assert added == sum(bytes_per_token(name, CONFIG) for name in names) * ROWS * LENGTH * CONFIG.num_layers


@pytest.mark.parametrize("settings", [{"remat_keep": KEPT}, {"remat_offload": ("input", "mlp")}])
def test_what_is_kept_changes_no_gradient(settings):
  params = random_params(CONFIG)
  gradient = jax.jit(jax.grad(total), static_argnums=1)
  found = gradient(params, ComputeConfig(remat="full", **settings))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, gradient(params, ComputeConfig())
  )


def used_kernels(program: str) -> int:
  """Kernels of a lowered program whose results something in their function reads: XLA removes the others."""
  used = 0
  for function in program.split("func.func"):
    results = re.findall(r"(%\w+)(?::\d+)? = stablehlo.custom_call @__", function)
    used += sum(len(re.findall(rf"{result}\b", function)) > 1 for result in results)
  return used


@pytest.mark.parametrize("document_mask", [False, True], ids=["cudnn", "triton"])
def test_a_kernel_whose_result_is_kept_runs_once(document_mask):
  config, tokens = tiny(num_layers=1, head_dim=8), random_tokens(ROWS, LENGTH)

  def loss(params, compute):
    segments = jnp.zeros_like(tokens) if document_mask else None
    return hidden_states(params, config, tokens, compute=compute, segments_BT=segments)[0].astype(jnp.float32).sum()

  def calls(**settings) -> int:
    compute = ComputeConfig(remat="full", **settings)
    with on_h200():
      params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
      return used_kernels(lowered(jax.grad(functools.partial(loss, compute=compute)), params))

  backward = 2 if document_mask else 1
  assert calls() == 2 + backward  # forward, forward again, backward
  assert calls(remat_keep=("attention",)) == 1 + backward
