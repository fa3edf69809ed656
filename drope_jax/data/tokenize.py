"""Any source into token shards: `python -m drope_jax.data.tokenize --data=PATH --tokenizer=SPEC --out=DIR`.

The shards are flat arrays of uint16 or uint32, with a meta.json (sources/tokens.py says how they look). Train on them
with `--data=DIR --config.data.tokenizer=DIR/tokenizer`: the batches are those of the text itself, and nothing is
tokenised again when the context changes. The same command goes on where an interrupted one stopped; on several hosts
that see DIR, `--host=I --hosts=N` shares the work out.
"""

import logging
import os
from pathlib import Path

from absl import flags

from drope_jax import cli
from drope_jax.data.prepare import trained_tokenizer
from drope_jax.data.sources import source_at
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import load_tokenizer

DATA = flags.DEFINE_string("data", None, "Path of any kind that data/sources/at.py knows.", required=True)
PART = flags.DEFINE_string("part", "train", "Which split of it: train, heldout, fit, or a name of TFDS.")
TOKENIZER = flags.DEFINE_string("tokenizer", "byte", "A tokenizer.json, a directory that holds one, or byte.")
TRAIN_TOKENIZER = flags.DEFINE_integer(
  "train_tokenizer", None, "Train one of so many tokens on the documents, instead of --tokenizer.", lower_bound=257
)
OUT = flags.DEFINE_string("out", None, "Directory of the shards.", required=True)
SHARDS = flags.DEFINE_integer("shards", None, "How many; by default as many as the size asks for.", lower_bound=1)
PROCESSES = flags.DEFINE_integer("processes", os.cpu_count() or 1, "That work at one time.", lower_bound=1)
HOST = flags.DEFINE_integer("host", 0, "Which host this is, from 0.", lower_bound=0)
HOSTS = flags.DEFINE_integer("hosts", 1, "How many hosts share the work.", lower_bound=1)

logger = logging.getLogger("drope_jax.data.tokenize")


def main() -> None:
  documents = source_at(DATA.value).part(PART.value).documents()
  spec = trained_tokenizer(documents, TRAIN_TOKENIZER.value) if TRAIN_TOKENIZER.value else TOKENIZER.value
  out = Path(OUT.value)
  meta = write_shards(documents, load_tokenizer(spec), out, SHARDS.value, PROCESSES.value or 1, HOST.value, HOSTS.value)
  if meta is None:
    logger.info("this host's shards are written; other hosts are not done yet")
    return
  logger.info("%s: %d documents, %d tokens (%s)", OUT.value, meta["documents"], meta["tokens"], meta["dtype"])


if __name__ == "__main__":
  cli.run(main)
