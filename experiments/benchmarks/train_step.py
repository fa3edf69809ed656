"""Speed of a training step, ours against transformers with torch: forward, backward, clip by norm, AdamW.

`python -m experiments.benchmarks.train_step [--shapes=1m,30m --sides=ours,torch,torch_compiled --json=FILE]`

torch's sides need the extra `hf`. Both compute in float32 on a CPU; on a GPU both hold float32 weights and compute in
bfloat16. "Share" is the share of the machine's matmul ceiling, the speed of one square matrix product by JAX or torch,
whichever is faster, measured in the same run. FLOPs are counted by PaLM's convention and by the causal one (see
drope_jax/metrics.py).
"""

import itertools

from absl import flags

from drope_jax import cli
from experiments.benchmarks import measuring
from experiments.benchmarks.figures import TRAINING_HEADER, training_figures, training_rows
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.shapes import shape_named
from experiments.benchmarks.sides import CEILING, MODULES, TRAINING, training_jobs

SHAPES = cli.define_list("shapes", ["1m", "30m"], "Of experiments/benchmarks/shapes.py.")
WHICH = cli.define_list("sides", list(TRAINING), f"Any of {', '.join(TRAINING)}.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that the sides take turns.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Steps of a turn.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", None, "Rows of a step; the shape's own by default.", lower_bound=1)
SCAN = flags.DEFINE_bool("scan", False, "Ours with its layers scanned; by default they are unrolled.")
REMAT = flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "Of ours.")
PLATFORM = flags.DEFINE_enum("platform", "cpu", sorted(CEILING), "Where both sides compute.")
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.", local=True)


def matmul_ceiling(platform: str, torch_too: bool, rounds: int) -> float:
  """FLOP/s of one square matrix product: the best of all rounds and libraries."""
  size, dtype = CEILING[platform]
  names = ("ours", "torch") if torch_too else ("ours",)
  products = {name: (f"{MODULES[name]}:matmul", {"size": size, "dtype": dtype}) for name in names}
  sides = in_turns(products, rounds, {"repeats": 5})
  return max(itertools.chain.from_iterable(side.values("flops") for side in sides.values()))


def main() -> None:
  measuring.check_free(JSON.value)
  shapes = {name: shape_named(name) for name in SHAPES.value}
  if BATCH.value is not None:
    shapes = {name: shape._replace(batch_size=BATCH.value) for name, shape in shapes.items()}
  compute = {"scan_layers": SCAN.value, "remat": REMAT.value}
  todo = {name: training_jobs(shape, WHICH.value, PLATFORM.value, compute) for name, shape in shapes.items()}
  ceiling = matmul_ceiling(PLATFORM.value, any(side != "ours" for side in WHICH.value), ROUNDS.value)
  found, lines, everyone = {}, [], []
  for name, shape in shapes.items():
    sides = in_turns(todo[name], ROUNDS.value, {"steps": STEPS.value})
    found[name] = training_figures(shape, sides, ceiling)
    lines += training_rows(name, found[name])
    everyone += list(sides.values())
  measuring.finish(JSON.value, TRAINING_HEADER, lines, everyone, {"matmul_ceiling": ceiling, "shapes": found})
  print(f"\nmatmul ceiling: {ceiling / 1e12:.3f} TFLOP/s ({CEILING[PLATFORM.value][1]})")


if __name__ == "__main__":
  cli.run(main)
