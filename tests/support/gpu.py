"""Programs lowered for a GPU that need not be present."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, AxisType

from drope_jax.sharding import AXES


def h200_mesh(**sizes: int) -> AbstractMesh:
  """One H200, or as many as the axes say."""
  device = AbstractDevice("NVIDIA H200", None, "cuda")
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), abstract_device=device)


@contextlib.contextmanager
def on_h200(**sizes: int) -> Iterator[AbstractMesh]:
  """Traces for H200s: JAX's checks for a GPU and cuDNN are patched to find them."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    patch.setattr(cudnn, "check_compute_capability", lambda least: tuple(map(int, least.split("."))) <= (9, 0))
    patch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    with jax.sharding.use_abstract_mesh(mesh := h200_mesh(**sizes)):
      yield mesh


def lowered(function: Callable, *arguments: Any) -> str:
  """The program of `function`, to be called within `on_h200`."""
  return lowered_from(jax.jit(function).trace(*arguments))


def lowered_from(traced: jax.stages.Traced) -> str:
  return traced.lower(lowering_platforms=("cuda",)).as_text()
