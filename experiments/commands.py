"""The commands of this project by purpose; docs/reference/commands.md has a section on each.

They parse their flags with absl (`cli.run`) or argparse (`cli.run_parsed`); the harness's flags are lm_eval's.
"""

COMMANDS = {
  "Train": (
    "experiments.quickstart",
    "experiments.train",
    "experiments.study",
  ),
  "Measure": (
    "experiments.evaluate",
    "experiments.generate",
    "drope_jax.evaluate.harness",
    "experiments.report",
    "experiments.seeds",
    "experiments.results",
    "experiments.factor_search",
  ),
  "Models in and out": (
    "drope_jax.interop",
    "experiments.fetch_smollm2",
  ),
  "Data": (
    "drope_jax.data.report",
    "drope_jax.data.tokenize",
    "experiments.prose",
    "experiments.recall_corpus",
  ),
  "Before a chip is booked": ("drope_jax.aot",),
  "Speed": (
    "experiments.benchmarks.cpu_goals",
    "experiments.benchmarks.train_step",
    "experiments.benchmarks.card",
    "experiments.benchmarks.long_eval",
    "experiments.benchmarks.decode",
    "experiments.benchmarks.input",
    "experiments.benchmarks.sources",
  ),
  "For contributors": ("experiments.page",),
}
HARNESS = "drope_jax.evaluate.harness"
