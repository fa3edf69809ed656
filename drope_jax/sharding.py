"""The layout of arrays: one mesh, and one table from the names of array dimensions to mesh axes.

The mesh axis `data` splits the batch, `fsdp` the batch and the parameters, `tensor` heads, feed-forward and vocabulary,
and `context` the length, and the parameters as well, so that they need not be replicated over its devices.
"""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from drope_jax.errors import ConfigError
from drope_jax.model_config import MeshConfig

AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, str | tuple[str, ...] | None] = {
  # dimensions of activations
  "batch": ("data", "fsdp"),
  "length": "context",
  "all_keys": None,  # the length, gathered: the keys that the queries of one device attend to
  "features": None,
  # dimensions of parameters (vocab, heads, kv_heads and mlp are also dimensions of activations)
  "layers": None,
  "embed": ("fsdp", "context"),
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "norm": None,
}

# Meshes by name (`--mesh=NAME` of the commands); other fields override theirs, as in `--config.mesh.tensor=4`.
PRESETS: dict[str, MeshConfig] = {
  "dp": MeshConfig(),  # parameters replicated on every device
  "fsdp": MeshConfig(data=1, fsdp=-1),  # parameters sharded, and gathered layer by layer
  "fsdp_tp": MeshConfig(data=1, fsdp=-1, tensor=2),  # heads and feed-forward sharded too; 2 divides most head counts
  "context": MeshConfig(data=1, context=-1),  # every row split over all devices: texts too long for one of them
}


