"""Speed of generation: tokens/s of reading prompts and of greedy answers, ours against transformers with torch.

`python -m experiments.benchmarks.decode [--shapes=30m --batch=1 --prompt=256 --new_tokens=128 --json=FILE]`
"""

from absl import flags

from drope_jax import cli
from drope_jax.serialization import to_dict
from experiments.benchmarks import measuring
from experiments.benchmarks.figures import GENERATION_HEADER, generation_figures, generation_rows
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.shapes import shape_named
from experiments.benchmarks.sides import MODULES, check_sides

SHAPES = cli.define_list("shapes", ["1m", "30m"], "Of experiments/benchmarks/shapes.py.")
WHICH = cli.define_list("sides", list(MODULES), f"Any of {', '.join(MODULES)}.")
BATCH = flags.DEFINE_integer("batch", 1, "Prompts that are answered together.", lower_bound=1)
PROMPT = flags.DEFINE_integer("prompt", 256, "Tokens per prompt.", lower_bound=2)
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "Tokens per answer.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; in each, the sides take turns.", lower_bound=1)
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.", local=True)


def main() -> None:
  measuring.check_free(JSON.value)
  shapes = {name: shape_named(name) for name in SHAPES.value}
  check_sides(WHICH.value)
  tokens = {"prefill": BATCH.value * PROMPT.value, "decode": BATCH.value * NEW_TOKENS.value}
  found, lines, everyone = {}, [], []
  for name, shape in shapes.items():
    arguments = {"model": to_dict(shape.model), "batch_size": BATCH.value, "prompt": PROMPT.value}
    arguments["new_tokens"] = NEW_TOKENS.value
    sides = in_turns({side: (f"{MODULES[side]}:generation", arguments) for side in WHICH.value}, ROUNDS.value, {})
    found[name] = generation_figures(sides, tokens)
    lines += generation_rows(name, found[name])
    everyone += list(sides.values())
  measuring.finish(JSON.value, GENERATION_HEADER, lines, everyone, found)


if __name__ == "__main__":
  cli.run(main)
