"""The sides of a comparison, by name: in which module the functions of their workers are, and what these are told."""

from typing import Any

from drope_jax.errors import ConfigError
from drope_jax.serialization import to_dict
from experiments.benchmarks.shapes import Shape

MODULES = {"ours": "experiments.benchmarks.ours", "torch": "experiments.benchmarks.theirs"}
TRAINING = ("ours", "torch", "torch_compiled")
CEILING = {"cpu": (2048, "float32"), "gpu": (8192, "bfloat16")}  # size and dtype of the product that is the ceiling


def check_sides(names: list[str], allowed: tuple[str, ...] = tuple(MODULES)) -> None:
  """Raises ConfigError for a name of --sides that is none."""
  for name in names:
    if name not in allowed:
      raise ConfigError(f"--sides has {name!r}; allowed: {', '.join(allowed)}")


def training_jobs(
  shape: Shape, sides: list[str], platform: str, compute: dict[str, Any]
) -> dict[str, tuple[str, dict]]:
  """The function and the arguments of each side's worker, for the training step of one shape.

  Args:
    sides: of TRAINING. Raises ConfigError for another.
    platform: of CEILING.
    compute: settings of ours (ComputeConfig).
  """
  check_sides(sides, TRAINING)
  dtype = CEILING[platform][1]
  size = {"context": shape.context, "batch_size": shape.batch_size}
  common = {"model": to_dict(shape.model), **size, "platform": platform}
  own = {**common, "compute": {**compute, "dtype": dtype}}
  known = {name: {**common, "dtype": dtype, "compiled": name == "torch_compiled"} for name in TRAINING} | {"ours": own}
  return {name: (f"{MODULES[name.removesuffix('_compiled')]}:train_step", known[name]) for name in sides}
