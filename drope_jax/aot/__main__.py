"""Will it fit, and how fast can it be? A run's real step, compiled for TPUs that are not here.

`python -m drope_jax.aot --config=FILE[:ARG] --topology=v5e:4x4 [--config.NAME=VALUE ...] [--find-batch]
[--evaluate=65536] [--slices=N] [--json=FILE]`

It needs libtpu (`pip install -e ".[tpu]"`) and no TPU. The compiled program is the one that `drope_jax.train` runs, or
with `--evaluate=LENGTH` the one of `drope_jax.evaluate.position_losses` on texts of that length, kernels included. A
topology is that of the chips of one slice: v5p-64 has 64 TensorCores and so 32 chips, v5p:2x4x4; v5e-16 is v5e:4x4.

What is printed, of one chip and one step:
  memory: arguments, temporaries and outputs of the compiled program; donated arguments are counted once.
  FLOPs: the model's by metrics.flops_per_token (PaLM: all of attention; causal: half; an evaluation is a third of a
    step), those of the traced program's matrix products (traced_flops.py: loops, recomputation and kernels included),
    and XLA's own figure, which counts a loop's body once and a Pallas kernel as nothing.
  collectives: bytes that a chip receives, loops counted as often as they run (hlo.py).
  roofline: the seconds of each resource alone at its data sheet's rate. The step takes at least the longest of them;
    the MFU bound is the model's FLOPs in that time over the chips' peak. Reaching it needs all else to be hidden.

Exit status: 0 it fits; 1 it does not, or something failed; 2 bad usage or config.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from drope_jax.aot.compile import (
  GIB,
  DoesNotFit,
  Step,
  compile_step,
  describe,
  fits,
  largest,
  report,
  tpu_devices,
  trace_evaluation,
  trace_train_step,
  with_model,
)
from drope_jax.aot.roofline import CHIPS, parse_topology
from drope_jax.config import TrainConfig
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.metrics import flops_per_token
from drope_jax.sharding import make_mesh, pieces

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of a run, and its argument: FILE[:ARG].")
TOPOLOGY = flags.DEFINE_string("topology", None, "Chips of one slice: v5e:4x4, v5p:2x4x4, v6e:8x8 ...")
SLICES = flags.DEFINE_integer("slices", 1, "Slices, joined by config.mesh's dcn_data and dcn_fsdp.", lower_bound=1)
EVALUATE = flags.DEFINE_integer("evaluate", None, "The evaluation of texts of so many tokens, not the train step.")
FIND_BATCH = flags.DEFINE_bool("find_batch", False, "Find the most rows a chip that fit; also --find-batch.")
JSON = flags.DEFINE_string("json", None, "File that the figures are written to as well.")


def _prepare(config: TrainConfig, rows_per_chip: int | None) -> Step:
  topology, model = TOPOLOGY.value, config.model
  assert topology is not None and model is not None
  name, shape = parse_topology(topology)
  mesh = make_mesh(config.mesh, tpu_devices(topology, SLICES.value))
  copies = pieces("batch", mesh)
  if EVALUATE.value:
    length, rows, share = EVALUATE.value, copies * (rows_per_chip or 1), 1 / 3
  else:
    if rows_per_chip is not None:
      rows = rows_per_chip * copies * config.optim.accumulation
      config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=rows))
    length, rows, share = config.data.context, config.data.batch_size, 1.0

  def at_length(tokens: int) -> jax.stages.Traced:
    if EVALUATE.value:
      return trace_evaluation(config, mesh, tokens, rows)
    return trace_train_step(dataclasses.replace(config, data=dataclasses.replace(config.data, context=tokens)), mesh)

  tokens = rows * length * share
  flops = {how: tokens * flops_per_token(model, length, how) for how in ("palm", "causal")}
  sizes = tuple(value for value in vars(model).values() if isinstance(value, int))
  return Step(at_length(length), mesh, CHIPS[name], shape, rows, length, flops, sizes, at_length)


def _measure(config: TrainConfig, rows_per_chip: int | None = None) -> dict[str, Any]:
  step = _prepare(config, rows_per_chip)
  return describe(step, *compile_step(step))


def _check_fits(figures: dict[str, Any]) -> None:
  """Raises DoesNotFit if the peak is above the chip's memory."""
  if not fits(figures):
    raise DoesNotFit(f"it needs {figures['peak'] / GIB:.2f} GiB a chip of {figures['hbm'] / GIB:.0f} GiB")


def _find_batch(config: TrainConfig) -> dict[str, Any]:
  found: dict[int, dict[str, Any]] = {}

  def fits_with(rows: int) -> bool:
    try:
      figures = _measure(config, rows)
      _check_fits(figures)
    except DoesNotFit as error:
      print(f"{rows} rows: does not fit: {error}", flush=True)
      return False
    found[rows] = figures
    peak, seconds = figures["peak"] / GIB, figures["compile_seconds"]
    print(f"{rows} rows: fits, {peak:.2f} GiB a chip (compiled in {seconds:.0f} s)", flush=True)
    return True

  what = "texts" if EVALUATE.value else f"rows of each of {config.optim.accumulation} micro-batches"
  print(f"{what} at one time in each of the mesh's shares of the batch:")
  rows = largest(fits_with)
  if not rows:
    raise DoesNotFit("not even one row at a time fits")
  print(f"largest: {rows}")
  return found[rows]


def _run() -> None:
  if CONFIG.value is None or TOPOLOGY.value is None:
    raise ConfigError("--config=FILE[:ARG] and --topology=NAME:AxB are required")
  if EVALUATE.value is not None and EVALUATE.value < 1:
    raise ConfigError(f"--evaluate is {EVALUATE.value}; it must be a number of tokens")
  config = with_model(CONFIG.value)
  figures = _find_batch(config) if FIND_BATCH.value else _measure(config)
  print(report(figures))
  if JSON.value:
    Path(JSON.value).write_text(json.dumps({"command": sys.argv[1:], **figures}, indent=2) + "\n")
  _check_fits(figures)  # last, so that what it needs, and for what, has been said


def main(arguments: Sequence[str]) -> int:
  """Runs the command and returns its exit status."""
  jax.config.update("jax_platforms", "cpu")  # a TPU that is here may be somebody's
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    # An unknown field or a bad value of the config is reported by whatever setting it raised.
    rest = flags.FLAGS([re.sub("^(--?(no)?find)-batch", r"\1_batch", a) for a in arguments])[1:]
    if rest:
      raise ConfigError(f"unknown argument {rest[0]!r}")
    CONFIG.value  # noqa: B018  (config_flags keeps the error of an unreadable file until now)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    print(f"error: {str(error).strip(chr(39)).splitlines()[0]}", file=sys.stderr)
    return 2
  try:
    _run()
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except DoesNotFit as error:
    print(f"error: does not fit: {error}", file=sys.stderr)
    return 1
  except (CheckpointError, OSError, jax.errors.JaxRuntimeError) as error:
    print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
