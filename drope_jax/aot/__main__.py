"""Will it fit, and how fast can it be? A run's real step, compiled for TPUs or GPUs that are not here.

`python -m drope_jax.aot --config=FILE[:ARG] --topology=v5e:4x4 [--config.NAME=VALUE ...] [--find-batch]
[--evaluate=65536] [--slices=N] [--json=FILE]`

It needs libtpu (`pip install -e ".[tpu]"`) and no TPU; for GPUs JAX's CUDA plugin (`pip install -e ".[cuda]"`) and no
GPU. The compiled program is the one that `drope_jax.train` runs, or with `--evaluate=LENGTH` the one of
`drope_jax.evaluate.position_losses` on texts of that length, kernels included. A topology is that of the chips of one
slice: v5p-64 has 64 TensorCores and so 32 chips, v5p:2x4x4; v5e-16 is v5e:4x4. Of GPUs it is their number in one host:
h100:8.

It prints, for one chip and one step:
  memory: arguments, temporaries and outputs of the compiled program; donated arguments are counted once. JAX takes 75 %
    of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
  FLOPs: the model's by metrics.flops_per_token (PaLM: all of attention; causal: half; an evaluation is a third of a
    step), those of the traced program's matrix products (traced_flops.py: loops, recomputation and kernels included),
    and for TPUs XLA's own figure, which counts a loop's body once and a Pallas kernel as nothing.
  collectives: bytes that a chip receives, loops counted as often as they run (traffic.py).
  kernels, of a GPU: how many of each kind, and what they read and write (kernels.py). On the GPU itself XLA tries
    several kernels for each product and takes the fastest, which cannot be done without one.
  roofline: the seconds of each resource alone at its data sheet's rate. The step takes at least the longest of them;
    the MFU bound is the model's FLOPs in that time over the chips' peak. It is reached if all else is hidden behind it.

Exit status: 0 it fits; 1 it does not, or something failed; 2 bad usage or config.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from drope_jax import cli
from drope_jax.aot.compile import (
  DoesNotFit,
  Step,
  compile_step,
  largest,
  target_devices,
  trace_evaluation,
  trace_train_step,
  with_model,
)
from drope_jax.aot.figures import GIB, describe, fits, report
from drope_jax.aot.roofline import CHIPS, parse_topology
from drope_jax.config import TrainConfig
from drope_jax.errors import ConfigError, UserError
from drope_jax.files import check_file, write_json
from drope_jax.metrics import flops_per_token, objective_flops_per_token
from drope_jax.sharding import make_mesh, num_shards
from drope_jax.training.run import Run

CONFIG = cli.define_config("Config file of a run, and its argument: FILE[:ARG].")
TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "Chips of one slice (v5e:4x4, v5p:2x4x4, v6e:8x8 ...), or GPUs of one host (a100:1, h100:8, h200:8).",
  required=True,
)
MESH = cli.define_mesh("Arrangement of the chips, instead of the config's")
SLICES = flags.DEFINE_integer("slices", 1, "Slices, joined by config.mesh's dcn_data and dcn_fsdp.", lower_bound=1)
EVALUATE = flags.DEFINE_integer(
  "evaluate", None, "Evaluate texts of this many tokens, instead of the train step.", lower_bound=1
)
FIND_BATCH = flags.DEFINE_bool(
  "find_batch", False, "Find the largest number of rows per chip that fits; also --find-batch."
)
JSON = cli.define_path("json", None, "File to write the figures to as well.", local=True)


def _prepare(run: Run, rows_per_chip: int | None) -> Step:
  topology, model, config = TOPOLOGY.value, run.model, run.config
  assert topology is not None
  name, shape = parse_topology(topology)
  mesh = make_mesh(config.mesh, target_devices(topology, SLICES.value))
  if CHIPS[name].is_gpu and model.head_dim > 128 and config.compute.attention in ("auto", "cudnn"):
    raise ConfigError(
      f"ComputeConfig.attention is {config.compute.attention!r}: whether cuDNN takes heads of {model.head_dim}, JAX "
      "asks the GPU of this machine; without one, set it to 'triton'"
    )
  copies = num_shards("batch", mesh)
  if EVALUATE.value:
    length, rows = EVALUATE.value, copies * (rows_per_chip or 1)
  else:
    if rows_per_chip is not None:
      rows = rows_per_chip * copies * config.optim.accumulation
      config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=rows))
    length, rows = config.data.context, config.data.batch_size

  def at_length(tokens: int) -> jax.stages.Traced:
    if EVALUATE.value:
      return trace_evaluation(run, mesh, tokens, rows)
    at_tokens = dataclasses.replace(config, data=dataclasses.replace(config.data, context=tokens))
    return trace_train_step(dataclasses.replace(run, config=at_tokens), mesh)

  def per_token(convention: str) -> float:
    if EVALUATE.value:
      return flops_per_token(model, length, convention) / 3
    first = range(1)  # with the teacher, if there is one
    return objective_flops_per_token(config.objective, model, run.teacher, length, first, config.steps, convention)

  flops = {how: rows * length * per_token(how) for how in ("palm", "causal")}
  sizes = tuple(value for value in vars(model).values() if isinstance(value, int))
  return Step(at_length(length), mesh, CHIPS[name], shape, rows, length, flops, sizes, at_length)


def _measure(run: Run, rows_per_chip: int | None = None) -> dict[str, Any]:
  step = _prepare(run, rows_per_chip)
  return describe(step, *compile_step(step))


def _check_fits(figures: dict[str, Any]) -> None:
  """Raises DoesNotFit if the peak is above the chip's memory."""
  if not fits(figures):
    raise DoesNotFit(f"it needs {figures['peak'] / GIB:.2f} GiB a chip of {figures['hbm'] / GIB:.0f} GiB")


def _find_batch(run: Run) -> dict[str, Any]:
  found: dict[int, dict[str, Any]] = {}

  def fits_with(rows: int) -> bool:
    try:
      figures = _measure(run, rows)
      _check_fits(figures)
    except DoesNotFit as error:
      print(f"{rows} rows: does not fit: {error}", flush=True)
      return False
    found[rows] = figures
    peak, seconds = figures["peak"] / GIB, figures["compile_seconds"]
    print(f"{rows} rows: fits, {peak:.2f} GiB a chip (compiled in {seconds:.0f} s)", flush=True)
    return True

  what = "texts" if EVALUATE.value else f"rows of each of {run.config.optim.accumulation} micro-batches"
  print(f"{what} at one time in each of the mesh's shares of the batch:")
  rows = largest(fits_with)
  if not rows:
    raise DoesNotFit("not even one row at a time fits")
  print(f"largest: {rows}")
  return found[rows]


def _run() -> None:
  config = cli.settings(
    CONFIG, "a TrainConfig", lambda found: isinstance(found, TrainConfig), mesh=cli.mesh_config(MESH)
  )
  if JSON.value is not None:
    check_file(Path(JSON.value), "--json")
  run = with_model(config)
  figures = _find_batch(run) if FIND_BATCH.value else _measure(run)
  print(report(figures))
  if JSON.value:
    write_json({"command": sys.argv[1:], **figures}, Path(JSON.value))
  _check_fits(figures)  # last, after the report was printed


def main() -> None:
  """The command."""
  jax.config.update("jax_platforms", "cpu")  # a TPU of this machine may be in use by another process
  try:
    _run()
  except DoesNotFit as error:
    raise DoesNotFit(f"does not fit: {error}") from error
  except jax.errors.JaxRuntimeError as error:
    raise UserError(str(error).splitlines()[0]) from error


if __name__ == "__main__":
  cli.run(main)
