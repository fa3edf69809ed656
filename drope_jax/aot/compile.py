"""A run's real step, traced and compiled for TPUs or GPUs that are not here."""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from drope_jax import checkpoint
from drope_jax.aot.gpus import gpu_devices
from drope_jax.aot.roofline import CHIPS, Chip, parse_topology
from drope_jax.config import TrainConfig
from drope_jax.errors import ConfigError, ToolError, UserError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import trace_losses
from drope_jax.optim import make_optimizer
from drope_jax.serialization import checked
from drope_jax.sharding import check_divides
from drope_jax.training.preflight import check_layout
from drope_jax.training.run import Run, resolve, start_from
from drope_jax.training.state import abstract_frozen, abstract_state
from drope_jax.training.step import batch_sharding, jit_train_step, step_number

# On loading, libtpu would look for a TPU and claim it. With these variables it does not.
_LIBTPU = {
  "TPU_SKIP_MDS_QUERY": "1",  # do not ask the cloud which TPU this machine has
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # a placeholder: the topology that is compiled for does not depend on it
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class DoesNotFit(UserError):
  """The program needs more memory than a chip has; the message says how much."""


# --- what is compiled --------------------------------------------------------------------------


def with_model(config: TrainConfig) -> Run:
  """The run of a config: as `resolve`, or, if its checkpoint does not exist yet, with the model of InitConfig.model.

  Raises:
    ConfigError: if there is neither.
  """
  config = checked(config)
  if config.init is None or (Path(config.init.checkpoint) / "checkpoints").exists():
    return resolve(config)
  if config.init.model is None:
    raise ConfigError(
      f"InitConfig.checkpoint: nothing is in {config.init.checkpoint}, and InitConfig.model is not given"
    )
  return start_from(config, config.init.model)


def target_devices(topology: str, slices: int = 1) -> list[Any]:
  """Devices that a program can be compiled for, but not run on: `tpu_devices`, or GPUs of one host ("h100:8").

  Raises:
    ConfigError: an unknown topology, or slices of GPUs.
    ToolError: the compiler is not installed.
  """
  name, shape = parse_topology(topology)
  if not CHIPS[name].is_gpu:
    return tpu_devices(topology, slices)
  if slices > 1:
    raise ConfigError(f"--slices is {slices}; GPUs are those of one host, without slices")
  return gpu_devices(name, shape[0])


def tpu_devices(topology: str, slices: int = 1) -> list[Any]:
  """Devices that a program can be compiled for, but not run on.

  Raises:
    ConfigError: an unknown topology.
    ToolError: libtpu is not installed.
  """
  parse_topology(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ToolError('compiling for TPUs needs libtpu, which is not installed: pip install -e ".[tpu]"')
  os.environ.update(_LIBTPU)
  more = {"num_slices": slices} if slices > 1 else {}
  try:
    return list(topologies.get_topology_desc(topology, "tpu", **more).devices)
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f"--topology: {topology!r} is not a slice that exists ({str(error).splitlines()[0]})") from error


def trace_train_step(run: Run, mesh: Mesh) -> jax.stages.Traced:
  """The step that `train` runs. Raises ConfigError if the mesh does not divide the config's sizes."""
  check_layout(run, mesh)
  config, frozen = run.config, abstract_frozen(run, mesh)
  optimizer = make_optimizer(config.optim, run.model, config.steps)
  state = abstract_state(run.model, optimizer, mesh)
  rows = jax.ShapeDtypeStruct(
    (config.data.batch_size, config.data.context + 1), jnp.int32, sharding=batch_sharding(mesh)
  )
  names = ("tokens", "segments", "positions") if config.data.document_mask else ("tokens",)
  with jax.set_mesh(mesh):
    step = jit_train_step(run, optimizer, state, frozen, mesh)
    return step.trace(state, dict.fromkeys(names, rows), step_number(0), frozen)


def trace_evaluation(run: Run, mesh: Mesh, length: int, rows: int) -> jax.stages.Traced:
  """The loss of texts of `length` tokens, as in `position_losses`. Raises ConfigError as `trace_train_step` does."""
  check_divides(mesh, [("--evaluate", "length", length), ("the number of texts", "batch", rows)])
  params = checkpoint.abstract_params(run.model, mesh)
  with jax.set_mesh(mesh):
    return trace_losses(params, Inference(run.model), rows, length, run.config.compute)


# --- compilation -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
  """A traced step, and what its report needs."""

  traced: Any  # jax.stages.Traced
  mesh: Mesh
  chip: Chip
  shape: tuple[int, ...]  # of a slice, in chips
  rows: int  # of the global batch
  length: int  # tokens of a row
  flops: dict[str, float]  # of the model, by convention, over all chips
  model_sizes: tuple[int, ...]  # all sizes in the ModelConfig
  at_length: Callable[[int], Any]  # the same step, traced for another length


def compile_step(step: Step) -> tuple[Any, float]:
  """The compiled program, and the seconds it took. Raises DoesNotFit if the compiler says so."""
  start = time.monotonic()
  try:
    with jax.set_mesh(step.mesh):
      compiled = step.traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
      raise
    lines = [line for line in str(error).splitlines() if "Used" in line or "Ran out of memory" in line]
    raise DoesNotFit(lines[0].strip() if lines else str(error).splitlines()[0]) from error
  return compiled, time.monotonic() - start


def largest(fits: Callable[[int], bool], limit: int = 1 << 14) -> int:
  """The largest number that fits, by doubling and then bisecting; 0 if 1 does not."""
  low, high = 0, 1
  while high <= limit and fits(high):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low
