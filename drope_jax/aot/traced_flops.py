"""FLOPs of the matrix products of a traced program, including loops, recomputation and kernels."""

import math
from collections.abc import Container
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr


class Traced(NamedTuple):
  """FLOPs over all devices, and the number of loops of unknown length, whose bodies were counted once."""

  flops: float
  unknown_loops: int


def traced_flops(jaxpr: Any) -> Traced:
  """FLOPs of all matrix products in a jaxpr, counting a multiply-add as 2.

  A causal kernel counts the blocks that it does not skip. Windows and documents are not modelled: the count is then an
  overestimate.
  """
  total, unknown = 0.0, 0
  for equation in _open(jaxpr).eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
      total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
      continue
    if products := _GPU_ATTENTION.get(params.get("name", name)):
      total += products * _attention_product(*(_shape(variable) for variable in equation.invars[:2]))
      continue
    parts = [traced_flops(inner) for inner in _inner(params)]
    if not parts:
      continue
    factor = 1.0
    match name:
      case "scan":
        factor = params["length"]
      case "while":
        unknown += any(part.flops for part in parts)
      case "shard_map":
        factor = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
      case "pallas_call":
        grid = params["grid_mapping"].grid
        factor = math.prod(grid) * visible_blocks(grid[-3] if "dkv" in params["name"] else grid[-1])
    branches = [part.flops for part in parts]
    total += factor * (max(branches) if name == "cond" else sum(branches))
    unknown += sum(part.unknown_loops for part in parts)
  return Traced(total, unknown)


# Products of queries and keys, or of their like, in the attention kernels of GPUs: cuDNN's, by primitive, and those of
# attention/triton.py, by name.
_GPU_ATTENTION = {
  "dot_product_attention_fwd_wrapper": 2,
  "dot_product_attention_bwd_wrapper": 5,
  "drope_jax_forward_kernel": 2,
  "drope_jax_queries_kernel": 3,
  "drope_jax_keys_kernel": 4,
}
_GPU_BLOCK = 128  # queries, and keys


def _attention_product(queries: tuple[int, ...], keys: tuple[int, ...]) -> float:
  """FLOPs of one product of queries (B, T, H, h) and keys (B, S, K, h); causal if there are as many of both."""
  batch, length, heads, head_dim = queries
  share = visible_blocks(-(-length // _GPU_BLOCK)) if length == keys[1] else 1.0
  return 2.0 * batch * heads * length * keys[1] * head_dim * share


def visible_blocks(keys: int) -> float:
  """The fraction of (query block, key block) pairs that a causal mask leaves, for rows of this many blocks.

  If rows are split over devices, each device has the same fraction: see attention/context_parallel.py.
  """
  return (keys + 1) / (2 * keys)


def traced_squares(jaxpr: Any, length: int, others: Container[int]) -> list[str]:
  """Types of arrays in a traced program, outside of kernels, with dimensions of `length` and of one of `others`."""
  found = set()
  for equation in _open(jaxpr).eqns:
    for variable in equation.outvars:
      rest = list(_shape(variable))
      if length in rest:
        rest.remove(length)
        if any(size in others for size in rest):
          found.add(str(variable.aval))
    if equation.primitive.name != "pallas_call":
      found.update(*(traced_squares(inner, length, others) for inner in _inner(equation.params)))
  return sorted(found)


def _shape(variable: Any) -> tuple[int, ...]:
  return getattr(variable.aval, "shape", ())


def _open(jaxpr: Any) -> Jaxpr:
  return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _inner(params: dict[str, Any]) -> list[Any]:
  values = [item for value in params.values() for item in (value if isinstance(value, tuple | list) else [value])]
  return [value for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]
