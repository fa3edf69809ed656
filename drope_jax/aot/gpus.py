"""GPUs that are not here: what XLA's CUDA compiler has to know of them to compile for them on any machine."""

import dataclasses
import importlib.metadata
import importlib.util
from typing import Any

from jax.experimental import topologies

from drope_jax.aot.roofline import CHIPS
from drope_jax.errors import ConfigError, ToolError

GPUS_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class _Target:
  """What a kernel is made for, as the driver reports it (XLA's GpuDeviceInfoProto); sizes in bytes."""

  capability: str  # fields of the message cuda_compute_capability
  multiprocessors: int
  clock_ghz: float
  shared_memory: int  # of a multiprocessor; a block can have 1 KiB less
  l2_cache: int


# What is compiled for sm_90a may use Hopper's own instructions for matrix products.
_HOPPER = _Target("major: 9 feature_extension: ACCELERATED_FEATURES", 132, 1.98, 228 * 1024, 50 * 2**20)
_TARGETS = {"a100": _Target("major: 8", 108, 1.41, 164 * 1024, 40 * 2**20), "h100": _HOPPER, "h200": _HOPPER}

_CONFIG = """
gpu_device_info {{
  cuda_compute_capability {{ {target.capability} }}
  core_count: {target.multiprocessors}
  clock_rate_ghz: {target.clock_ghz}
  memory_bandwidth: {chip.hbm_rate:.0f}
  device_memory_size: {chip.hbm_bytes}
  l2_cache_size: {target.l2_cache}
  shared_memory_per_core: {target.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {block_memory}
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  fpus_per_core: {fpus}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ {cudnn} }}
runtime_version {{ {runtime} }}
device_description_str: "{chip.device_kind}"
"""


def target_config(name: str) -> str:
  """XLA's description of a GPU of CHIPS, a text proto, with the versions of the libraries installed here.

  Raises:
    ToolError: the CUDA plugin of JAX, or a library that it brings, is not installed.
  """
  target = _TARGETS[name]
  return _CONFIG.format(
    target=target,
    chip=CHIPS[name],
    block_memory=target.shared_memory - 1024,
    fpus=64 if name == "a100" else 128,
    cudnn=_version("nvidia-cudnn-cu13"),
    runtime=_version("nvidia-cuda-runtime"),
  )


def gpu_devices(name: str, count: int) -> list[Any]:
  """GPUs of one host that a program can be compiled for, but not run on.

  Args:
    name: of CHIPS.

  Raises:
    ConfigError: more than a host has.
    ToolError: the CUDA plugin of JAX is not installed.
  """
  if count > GPUS_OF_A_HOST:
    raise ConfigError(f"--topology: {name}:{count} is more than the {GPUS_OF_A_HOST} GPUs of one host")
  config = target_config(name)  # slices x hosts x GPUs
  return list(topologies.get_topology_desc("", "cuda", target_config=config, topology=f"1x1x{count}").devices)


def _version(package: str) -> str:
  """The fields of XLA's SemanticVersionProto."""
  try:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
      raise importlib.metadata.PackageNotFoundError("jax-cuda13-plugin")
    numbers = importlib.metadata.version(package).split(".")
  except importlib.metadata.PackageNotFoundError as error:
    raise ToolError(
      f'compiling for GPUs needs {error.name}, which is not installed: pip install -e ".[cuda]"'
    ) from error
  return " ".join(f"{part}: {number}" for part, number in zip(("major", "minor", "patch"), numbers, strict=False))
