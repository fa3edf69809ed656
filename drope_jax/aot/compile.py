"""A run's real step, compiled for TPUs that are not here, and the figures of what was compiled."""

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
from drope_jax.aot import hlo
from drope_jax.aot.roofline import Chip, Work, parse_topology, roofline
from drope_jax.aot.traced_flops import traced_flops, traced_squares
from drope_jax.config import TrainConfig
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import trace_losses
from drope_jax.optim import make_optimizer
from drope_jax.serialization import checked, library_versions
from drope_jax.sharding import check_divides, parts, pieces
from drope_jax.train import abstract_state, batch_sharding, check_layout, jit_train_step, resolve, start_from

GIB = 2**30

# libtpu looks for a TPU when it is loaded, and wants to be the only one to use it; here none is used.
_LIBTPU = {
  "TPU_SKIP_MDS_QUERY": "1",  # does not ask the cloud which TPU this machine has
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # what it is told instead; the topology asked for does not depend on it
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class DoesNotFit(Exception):
  """The program needs more memory than a chip has; the message says how much."""


# --- what is compiled --------------------------------------------------------------------------


def with_model(config: TrainConfig) -> TrainConfig:
  """The config with its model: as `resolve`, or where the checkpoint is not there with the model it is meant to hold.

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


def tpu_devices(topology: str, slices: int = 1) -> list[Any]:
  """Devices that one can compile for and not run on. Raises ConfigError for an unknown topology or without libtpu."""
  parse_topology(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError('compiling for TPUs needs libtpu, which is not installed: pip install -e ".[tpu]"')
  os.environ.update(_LIBTPU)
  more = {"num_slices": slices} if slices > 1 else {}
  try:
    return list(topologies.get_topology_desc(topology, "tpu", **more).devices)
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f"--topology: {topology!r} is not a slice that exists ({str(error).splitlines()[0]})") from error


def trace_train_step(config: TrainConfig, mesh: Mesh) -> jax.stages.Traced:
  """The step that `train` runs. Raises ConfigError if the mesh does not divide the config's sizes."""
  assert config.model is not None
  check_layout(config, mesh)
  optimizer = make_optimizer(config.optim, config.model, config.steps)
  state = abstract_state(config.model, optimizer, mesh)
  rows = jax.ShapeDtypeStruct(
    (config.data.batch_size, config.data.context + 1), jnp.int32, sharding=batch_sharding(mesh)
  )
  names = ("tokens", "segments", "positions") if config.data.document_mask else ("tokens",)
  with jax.set_mesh(mesh):
    return jit_train_step(config, optimizer, state, mesh).trace(state, dict.fromkeys(names, rows))


def trace_evaluation(config: TrainConfig, mesh: Mesh, length: int, rows: int) -> jax.stages.Traced:
  """The loss of texts of `length` tokens, as `position_losses` measures it. Raises ConfigError as above."""
  assert config.model is not None
  check_divides(mesh, [("--evaluate", "length", length), ("the number of texts", "batch", rows)])
  params = checkpoint.abstract_params(config.model, mesh)
  with jax.set_mesh(mesh):
    return trace_losses(params, Inference(config.model), rows, length, config.compute)


# --- what it needs -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
  """A traced step, and what the report says of it."""

  traced: Any
  mesh: Mesh
  chip: Chip
  shape: tuple[int, ...]  # of a slice
  rows: int
  length: int
  flops: dict[str, float]  # by convention, over all chips
  model_sizes: tuple[int, ...]
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


def describe(step: Step, compiled: Any, seconds: float) -> dict[str, Any]:
  """The figures of a compiled step."""
  memory, program = compiled.memory_analysis(), hlo.parse(compiled.as_text())
  chips = step.mesh.size
  traced = traced_flops(step.traced.jaxpr)
  slices = [getattr(device, "slice_index", 0) or 0 for device in step.mesh.devices.flat]
  bytes_ = hlo.collectives(program, lambda partition: slices[partition])
  _, unknown = hlo.runs(program)
  work = Work(traced.flops / chips, hlo.hbm_bytes(program), bytes_.ici.total(), bytes_.dcn.total())
  times = roofline(work, step.chip, step.shape)
  longest = max(times.values())
  peak = chips * step.chip.flops
  used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
  used += memory.generated_code_size_in_bytes - memory.alias_size_in_bytes
  return {
    "mesh": {axis: size for axis, size in step.mesh.shape.items() if size > 1},
    "chips": chips,
    "rows": step.rows,
    "length": step.length,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "aliased": memory.alias_size_in_bytes,
    "program": memory.generated_code_size_in_bytes,
    "peak": used,
    "hbm": step.chip.hbm_bytes,
    "model_flops": step.flops,
    "traced_flops": traced.flops,
    "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
    "hbm_traffic": work.hbm_bytes,
    "collectives": dict(bytes_.ici),
    "collectives_between_slices": dict(bytes_.dcn),
    "seconds": times,
    "step_seconds": longest,
    "bound_by": max(times, key=lambda name: times[name]),
    "mfu_bound": {name: flops / longest / peak for name, flops in step.flops.items()},
    "loops_counted_once": unknown + traced.unknown_loops,
    "square_buffers": _square_buffers(step, program),
    "compile_seconds": seconds,
    "versions": library_versions(),
  }


def _square_buffers(step: Step, program: hlo.Program) -> list[str]:
  """Types of buffers with two dimensions of the length, or one of it and one of what a device has of it.

  Where the model itself has a size of that length, shapes do not tell: then the step is traced for another length, and
  the arrays of that are searched, of which the compiled program's buffers are a part.
  """
  cuts = (1, pieces("length", step.mesh), parts("length", step.mesh))

  def sides(length: int) -> set[int]:
    return {length // cut for cut in cuts}

  found = hlo.square_buffers(program, step.length, sides(step.length))
  if not found or not sides(step.length) & set(step.model_sizes):
    return found
  other = step.length + 512 * cuts[1]
  while sides(other) & set(step.model_sizes):
    other += 512 * cuts[1]
  return traced_squares(step.at_length(other).jaxpr, other, sides(other))


def fits(figures: dict[str, Any]) -> bool:
  return figures["peak"] <= figures["hbm"]


def report(figures: dict[str, Any]) -> str:
  """The figures in lines a person reads."""
  gib = {name: f"{figures[name] / GIB:.2f}" for name in ("arguments", "temporaries", "outputs", "aliased", "program")}
  flops, times, chips = figures["model_flops"], figures["seconds"], figures["chips"]

  def by_kind(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(counts.items())) or "none"

  mesh = ", ".join(f"{axis} {size}" for axis, size in figures["mesh"].items()) or "one chip"
  lines = [
    f"chips        {chips} ({mesh}); {figures['rows']} rows of {figures['length']} tokens",
    f"memory       {'fits' if fits(figures) else 'does not fit'}: "
    f"{figures['peak'] / GIB:.2f} of {figures['hbm'] / GIB:.0f} GiB a chip; "
    f"arguments {gib['arguments']}, temporaries {gib['temporaries']}, program {gib['program']}, "
    f"outputs {gib['outputs']} ({gib['aliased']} in the arguments' place)",
    f"FLOPs        {flops['palm']:.3e} a step (PaLM), {flops['causal']:.3e} (causal); products that the program "
    f"computes {figures['traced_flops']:.3e}; XLA says {figures['xla_flops'] or 0:.3e} a chip, each loop's body "
    "counted once and kernels as nothing",
    f"collectives  {by_kind(figures['collectives'])} received by a chip",
  ]
  if figures["collectives_between_slices"]:
    lines.append(f"             between slices: {by_kind(figures['collectives_between_slices'])}")
  lines += [
    "roofline     " + ", ".join(f"{name} {value:.3f} s" for name, value in times.items() if value),
    f"step         at least {figures['step_seconds']:.3f} s, bound by {figures['bound_by']}; MFU bound "
    f"{figures['mfu_bound']['palm']:.1%} (PaLM), {figures['mfu_bound']['causal']:.1%} (causal)",
  ]
  square = figures["square_buffers"]
  lines.append(f"T x T        {'there are buffers of ' + ', '.join(square[:4]) if square else 'no such buffer'}")
  if figures["loops_counted_once"]:
    lines.append(
      f"note         {figures['loops_counted_once']} loops of unknown length are counted as if they ran once"
    )
  return "\n".join([*lines, f"compiled in  {figures['compile_seconds']:.0f} s"])


def largest(fits: Callable[[int], bool], limit: int = 1 << 14) -> int:
  """The largest number that fits, by doubling and then bisecting; 0 if 1 does not."""
  low, high = 0, 1
  while high <= limit and fits(high):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low
