"""Loss of one long text: time and peak memory by length, ours against transformers with torch.

`python -m experiments.benchmarks.long_eval [--lengths=2048,4096,8192,16384 --sides=ours,torch --json=FILE]`

The model is SmolLM2-135M's shape with random weights, or `--checkpoint`. Each length is measured in a process of its
own, so that memory peaks are separate. Our side shares the text among all devices (with `JAX_NUM_CPU_DEVICES=2`, two
cores are two devices); torch computes `model(tokens, labels=tokens).loss` with sdpa, which makes the logits of the
whole text.
"""

from absl import flags

from drope_jax import checkpoint, cli
from drope_jax.errors import ConfigError
from drope_jax.serialization import to_dict
from experiments.benchmarks import measuring
from experiments.benchmarks.figures import TEXT_HEADER, text_figures, text_rows
from experiments.benchmarks.measuring import Side, in_turns
from experiments.benchmarks.shapes import shape_named
from experiments.benchmarks.sides import MODULES, check_sides

LENGTHS = cli.define_list("lengths", ["2048", "4096", "8192", "16384", "32768", "65536"], "Tokens.")
WHICH = cli.define_list("sides", list(MODULES), f"Any of {', '.join(MODULES)}.")
SHAPE = flags.DEFINE_string("shapes", "smollm2_135m", "One of experiments/benchmarks/shapes.py.")
CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a run, or an imported model, instead of --shapes.")
ROUNDS = flags.DEFINE_integer("rounds", 1, "Times that each length is measured.", lower_bound=1)
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.", local=True)


def read_lengths(texts: list[str]) -> list[int]:
  """Lengths in tokens. Raises ConfigError for a text that is not one."""
  for text in texts:
    if not text.isdigit() or int(text) < 2:
      raise ConfigError(f"--lengths has {text!r}; it must be a number of tokens, 2 at least")
  return [int(text) for text in texts]


def main() -> None:
  measuring.check_free(JSON.value)
  lengths = read_lengths(LENGTHS.value)
  check_sides(WHICH.value)
  directory = CHECKPOINT.value
  model = shape_named(SHAPE.value).model if directory is None else checkpoint.open_step(directory).model
  arguments = {"model": to_dict(model), "directory": directory}
  measured: dict[str, dict[int, Side]] = {name: {} for name in WHICH.value}
  for length in lengths:
    for name in WHICH.value:
      job = (f"{MODULES[name]}:loss_of_a_text", {**arguments, "length": length})
      measured[name][length] = in_turns({name: job}, ROUNDS.value, {})[name]
  found = {name: text_figures(sides) for name, sides in measured.items()}
  lines = [line for name in found for line in text_rows(name, lengths, found[name])]
  everyone = [side for sides in measured.values() for side in sides.values()]
  measuring.finish(JSON.value, TEXT_HEADER, lines, everyone, found)


if __name__ == "__main__":
  cli.run(main)
