"""Tokenises any source into token shards: `python -m drope_jax.data.tokenize --data=PATH --tokenizer=SPEC --out=DIR`.

The shards are flat arrays of uint16 or uint32, with a meta.json (for the format see sources/tokens.py). Train on them
with `--data=DIR --config.data.tokenizer=DIR/tokenizer`: splits and batches are those of the text itself, and nothing is
tokenised again when the context changes. With `--config.data.packing=windows` (data/windows.py), rows are cut from the
flat tokens, and the position in the stream is one integer. The same command resumes after an interruption; on several
hosts that share DIR, `--host=I --hosts=N` divides the work.
"""

import logging
import os
from collections.abc import Mapping

from absl import flags

from drope_jax import cli
from drope_jax.data.prepare import check_outside, trained_tokenizer
from drope_jax.data.sources import Cut, Source, source_at
from drope_jax.data.splits import part_of
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError

logger = logging.getLogger("drope_jax.data.tokenize")


def main(flag: Mapping[str, flags.FlagHolder]) -> None:
  """The command; `flag` holds the flags below by name."""
  given = {name: holder.value for name, holder in flag.items()}
  if given["host"] >= given["hosts"]:
    raise ConfigError(f"--host is {given['host']}; of {given['hosts']} hosts it is one from 0 to {given['hosts'] - 1}")
  source, vocab_size, out = source_at(given["data"]), given["train_tokenizer"], given["out"]
  check_outside(given["data"], out, "--out")
  part = part_of(given["data"], given["part"] or "train")
  if given["part"] is None and isinstance(source, Cut):  # the shards can be split in the same way
    part = source.source
  said = others_not_written(source, given["part"], out)
  if said:
    logger.warning("%s", said)
  spec = trained_tokenizer(source.part("train").documents(), vocab_size) if vocab_size else given["tokenizer"]
  documents, tokenizer = part.documents(), load_tokenizer(spec)
  meta = write_shards(
    documents,
    tokenizer,
    out,
    given["shards"],
    given["processes"] or os.cpu_count() or 1,
    host=given["host"],
    hosts=given["hosts"],
  )
  if meta is None:
    logger.info("this host's shards are written; other hosts are not done yet")
    return
  logger.info("%s: %s documents, %s tokens (%s)", out, f"{meta['documents']:,}", f"{meta['tokens']:,}", meta["dtype"])
  if meta.get("left_out"):
    logger.warning("%s bad documents were left out", f"{meta['left_out']:,}")


def others_not_written(source: Source, part: str | None, out: str) -> str:
  """A warning if `source` has several splits and none was asked for; "" otherwise."""
  if part is not None or isinstance(source, Cut):
    return ""
  return (
    f"of the splits of this data only 'train' is written; train on the shards with --data={out},heldout=PATH, where "
    "PATH is the text to measure on (without it, 1 % of the shards is held out, and 1 % is left to fit on)"
  )


if __name__ == "__main__":
  FLAGS = {
    "data": cli.define_path("data", None, "Path of any kind that data/sources/at.py knows.", required=True),
    "part": flags.DEFINE_string(
      "part",
      None,
      "One split of it alone: train, heldout, fit, or a name of TFDS; default: all, or train if it has splits.",
    ),
    "tokenizer": cli.define_path("tokenizer", "byte", "A tokenizer.json, a directory that holds one, or byte."),
    "train_tokenizer": flags.DEFINE_integer(
      "train_tokenizer",
      None,
      "Train a tokenizer with this many ids on the documents, instead of --tokenizer.",
      lower_bound=257,
    ),
    "out": cli.define_path("out", None, "Directory of the shards.", required=True, local=True),
    "shards": flags.DEFINE_integer("shards", None, "Number of shards; default: depends on the size.", lower_bound=1),
    "processes": flags.DEFINE_integer("processes", None, "Number of processes; default: one per core.", lower_bound=1),
    "host": flags.DEFINE_integer("host", 0, "Index of this host, from 0.", lower_bound=0),
    "hosts": flags.DEFINE_integer("hosts", 1, "Number of hosts that share the work.", lower_bound=1),
  }
  cli.run(lambda: main(FLAGS))
