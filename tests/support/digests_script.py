"""Digests of arrays that lie on eight devices in several ways; see eight_devices.py."""

import json
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drope_jax.checkpoint import digests

SPECS = [PartitionSpec(), PartitionSpec("a"), PartitionSpec(None, ("c", "a")), PartitionSpec("b", "a", "c")]


def main() -> None:
  shapes = json.load(sys.stdin)
  mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)
  digests._BLOCK = 32  # so that every shard is read in several blocks
  answers = []
  for spec in SPECS:
    arrays = {}
    for name, shape in shapes.items():
      array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
      fits = len(spec) <= array.ndim and all(
        size % (2 ** (0 if axes is None else 1 if isinstance(axes, str) else len(axes))) == 0
        for size, axes in zip(shape, spec, strict=False)
      )
      arrays[name] = jax.device_put(array, NamedSharding(mesh, spec if fits else PartitionSpec()))
    answers.append(digests.of_arrays(arrays))
  print(json.dumps({"devices": jax.device_count(), "digests": answers}))


main()
