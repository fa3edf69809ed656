"""The building blocks of a layer, as functions of arrays: norm, projection, gated activation, softcap.

`rms_norm` and `project` have hand-written derivatives, which are faster than those that JAX derives but only allow
reverse mode. `JAX_DERIVATIVES` has versions without them, for `jax.jvp`, `jax.linearize` and Hessian-vector products.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: Array, weight: Array, eps: float) -> Array:
  """x / rms(x) * weight, over the trailing axes that `weight` has; in float32, returned in the dtype of `x`.

  The hand-written derivative reads x and its gradient once; JAX's would store and read several arrays of that size.
  """
  return _rms_norm_fwd(x, weight, eps)[0]


def _rms_norm_fwd(x: Array, weight: Array, eps: float) -> tuple[Array, tuple[Array, Array, Array]]:
  axes = tuple(range(-weight.ndim, 0))
  x32 = x.astype(jnp.float32)
  inverse_rms = lax.rsqrt((x32 * x32).mean(axes, keepdims=True) + eps)
  return (x32 * inverse_rms * weight).astype(x.dtype), (x, weight, inverse_rms)


def _rms_norm_bwd(eps: float, saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array]:
  x, weight, inverse_rms = saved
  axes = tuple(range(-weight.ndim, 0))
  normed = x.astype(jnp.float32) * inverse_rms
  g32 = g.astype(jnp.float32)
  projected = (g32 * normed * weight).mean(axes, keepdims=True)  # the component along x, to which the norm is invariant
  d_x = (g32 * weight - normed * projected) * inverse_rms
  return d_x.astype(x.dtype), (g32 * normed).sum(tuple(range(x.ndim - weight.ndim)))


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def project(x: Array, weight: Array, axes: int = 1, dtype: jnp.dtype | None = None) -> Array:
  """Product over the last `axes` of `x` and the first of `weight`, in `dtype` (None: that of the operands).

  The hand-written derivative chooses the order of the operands in the weight's gradient: XLA's CPU backend materialises
  the transpose of the first operand, which should therefore be the narrower one. JAX's derivative always puts g first.
  """
  return _project_fwd(x, weight, axes, dtype)[0]


def _project_fwd(x: Array, weight: Array, axes: int, dtype: jnp.dtype | None) -> tuple[Array, tuple[Array, Array]]:
  return jnp.tensordot(x, weight, axes, preferred_element_type=dtype), (x, weight)


def _project_bwd(axes: int, dtype: jnp.dtype | None, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, weight = saved
  # If the product is float32 and its operands are narrower (logits), g is cast to their dtype: accelerators multiply
  # narrow operands several times as fast as float32.
  g = g.astype(x.dtype)
  rows = tuple(range(x.ndim - axes))
  outputs = tuple(range(len(rows), g.ndim))
  product = functools.partial(jnp.tensordot, preferred_element_type=dtype)
  d_x = product(g, weight, (outputs, tuple(range(axes, weight.ndim))))
  if math.prod(weight.shape[:axes]) <= math.prod(weight.shape[axes:]):
    d_weight = product(x, g, (rows, rows))
  else:
    d_weight = jnp.moveaxis(product(g, x, (rows, rows)), range(len(outputs)), range(-len(outputs), 0))
  return d_x.astype(x.dtype), d_weight.astype(weight.dtype)


project.defvjp(_project_fwd, _project_bwd)


_ACTIVATIONS: dict[str, Callable[..., Array]] = {
  "silu": jax.nn.silu,
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


# The activation is recomputed in the backward pass, which is cheaper than storing and reading it.
@functools.partial(jax.checkpoint, static_argnums=(2,))
def gated(gate_BTF: Array, up_BTF: Array, activation: str = "silu") -> Array:
  """activation(gate) * up: SwiGLU or GeGLU (Shazeer 2020); `activation` as in ModelConfig."""
  return _ACTIVATIONS[activation](gate_BTF) * up_BTF


def softcapped(x: Array, cap: float | None) -> Array:
  """cap * tanh(x / cap), which stays within +-cap (Gemma 2, section 2); x itself for None."""
  return x if cap is None else jnp.tanh(x / cap) * cap


def softcap_slope(capped: Array, cap: float) -> Array:
  """The derivative of `softcapped`, given its result."""
  return 1 - (capped / cap) ** 2


class Layers(NamedTuple):
  """The functions whose derivatives can be chosen."""

  rms_norm: Callable[..., Array] = rms_norm
  project: Callable[..., Array] = project


OWN_DERIVATIVES = Layers()
JAX_DERIVATIVES = Layers(
  rms_norm=lambda x, weight, eps: _rms_norm_fwd(x, weight, eps)[0],
  project=lambda x, weight, axes=1: jnp.tensordot(x, weight, axes),
)


def layers_with(derivatives: str) -> Layers:
  """The functions for a value of `ComputeConfig.derivatives`."""
  return {"own": OWN_DERIVATIVES, "jax": JAX_DERIVATIVES}[derivatives]
