"""Layout: one mesh, and one table from the names of array dimensions to its axes.

Mesh axes: `data` splits the batch, `fsdp` the batch and the parameters, `tensor` heads, feed-forward and vocabulary,
`context` the length. `jax.jit` with these shardings is what used to be called pjit.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from drope_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, str | tuple[str, ...] | None] = {
  # dimensions of activations
  "batch": ("data", "fsdp"),
  "length": "context",
  "features": None,
  # dimensions of parameters (vocab, heads, kv_heads and mlp name activations too)
  "layers": None,
  "embed": "fsdp",
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "norm": None,
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """The mesh of `config` over `devices` (default: all of every host). Raises ConfigError if the sizes do not fit."""
  devices = jax.devices() if devices is None else devices
  sizes = [getattr(config, axis) for axis in AXES]
  given = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % given == 0:
    sizes[sizes.index(-1)] = len(devices) // given
  if math.prod(sizes) != len(devices):
    wanted = ", ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)
    raise ConfigError(f"MeshConfig ({wanted}) does not fit {len(devices)} devices")
  # Auto axes: the compiler propagates shardings from the constraints in the model (Explicit would reject the gathers).
  return jax.make_mesh(sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(dimensions: tuple[str, ...]) -> PartitionSpec:
  """The mesh axes of an array with these dimension names. Raises ValueError if two of them want the same axis."""
  axes = [RULES[name] for name in dimensions]
  used = [axis for entry in axes if entry for axis in ([entry] if isinstance(entry, str) else entry)]
  if len(used) != len(set(used)):
    raise ValueError(f"dimensions {dimensions} want one mesh axis twice: {axes}")
  return PartitionSpec(*axes)


def named_sharding(mesh: Mesh, dimensions: tuple[str, ...]) -> NamedSharding:
  """Where an array with these dimension names lives on `mesh`."""
  return NamedSharding(mesh, partition_spec(dimensions))


def constrain(x: Any, *dimensions: str) -> Any:
  """Asks the compiler for the layout of `dimensions`; outside of a mesh (`jax.set_mesh`) it does nothing."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(dimensions))
