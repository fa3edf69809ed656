"""A lower bound on the memory of a run, which refuses only runs that could not have worked."""

import math
import os

import jax
from jax.sharding import Mesh

from drope_jax.errors import ConfigError
from drope_jax.parameters import count_parameters
from drope_jax.platforms import MEMORY
from drope_jax.training.run import Run


def check_memory(run: Run, mesh: Mesh) -> None:
  """Raises ConfigError, with the bytes and the settings that reduce them, for a run that cannot fit.

  It counts the weights with their gradients (float32, sharded over all devices), the activations of one layer for a
  micro-batch (bfloat16, likewise), and the token ids of a step's rows on their host. The optimizer, the other layers
  and the logits are not counted, so a run that passes may still be too large.
  """
  data, model = run.config.data, run.model
  here = device_memory(mesh)
  if here is not None:
    _check(
      "ModelConfig: weights and gradients",
      8 * count_parameters(model) // mesh.size,
      here,
      "on each device",
      "half of d_ff and d_model needs about a quarter, twice as many devices half",
    )
    _check(
      f"DataConfig.batch_size ({data.batch_size}) x context ({data.context}): the activations of one layer",
      2 * data.batch_size * data.context * model.d_model // (run.config.optim.accumulation * mesh.size),
      here,
      "on each device",
      "half of batch_size, or twice OptimConfig.accumulation, needs half",
    )
  _check(
    f"DataConfig.batch_size ({data.batch_size}) x context ({data.context}): token ids",
    4 * data.batch_size * (data.context + 1) // jax.process_count(),
    host_memory(),
    "on each host",
    "half of batch_size or context needs half",
  )


def device_memory(mesh: Mesh) -> int | None:
  """Memory of one device of a mesh in bytes; None if it is unknown. CPU devices share the host's memory."""
  device = mesh.devices.flat[0]
  if device.platform == "cpu":
    return host_memory() // jax.local_device_count()
  return MEMORY.get(device.device_kind)


def host_memory() -> int:
  """Memory of this machine in bytes."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check(what: str, needed: int, there: int, where: str, advice: str) -> None:
  if needed > there:
    raise ConfigError(f"{what} need {_shown(needed)} {where}, which has {_shown(there)}: {advice}")


def _shown(size: int) -> str:
  power = min(int(math.log2(size)) // 10, 6)
  return f"{size:,} bytes ({size / 2 ** (10 * power):,.1f} {('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[power]}B)"
