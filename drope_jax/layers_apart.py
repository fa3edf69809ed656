"""Parameters with an array for each layer, which is how decoding on a CPU reads them fastest."""

from typing import Any

import jax
import numpy as np

from drope_jax.parameters import Params


def layers_apart(params: Params) -> Params:
  """The same parameters, their layers a tuple of trees, one per layer: without a copy, and on one CPU device only.

  A loop over tokens would else copy each layer out of the stacked array for every token, half of its time and more:
  on CPUs XLA neither reads a product's matrix through a slice, nor moves the copy out of the loop. On other devices,
  on a mesh of several, and with their layers apart already, the parameters are returned as they are.
  """
  stacked = params.get("layers", {})  # a stand-in for a model may have none
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1 or isinstance(stacked, tuple) or not stacked or not all(map(_on_one_cpu, stacked.values())):
    return params
  split = {name: _split(array) for name, array in stacked.items()}
  count = len(next(iter(split.values())))
  return params | {"layers": tuple({name: rows[i] for name, rows in split.items()} for i in range(count))}


def _split(array: jax.Array) -> list[jax.Array]:
  """The rows of an array on one CPU, as arrays that share its memory where a row is aligned.

  Rows of an array that may be moved (one not committed to its device, as jit returns them) may be moved too: a mesh, a
  default device or another argument that is committed then still decides where the program runs.
  """
  (device,) = array.devices()
  view = np.asarray(array)
  # device_put takes the memory of a numpy array over as it is, if that is aligned; jnp.asarray would copy it.
  with jax.default_device(device):
    return [jax.device_put(row, device if array.committed else None) for row in view]


def _on_one_cpu(array: Any) -> bool:
  return isinstance(array, jax.Array) and [device.platform for device in array.devices()] == ["cpu"]
