"""Speed of reading from each kind of source: `python -m experiments.benchmarks.sources [--json=FILE ...]`.

The same documents are stored as each kind, and read as by a run: shuffled, tokenised, cut into rows. Nothing is
trained. "tokens" are shards of drope_jax.data.tokenize, and "windows" are the same with DataConfig.packing "windows".
The first opening, which makes indexes and copies, is measured too; memory is that of the whole process.
"""

import itertools
import tempfile
from pathlib import Path

from absl import flags

from drope_jax import cli
from drope_jax.config import DataConfig
from drope_jax.data.docstrings import gather
from drope_jax.data.prepare import trained_tokenizer
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import check
from drope_jax.serialization import to_dict
from experiments.benchmarks import measuring
from experiments.benchmarks.figures import SOURCES_HEADER, source_figures, source_row
from experiments.benchmarks.measuring import in_turns
from experiments.benchmarks.stores import KINDS, stored

SOURCES = cli.define_list("sources", list(KINDS), f"Any of {', '.join(KINDS)}.")
DATASET = cli.define_path(
  "dataset", None, "Documents of any kind that data/sources/at.py knows; docstrings by default."
)
LIMIT = flags.DEFINE_integer("limit", None, "Number of documents to read; default: all.", lower_bound=1)
VOCABULARY = flags.DEFINE_integer(
  "vocab_size", 4096, "Ids of the tokenizer that is trained on the documents.", lower_bound=257
)
CONTEXT = flags.DEFINE_integer("context", 1024, "As DataConfig.context.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "As DataConfig.batch_size.", lower_bound=1)
WORKERS = flags.DEFINE_integer("num_workers", 0, "As DataConfig.num_workers.", lower_bound=0)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; in each, the sources take turns.", lower_bound=1)
BATCHES = flags.DEFINE_integer("batches", 64, "Batches per round.", lower_bound=1)
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.")


def main() -> None:
  measuring.check_free(JSON.value)
  for kind in SOURCES.value:
    check(kind in KINDS, f"--sources has {kind!r}; allowed: {', '.join(KINDS)}")
  found = gather() if DATASET.value is None else documents(DATASET.value, "train")
  texts = list(itertools.islice(found, LIMIT.value))
  with tempfile.TemporaryDirectory() as folder:
    text, _ = stored("text", texts, Path(folder), load_tokenizer("byte"))
    spec = trained_tokenizer(text.documents(), VOCABULARY.value)
    jobs = {}
    for kind in SOURCES.value:
      source, packing = stored(kind, texts, Path(folder), load_tokenizer(spec))
      data = DataConfig(
        source=source,
        packing=packing,
        tokenizer=spec,
        context=CONTEXT.value,
        batch_size=BATCH_SIZE.value,
        num_workers=WORKERS.value,
      )
      jobs[kind] = ("experiments.benchmarks.stores:reading", {"data": to_dict(data)})
    sides = in_turns(jobs, ROUNDS.value, {"batches_read": BATCHES.value})
  figures = {kind: source_figures(side, BATCH_SIZE.value * CONTEXT.value) for kind, side in sides.items()}
  rows = [source_row(kind, figure) for kind, figure in figures.items()]
  measuring.finish(JSON.value, SOURCES_HEADER, rows, sides.values(), figures)


if __name__ == "__main__":
  cli.run(main)
