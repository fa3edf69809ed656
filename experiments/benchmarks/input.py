"""Speed of the data pipeline: its tokens/s, and the share of a training step spent waiting for data.

`python -m experiments.benchmarks.input [--shapes=1m,30m --dataset=DIR --tokenizer=SPEC --json=FILE]`

By default the corpus is the documentation of the installed packages, as in the quickstart, with the byte tokenizer.
"Waits" is the time of a step on the pipeline's batches less that on one fixed batch, as a share; the two take turns.
"""

import tempfile
from pathlib import Path

from absl import flags

from drope_jax import cli
from drope_jax.config import DataConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.docstrings import gather
from drope_jax.data.pipeline import SHUFFLED_BATCHES
from drope_jax.data.sources import source_at
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.serialization import to_dict
from experiments.benchmarks import measuring
from experiments.benchmarks.figures import INPUT_HEADER, input_figures, input_row
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.shapes import shape_named

SHAPES = cli.define_list("shapes", ["1m", "30m"], "Of experiments/benchmarks/shapes.py.")
DATASET = cli.define_path(
  "dataset", None, "Path of any kind that data/sources/at.py knows; documentation strings by default."
)
TOKENIZER = cli.define_path("tokenizer", "byte", "As DataConfig.tokenizer; no larger than the shape's vocabulary.")
WORKERS = flags.DEFINE_integer("num_workers", 0, "As DataConfig.num_workers.", lower_bound=0)
DOCUMENT_MASK = flags.DEFINE_bool("document_mask", False, "As DataConfig.document_mask.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; in each, the measurements take turns.", lower_bound=1)
STEPS = flags.DEFINE_integer(
  "steps", SHUFFLED_BATCHES, "Steps per round; with fewer, a round may miss the reading of rows.", lower_bound=1
)
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.", local=True)


def main() -> None:
  measuring.check_free(JSON.value)
  shapes = {name: shape_named(name) for name in SHAPES.value}
  load_tokenizer(TOKENIZER.value)  # fails early, before the corpus is made
  if DATASET.value is not None:
    source_at(DATASET.value)
  found, lines, everyone = {}, [], []
  with tempfile.TemporaryDirectory() as folder:
    directory = DATASET.value or str(build_corpus(Path(folder) / "corpus", {"train": gather()}))
    for name, shape in shapes.items():
      data = DataConfig(
        directory=directory,
        tokenizer=TOKENIZER.value,
        context=shape.context,
        batch_size=shape.batch_size,
        document_mask=DOCUMENT_MASK.value,
        num_workers=WORKERS.value,
      )
      arguments = {"model": to_dict(shape.model), "compute": {"scan_layers": False}, "data": to_dict(data)}
      job = ("experiments.benchmarks.ours:training_with_data", arguments)
      side = in_turns({name: job}, ROUNDS.value, {"steps": STEPS.value})[name]
      found[name] = input_figures(side, shape.batch_size * shape.context)
      lines.append(input_row(name, found[name]))
      everyone.append(side)
  measuring.finish(JSON.value, INPUT_HEADER, lines, everyone, found)


if __name__ == "__main__":
  cli.run(main)
