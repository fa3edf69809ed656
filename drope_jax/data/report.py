"""Reports what is in a source: `python -m drope_jax.data.report --data=PATH [--tokenizer=SPEC --limit=N --out=DIR]`.

Prints documents, tokens, lengths, the share of long documents, duplicates, bytes per token, bad documents and samples;
with `--out` also writes report.txt and lengths.png there.
"""

import collections
import dataclasses
import hashlib
import logging
import re
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from drope_jax import cli
from drope_jax.data.identity import digest
from drope_jax.data.prepare import check_outside
from drope_jax.data.sources import Documents
from drope_jax.data.splits import part_of
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.errors import ConfigError, DataError
from drope_jax.files import replace_whole, writing

CONTEXTS = (512, 2048, 8192, 32768)  # tokens above which a document counts as long
SAMPLES, SAMPLED_CHARACTERS = 3, 300
SHOWN_ERRORS = 5

logger = logging.getLogger("drope_jax.data.report")


@dataclasses.dataclass
class Summary:
  """Statistics of the documents that were read."""

  name: str
  documents: int  # in the source, including other splits
  lengths: np.ndarray  # in tokens, without EOS, of each document that was read
  bytes: int  # of their text
  duplicates: int  # documents with the same text as an earlier one
  bad: list[str]  # one line per document that is not text, and per damaged file
  left_out: int  # bad documents that the source skips
  samples: list[str]

  def text(self) -> str:
    """The report as text."""
    lengths, tokens = self.lengths, int(self.lengths.sum())
    read = len(lengths)
    whole = "" if read == self.documents else f" of {self.documents:,}, which include other parts"
    quantiles = np.quantile(lengths, (0.1, 0.5, 0.9, 0.99)).astype(int)
    lines = [
      f"{self.name}",
      f"documents read      {read:,}{whole}",
      f"tokens              {tokens:,} ({self.bytes / max(tokens, 1):.2f} bytes per token, {self.bytes:,} bytes)",
      f"length in tokens    mean {lengths.mean():,.0f}; 10 % {quantiles[0]:,}, median {quantiles[1]:,}, "
      f"90 % {quantiles[2]:,}, 99 % {quantiles[3]:,}; longest {lengths.max():,}",
      *(
        f"longer than {context:<8,}{np.mean(lengths > context):.1%} of the documents, with "
        f"{lengths[lengths > context].sum() / max(tokens, 1):.1%} of the tokens"
        for context in CONTEXTS
      ),
      f"duplicates          {self.duplicates:,} documents ({self.duplicates / len(lengths):.1%})",
      f"bad                 {len(self.bad):,}",
      *(f"  {line}" for line in self.bad[:SHOWN_ERRORS]),
      *([f"bad and left out    {self.left_out:,}"] if self.left_out else []),
      "",
      "tokens        documents",
      *(f"{low:>6,} - {high - 1:<8,}{count:>8,}" for low, high, count in self.histogram()),
    ]
    for sample in self.samples:
      lines += ["", "--- a sample ---", sample]
    return "\n".join(lines) + "\n"

  def histogram(self) -> list[tuple[int, int, int]]:
    """Counts of documents by length, in powers of two."""
    counts = collections.Counter(int(length).bit_length() for length in self.lengths)
    return [(1 << bits >> 1, 1 << bits, counts[bits]) for bits in range(min(counts), max(counts) + 1)]

  def plot(self, path: Path) -> None:
    """Plots the distribution of documents, and of their tokens, over the length."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lengths = np.maximum(self.lengths, 1)
    bins = np.geomspace(1, max(2, int(lengths.max())), 40).tolist()
    axes.hist(lengths, bins, weights=np.full(len(lengths), 1 / len(lengths)), alpha=0.6, label="documents")
    axes.hist(lengths, bins, weights=lengths / lengths.sum(), alpha=0.6, label="tokens")
    axes.set(xscale="log", xlabel="length of the document (tokens)", ylabel="share")
    axes.legend()
    figure.savefig(path, dpi=150)


def summarise(documents: Documents, tokenizer: Tokenizer, limit: int | None = None) -> Summary:
  """Reads all documents, or `limit` evenly spread ones. Raises ConfigError if none of them is text."""
  count = len(documents)
  places = range(count) if limit is None else sorted({int(place) for place in np.linspace(0, count - 1, limit)})
  lengths, bad, samples, size = [], dict.fromkeys(documents.damaged), [], 0  # a damaged file is one line
  seen: set[bytes] = set()
  wanted = {int(place) for place in np.linspace(0, len(places) - 1, SAMPLES)} if count else set()
  for number, place in enumerate(places):
    try:
      document = documents.at(place)
    except DataError as error:
      bad[str(error)] = None
      continue
    if document is None:
      continue
    if isinstance(document, str):
      content, length = document.encode(), len(tokenizer.encode(document))
    else:
      content, length = tokenizer.decode(document.tolist()).encode(), len(document)
    seen.add(hashlib.sha256(content).digest()[:16])
    lengths.append(length)
    size += len(content)
    if number in wanted:
      samples.append(content.decode()[:SAMPLED_CHARACTERS])
  if not lengths:
    raise ConfigError(
      f"{documents.name}: none of {len(places)} documents is text{''.join(f': {line}' for line in [*bad][:1])}"
    )
  duplicates = len(lengths) - len(seen)
  return Summary(documents.name, count, np.asarray(lengths), size, duplicates, [*bad], documents.left_out, samples)


def tokenizer_of(documents: Documents, path: str, spec: str | None) -> Tokenizer:
  """The tokenizer of `spec`; for None, that of the token shards at `path`, or bytes for text.

  Raises:
    ConfigError: if the tokens were made with another tokenizer.
  """
  shards = re.split("[,#]", path)[0]
  own = f"{shards}/tokenizer"
  tokenizer = load_tokenizer(spec or ("byte" if documents.tokenizer is None else own))
  if documents.tokenizer not in (None, digest(tokenizer)):
    raise ConfigError(
      f"{shards}: --tokenizer is {spec or own}, and not the one that these tokens were made with; theirs is in the "
      "folder `tokenizer` of the shards"
    )
  return tokenizer


def main(path: str, part: str, tokenizer: str | None, limit: int | None, out: Path | None) -> None:
  """The command."""
  if out is not None:
    check_outside(path, out, "--out")
  documents = part_of(path, part).documents()
  found = summarise(documents, tokenizer_of(documents, path, tokenizer), limit)
  summary = dataclasses.replace(found, name=f"{path}, split {part!r}")
  print(summary.text(), end="")
  if out is not None:
    with writing(out):
      out.mkdir(parents=True, exist_ok=True)
    replace_whole(out / "report.txt", summary.text())
    with writing(out / "lengths.png"):
      summary.plot(out / "lengths.png")
    logger.info("%s: report.txt and lengths.png", out)


if __name__ == "__main__":
  DATA = cli.define_path("data", None, "Path of any kind that data/sources/at.py knows.", required=True)
  PART = flags.DEFINE_string("part", "train", "Which split of it: train, heldout, fit, or a name of TFDS.")
  TOKENIZER = cli.define_path(
    "tokenizer", None, "A tokenizer.json, a directory that holds one, or byte; default: byte, and of shards their own."
  )
  LIMIT = flags.DEFINE_integer("limit", None, "Documents to read, evenly spread; default: all.", lower_bound=1)
  OUT = cli.define_path("out", None, "Directory for report.txt and lengths.png.", local=True)
  cli.run(
    lambda: main(DATA.value, PART.value, TOKENIZER.value, LIMIT.value, None if OUT.value is None else Path(OUT.value))
  )
