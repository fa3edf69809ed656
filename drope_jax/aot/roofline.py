"""The roofline model: the rates of a TPU chip, the work of a step, and the seconds that each resource needs."""

import dataclasses
import math
from collections.abc import Sequence

from drope_jax.errors import ConfigError
from drope_jax.platforms import MEMORY, PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU chip, which is one device. Rates are bytes per second, in one direction."""

  device_kind: str
  hbm_rate: float
  link_rate: float  # of one link to a neighbour (ICI)
  dcn_rate: float  # a chip's share of its host's network, which connects slices
  torus_from: int  # a dimension of a slice is a ring if its size is a multiple of this

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
    links = [0 if size == 1 else 2 if size % self.torus_from == 0 else 1 for size in shape]
    return self.link_rate * sum(links)


# cloud.google.com/tpu/docs/v5e, /v5p and /v6e: bidirectional ICI of 400, 1200 and 800 GB/s a chip, of 4, 6 and 4 links;
# networks of 2 x 100 Gbit/s for the 8 chips of a v5e host, 50 Gbit/s for a v5p chip, and 4 x 200 for the 8 of v6e.
# Rings: whole cubes of 4 x 4 x 4 on v5p, the 16 of a pod's side on v5e and v6e.
CHIPS = {
  "v5e": Chip("TPU v5 lite", 819e9, 50e9, 3.125e9, 16),
  "v5p": Chip("TPU v5", 2765e9, 100e9, 6.25e9, 4),
  "v6e": Chip("TPU v6 lite", 1600e9, 100e9, 12.5e9, 16),
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
    "ICI": work.ici_bytes / ici if work.ici_bytes else 0.0,
    "DCN": work.dcn_bytes / chip.dcn_rate,
  }


def parse_topology(topology: str) -> tuple[str, tuple[int, ...]]:
  """("v5e", (4, 4)) of "v5e:4x4". Raises ConfigError saying what is allowed."""
  name, _, sizes = topology.partition(":")
  shape = tuple(int(size) for size in sizes.split("x") if size.isdigit())
  if name not in CHIPS or not shape or "x".join(map(str, shape)) != sizes or math.prod(shape) < 1:
    raise ConfigError(
      f"--topology: {topology!r} is no topology; allowed: NAME:AxB or NAME:AxBxC, with NAME of {', '.join(CHIPS)}"
    )
  return name, shape