def parse_mesh(texts: Sequence[str]) -> MeshConfig:
  """Parses texts such as "fsdp=4" into a mesh; the first may name a preset, whose fields the others override.

  Raises:
    ConfigError: for any other text; the message says what is allowed.
  """
  preset, settings = (texts[0], texts[1:]) if texts and texts[0] in PRESETS else ("dp", texts)
  axes = [field.name for field in dataclasses.fields(MeshConfig)]
  sizes = {}
  for text in settings:
    axis, _, number = text.partition("=")
    if axis not in axes or axis in sizes or not (number.isdigit() or number == "-1"):
      raise ConfigError(
        f"--mesh has {text!r}; allowed: AXIS=NUMBER (-1: the devices that are left), each once, of {', '.join(axes)}; "
        f"before them one of {', '.join(PRESETS)}"
      )
    sizes[axis] = int(number)
  return dataclasses.replace(PRESETS[preset], **sizes)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None, rows: int | None = None) -> Mesh:
  """The mesh of `config` over `devices` (default: those of all hosts). Raises ConfigError if the sizes do not fit.

  Args:
    rows: the batch size that the mesh is for. On a CPU, whose devices are simulated (cpu.py), a preset that would take
      all devices then takes a number that divides `rows`, since the user has not asked for a number. For `fsdp`, whose
      shards of the parameters must be equal too, it is a power of two.
  """
  if devices is None:
    devices = jax.devices()
    if rows is not None and devices[0].platform == "cpu" and jax.process_count() == 1:
      devices = devices[: _count_that_divides(config, len(devices), rows)]
  # Auto axes: the compiler propagates shardings from the constraints in the model (Explicit would reject the gathers).
  return Mesh(arrange_devices(config, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _count_that_divides(config: MeshConfig, devices: int, rows: int) -> int:
  if config not in (PRESETS["dp"], PRESETS["fsdp"]):
    return devices
  sharded = config == PRESETS["fsdp"]
  return max(n for n in range(1, devices + 1) if rows % n == 0 and not (sharded and n.bit_count() > 1))


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """`jax.set_mesh(mesh)`; for None nothing is sharded."""
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def host_mesh() -> Mesh:
  """A mesh of one CPU device, which is host memory. Raises ConfigError if JAX_PLATFORMS excludes the CPU."""
  try:
    devices = jax.local_devices(backend="cpu")
  except RuntimeError as error:
    raise ConfigError(f"JAX_PLATFORMS is {jax.config.read('jax_platforms')!r}; it must hold cpu too") from error
  return make_mesh(MeshConfig(), devices[:1])


def arrange_devices(config: MeshConfig, devices: list[Any]) -> np.ndarray:
  """The devices as an array (data, fsdp, tensor, context), with axes mapped to the network as JAX recommends.

  Slices are TPU slices, or NVLink domains of GPUs (JAX's `slice_index`); on CPUs, which have none, the processes.
  """
  wanted = ", ".join(f"{name}={size}" for name, size in vars(config).items() if name in AXES or size != 1)
  slices = config.dcn_data * config.dcn_fsdp
  if len(devices) % slices:
    raise ConfigError(f"MeshConfig ({wanted}) does not fit {len(devices)} devices: they are not {slices} equal slices")
  sizes = [getattr(config, axis) for axis in AXES]
  given = math.prod(size for size in sizes if size != -1)
  per_slice = len(devices) // slices
  if -1 in sizes and per_slice % given == 0:
    sizes[sizes.index(-1)] = per_slice // given
  if math.prod(sizes) != per_slice:
    each = f" in each of {slices} slices" if slices > 1 else ""
    hint = _sizes_that_fit(config, per_slice)
    raise ConfigError(f"MeshConfig ({wanted}) does not fit {per_slice} devices{each}{hint}")
  # Nor do the devices of a single slice have it that a program is compiled for ahead of time.
  has_slices = devices[0].platform != "cpu" and hasattr(devices[0], "slice_index")
  attribute = "slice_index" if has_slices else "process_index"
  found = Counter(getattr(device, attribute) for device in devices)
  if slices == 1:
    if has_slices and devices[0].platform == "tpu" and len(found) > 1:
      raise ConfigError(f"MeshConfig ({wanted}) is of one slice; the TPUs lie in {len(found)} slices: set dcn_data")
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  if len(found) != slices or len(set(found.values())) > 1:
    lie = ", ".join(f"{count} in {attribute} {index}" for index, count in sorted(found.items()))
    raise ConfigError(f"MeshConfig ({wanted}) wants {slices} equal slices; there are {lie}")
  return mesh_utils.create_hybrid_device_mesh(
    sizes,
    [config.dcn_data, config.dcn_fsdp, 1, 1],
    devices,
    process_is_granule=not has_slices,
    allow_split_physical_axes=True,
  )


def _sizes_that_fit(config: MeshConfig, devices: int) -> str:
  """Hints for a mesh that does not fit: sizes of one axis that would fit if the others stay as they are."""
  sizes = {axis: getattr(config, axis) for axis in AXES}
  found = []
  for axis, size in sizes.items():
    others = math.prod(other for name, other in sizes.items() if name != axis and other != -1)
    if size == -1 or devices % others:
      continue
    rest = devices // others
    fitting = _divisors_near(rest, size) if -1 in sizes.values() else [rest]
    found += [f"{axis}={fits}" for fits in fitting]
  return f"; one of these would: {', '.join(found)}" if found else f"; it is divided by {_listed(_divisors(devices))}"


def _divisors(number: int) -> list[int]:
  return [size for size in range(1, number + 1) if number % size == 0]


def _divisors_near(number: int, size: int) -> list[int]:
  """The largest divisor that is at most `size`, and the smallest that is larger."""
  all_of_them = _divisors(number)
  below, above = [one for one in all_of_them if one <= size], [one for one in all_of_them if one > size]
  return [*below[-1:], *above[:1]]


def _listed(numbers: Sequence[int], between: str = ", ") -> str:
  return between.join(map(str, numbers))


def partition_spec(dimensions: tuple[str, ...]) -> PartitionSpec:
  """The mesh axes of an array with these dimension names. Raises ValueError if two dimensions map to the same axis."""
  axes = [RULES[name] for name in dimensions]
  used = [axis for name in dimensions for axis in mesh_axes(name)]
  if len(used) != len(set(used)):
    raise ValueError(f"dimensions {dimensions} want one mesh axis twice: {axes}")
  return PartitionSpec(*axes)


def mesh_axes(dimension: str) -> tuple[str, ...]:
  """The mesh axes that a dimension is sharded over."""
  axes = RULES[dimension]
  return () if axes is None else (axes,) if isinstance(axes, str) else axes


def num_shards(dimension: str, mesh: Any = None) -> int:
  """The number of shards of a dimension on `mesh` (default: that of `jax.set_mesh`; 1 if there is none)."""
  shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
  return math.prod(shape.get(axis, 1) for axis in mesh_axes(dimension))


def divisor(dimension: str, mesh: Any = None) -> int:
  """What must divide a dimension: the number of its shards, or twice that if the length is sharded.

  In that case each device computes two chunks of every row (attention/context_parallel.py).
  """
  count = num_shards(dimension, mesh)
  return 2 * count if dimension == "length" and count > 1 else count


def cut_evenly(x: Any, *dimensions: str) -> bool:
  """Whether `divisor` divides the leading dimensions of `x`, given their names, on the mesh of `jax.set_mesh`."""
  return not any(size % divisor(dimension) for dimension, size in zip(dimensions, x.shape, strict=False))


def check_divides(mesh: Any, sizes: Iterable[tuple[str, str, int]]) -> None:
  """Checks that `divisor` divides sizes on `mesh`.

  Args:
    sizes: triples (name for messages, dimension, size), such as ("DataConfig.batch_size", "batch", 8).

  Raises:
    ConfigError: for the first one that is not divided; the message suggests sizes and numbers of shards that fit.
  """
  for what, dimension, size in sizes:
    count = divisor(dimension, mesh)
    if size % count:
      axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in mesh_axes(dimension))
      fitting = [near for near in (size // count * count, -(-size // count) * count) if near]
      fewer = [number for number in range(1, count) if size % number == 0][-2:]
      raise ConfigError(
        f"{what} is {size}; the mesh ({axes}) cuts it into {count} parts, which must divide it: with this mesh it "
        f"could be {_listed(fitting, ' or ')}, and {size} falls into {_listed(fewer, ' or ')} parts"
      )


def named_sharding(mesh: Mesh | AbstractMesh, dimensions: tuple[str, ...]) -> NamedSharding:
  """The sharding on `mesh` of an array with these dimension names."""
  return NamedSharding(mesh, partition_spec(dimensions))


def round_up_to_shards(size: int, dimension: str) -> int:
  """`size` rounded up to a multiple of `divisor`, on the mesh of `jax.set_mesh`."""
  return -(-size // divisor(dimension)) * divisor(dimension)


def constrain(x: Any, *dimensions: str) -> Any:
  """`with_sharding_constraint` for an array with these dimension names; x itself if no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(dimensions))
