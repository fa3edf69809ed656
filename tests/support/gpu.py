"""Programs lowered for a GPU that is not here."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, AxisType

from drope_jax.sharding import AXES


@contextlib.contextmanager
def one_h200() -> Iterator[None]:
  """Traces for one H200. JAX asks the machine for its cuDNN and its GPU; they are said to be there."""
  device = AbstractDevice("NVIDIA H200", None, "cuda")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    patch.setattr(cudnn, "check_compute_capability", lambda least: tuple(map(int, least.split("."))) <= (9, 0))
    patch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    mesh = AbstractMesh((1,) * len(AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
      yield


def lowered_for_cuda(function: Callable, *arguments: Any) -> str:
  """The program of `function`, to be called within `one_h200`."""
  return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
