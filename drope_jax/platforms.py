"""Facts about devices: their peak FLOP/s and memory, and the device that a program is traced for."""

import jax

# Dense bfloat16 FLOP/s of one device, by JAX's device_kind (vendors' data sheets). Other devices have no MFU.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}

# Memory of the same devices, in bytes.
MEMORY = {
  "TPU v4": 32 * 2**30,
  "TPU v5 lite": 16 * 2**30,
  "TPU v5": 95 * 2**30,
  "TPU v5p": 95 * 2**30,
  "TPU v6 lite": 32 * 2**30,
  "NVIDIA A100-SXM4-80GB": 80 * 10**9,
  "NVIDIA H100 80GB HBM3": 80 * 10**9,
  "NVIDIA H200": 141 * 10**9,
}
UNKNOWN_MEMORY = 16 * 2**30  # assumed for every other device, CPUs included

# CUDA compute capability of the GPUs above.
_CAPABILITY = {"NVIDIA A100-SXM4-80GB": (8, 0), "NVIDIA H100 80GB HBM3": (9, 0), "NVIDIA H200": (9, 0)}


def target_platform() -> str:
  """The platform that a program is traced for: that of the mesh (`jax.set_mesh`), else of the default backend.

  They differ when a program is compiled ahead of time, on a machine without the accelerator.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (
    jax.default_backend() if device is None else {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
  )


def target_memory() -> int:
  """Memory in bytes of one device that a program is traced for, according to its data sheet."""
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
  return MEMORY.get(device.device_kind, UNKNOWN_MEMORY)


def compute_capability() -> tuple[int, int] | None:
  """CUDA compute capability of the GPU that a program is traced for; None if it is unknown, or there is no GPU."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    return _CAPABILITY.get(device.device_kind)
  major, _, minor = getattr(jax.devices()[0], "compute_capability", "").partition(".")
  return (int(major), int(minor or 0)) if major.isdigit() else None
