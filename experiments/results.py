"""Regenerates the pages of docs/results: `python -m experiments.results [--out=docs/results]`.

A study's page is made from the figures in data/ (experiments/seeds.py --page puts them there) and the findings that a
person has written in data/NAME.txt. index.md lists the claims of the paper, each with a verdict by rule, and the pages.
Pages without data are written by hand. Verdicts on claims that no rule decides, such as those on a picture, are read
from verdicts.json: `{"figure 4": {"evidence": "[figures](figures.md)", "verdict": "holds"}}`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from drope_jax import cli
from drope_jax.errors import ReportError
from drope_jax.files import replace_whole
from experiments.reporting import claims
from experiments.reporting.aim import aim_table
from experiments.reporting.study_page import DATA, write_page
from experiments.reporting.summary_files import read_summary
from experiments.reporting.verdicts import RULE, claims_table, judged

RESULTS = Path(__file__).parents[1] / "docs" / "results"

ABOUT = """\
Every number comes from the command on its page, with its seeds and hardware. What is not there has not been measured.
The tables above and those of the studies' pages are generated from the numbers in data/. The text that introduces a
page is written by a person, and so are verdicts on pictures, which are marked as judged. At the size mini two studies
ran at a time on two cores, so that the minutes per seed on their pages are more than a study takes alone; the
docstrings of the studies estimate that.
`experiments/configs/pretrain.py` and `recalibrate.py`, the paper's own sizes, have not been run."""

SHORT = """\
In short: dropping the embedding lets a model find what lies far beyond its context, shown at 15.7M parameters and in
part at 0.9M. Within the context it costs 0.2 to 0.5 nats, which the paper does not find at its sizes. A partial drop,
which is ours, avoids most of that cost. For a pretrained model with few tokens to recalibrate on, RoPE with YaRN did
better beyond the context than any drop that was measured there."""

PRIZE = """\
The aim was a drop that costs less than 2 % of perplexity in context, against RoPE continued, and keeps its needles at 4
and 8 times the context. Half a turn reaches it at 0.9M parameters, with a context of 128 tokens and base 1e4, on seeds
that did not choose it; with base 1e5 it costs as little, and whether needles are kept is open. With twice the context
it costs as little too, but there every partial drop finds fewer needles at 8 times than in context (shown with base
1e4; with 1e5 shown for one and two turns). Two turns reach the aim at 15.7M. Three of its five seeds chose them; the
other two agree, but are too few to show it alone. SmolLM2-135M-Instruct does not reach it within 13M tokens: not in
context with half a turn, one or two, and not beyond it with one or two ([page](smollm2.md#recalibrated)). So no single
threshold reaches the aim everywhere.

Recalibration is not what finds the needles: at 0.9M, half a turn that is clipped and not trained on finds 4.8 points
more of them at 8 times than the recalibrated model, and costs 0.012 nats in context instead of 0.006
([page](partial_drop_half.md)). Recalibration lowers the loss."""

AIM_RULE = """\
In each cell: the loss in context less that of RoPE continued; then the share of needles found at 4× and at 8×, less
that found in context (the full drop with its fitted temperature, where one was fitted). Means over seeds with 95 %
intervals. The aim is **reached** if the cost is below 0.02 nats and both losses of needles are below 5 points, by the
rule above; what is open or missed is marked."""


def pages(directory: Path) -> list[Path]:
  """The pages that are made from figures in data/."""
  return [directory / f"{path.stem}.md" for path in sorted((directory / DATA).glob("*.json"))]


def index_text(directory: Path) -> str:
  """The text of index.md: claims, verdicts, and a list of the pages."""
  summaries = {page.stem: read_summary(directory / DATA / f"{page.stem}.json") for page in pages(directory)}
  listed = [f"- [{_title(page)}]({page.name})" for page in sorted(directory.glob("*.md")) if page.stem != "index"]
  by_hand = judged(directory / "verdicts.json")
  parts = [
    "# Results",
    SHORT,
    claims_table(claims.PAPER, summaries, "claim of the paper", by_hand),
    RULE,
    "## The partial drop, which is ours",
    PRIZE,
    aim_table(summaries),
    AIM_RULE,
    claims_table(claims.OURS, summaries, "claim", by_hand),
    "## Pages",
    ABOUT,
    "\n".join(listed),
    "```{toctree}\n:hidden:\n:glob:\n\n*\n```",
  ]
  return "\n\n".join(parts) + "\n"


def _title(page: Path) -> str:
  found = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
  if found is None:
    raise ReportError(f"{page}: has no title, a line that begins with '# '")
  return found[1]


def write_index(directory: Path) -> None:
  replace_whole(directory / "index.md", index_text(directory))


def write_all(directory: Path, *, pictures: bool = True) -> list[Path]:
  """Writes every page and the index; returns the paths of the pages. Raises ReportError if there is no data."""
  found = pages(directory)
  if not found:
    raise ReportError(
      f"{directory}: has no {DATA}/NAME.json; python -m experiments.seeds DIR ... --page=FILE writes one"
    )
  for page in found:
    write_page(page, pictures=pictures)
  write_index(directory)
  return found


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.results", about=__doc__)
  parser.add_argument(
    "--out",
    type=cli.path_argument,
    default=str(RESULTS),
    metavar="DIR",
    help="folder of the pages; default: docs/results",
  )
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), lambda given: print(*write_all(Path(given.out)), sep="\n"), arguments)


if __name__ == "__main__":
  sys.exit(main())
