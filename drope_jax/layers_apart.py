"""Parameters with an array for each layer, which is how decoding on a CPU reads them fastest."""

from typing import Any

import jax
import numpy as np

from drope_jax.parameters import Params


def layers_apart(params: Params) -> Params:
  """The same parameters, their layers a tuple of trees, one per layer: without a copy, and on one CPU device only.

  A loop over tokens would else copy each layer out of the stacked array for every token, half of its time and more:
  on CPUs XLA neither reads a product's matrix through a slice, nor moves the copy out of the loop. On other devices,
  and on a mesh of several, the parameters are returned as they are.
  """
  stacked = params["layers"]
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1 or not all(map(_on_one_cpu, stacked.values())):
    return params
  (device,) = next(iter(stacked.values())).devices()
  views = {name: np.asarray(array) for name, array in stacked.items()}
  count = len(next(iter(views.values())))
  # device_put takes the memory of a numpy array over as it is, if that is aligned; jnp.asarray would copy it.
  layers = tuple({name: jax.device_put(view[i], device) for name, view in views.items()} for i in range(count))
  return params | {"layers": layers}


def _on_one_cpu(array: Any) -> bool:
  return isinstance(array, jax.Array) and [device.platform for device in array.devices()] == ["cpu"]
