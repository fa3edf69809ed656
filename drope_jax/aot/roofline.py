"""A roofline: the rates of a chip, the work of a step, and the seconds that each resource takes for it."""

import dataclasses
import math
from collections.abc import Sequence

from drope_jax.errors import ConfigError
from drope_jax.platforms import MEMORY, PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU chip or GPU, which is one device. Rates are bytes per second, in one direction."""

  device_kind: str
  hbm_rate: float
  link_rate: float  # of one link to a neighbour (ICI); of a GPU, of all its links to a switch (NVLink)
  dcn_rate: float  # a chip's share of its host's network, which joins slices
  torus_from: int | None  # a dimension with a multiple of so many chips is closed to a ring; None: a switch joins all

  @property
  def is_gpu(self) -> bool:
    return self.device_kind.startswith("NVIDIA")

  @property
  def network(self) -> str:
    """What joins the chips of a slice, or the GPUs of a host."""
    return "NVLink" if self.is_gpu else "ICI"

  @property
  def flops(self) -> float:
    """Dense bfloat16 FLOP/s."""
    return PEAK_FLOPS[self.device_kind]

  @property
  def hbm_bytes(self) -> int:
    return MEMORY[self.device_kind]

  def ici_rate(self, shape: Sequence[int]) -> float:
    """Bytes per second that a chip can receive over its links, for the chip with the fewest links in such a slice.

    In an open dimension some chips have only one neighbour, in a ring all have two; the slowest chip sets the pace.
    """
    if self.torus_from is None:
      return self.link_rate
    links = [0 if size == 1 else 2 if size % self.torus_from == 0 else 1 for size in shape]
    return self.link_rate * sum(links)


# cloud.google.com/tpu/docs/v5e, /v5p and /v6e: bidirectional ICI of 400, 1200 and 800 GB/s a chip, of 4, 6 and 4 links;
# networks of 2 x 100 Gbit/s for the 8 chips of a v5e host, 50 Gbit/s for a v5p chip, and 4 x 200 for the 8 of v6e.
# Rings: whole cubes of 4 x 4 x 4 on v5p, the 16 of a pod's side on v5e and v6e.
# GPUs by NVIDIA's data sheets of the SXM modules: NVLink of 600, 900 and 900 GB/s in both directions; of the network
# outside of a host each is taken to have 200 Gbit/s (A100) or 400.
CHIPS = {
  "v5e": Chip("TPU v5 lite", 819e9, 50e9, 3.125e9, 16),
  "v5p": Chip("TPU v5", 2765e9, 100e9, 6.25e9, 4),
  "v6e": Chip("TPU v6 lite", 1600e9, 100e9, 12.5e9, 16),
  "a100": Chip("NVIDIA A100-SXM4-80GB", 2039e9, 300e9, 25e9, None),
  "h100": Chip("NVIDIA H100 80GB HBM3", 3350e9, 450e9, 50e9, None),
  "h200": Chip("NVIDIA H200", 4800e9, 450e9, 50e9, None),
}


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one chip in one step."""

  flops: float  # of matrix products, including recomputed ones
  hbm_bytes: float
  ici_bytes: float  # received
  dcn_bytes: float = 0.0


def roofline(work: Work, chip: Chip, shape: Sequence[int]) -> dict[str, float]:
  """Seconds that each resource needs for `work`; a step takes at least the largest, even if all of them overlap."""
  ici = chip.ici_rate(shape)
  return {
    "compute": work.flops / chip.flops,
    "HBM": work.hbm_bytes / chip.hbm_rate,
    chip.network: work.ici_bytes / ici if work.ici_bytes else 0.0,
    "DCN": work.dcn_bytes / chip.dcn_rate,
  }


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
  """("v5e", (4, 4)) of "v5e:4x4", ("h100", (8,)) of "h100:8". Raises ConfigError saying what is allowed."""
  name, _, sizes = topology.partition(":")
  shape = tuple(int(size) for size in sizes.split("x") if size.isdigit())
  gpus = [name for name, chip in CHIPS.items() if chip.is_gpu]
  tpus = [name for name in CHIPS if name not in gpus]
  known = bool(shape) and name in (gpus if len(shape) == 1 else tpus)
  if not known or "x".join(map(str, shape)) != sizes or math.prod(shape) < 1:
    raise ConfigError(
      f"--topology: {topology!r} is no topology; allowed: NAME:AxB or NAME:AxBxC, with NAME of {', '.join(tpus)}, or "
      f"NAME:NUMBER, with NAME of {', '.join(gpus)}"
    )
  return name, shape
