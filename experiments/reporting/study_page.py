"""The page of a study in docs/results: how it was made, its tables and pictures, the paper's tables.

In data/, beside the page, lie NAME.csv and NAME.json (summary_files.py), the pictures, and NAME.txt: what a person has
to say about the result, in Markdown. The page is made of these, and NAME.txt is never written.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure as Canvas
from PIL import Image

from drope_jax.errors import ReportError
from drope_jax.evaluate.figures import LOSS
from drope_jax.files import replace_whole
from drope_jax.markdown import block, plain
from experiments.reporting import seed_plots, seed_tables
from experiments.reporting.paper_tables import paper_section
from experiments.reporting.summary import Summary
from experiments.reporting.summary_files import csv_text, read_summary
from experiments.reporting.training_tables import show_count, show_duration
from experiments.reporting.writing import ABOUT, markdown, save

DATA = "data"  # folder beside the pages
DPI = 100
MOST_BYTES = 150_000  # of a picture that is kept in the repository


class PagePicture(NamedTuple):
  """A picture of a page."""

  name: str
  caption: str


def write_page(path: Path, *, pictures: bool = True) -> None:
  """Writes a page, and its pictures, from the files in data/ beside it.

  Raises:
    ReportError: they cannot be read, or a picture is too large to be kept in the repository.
  """
  summary = read_summary(data_of(path))
  for picture, canvas in drawn(summary, path.stem) if pictures else []:
    _save(canvas, path.parent / DATA / picture.name, digest(summary))
  replace_whole(path, page_text(summary, path.stem, findings(path)))


def data_of(path: Path) -> Path:
  """The NAME.json of a page."""
  return path.parent / DATA / f"{path.stem}.json"


def findings(path: Path) -> str:
  """What a person has written about the study of a page; empty if nobody has."""
  written = path.parent / DATA / f"{path.stem}.txt"
  return written.read_text(encoding="utf-8").strip() if written.exists() else ""


def page_text(summary: Summary, name: str, said: str = "") -> str:
  """The page as Markdown."""
  making = summary.making
  over = _over(summary)
  parts = [
    f"# {plain(making.title)}",
    *([said] if said else []),
    _facts(summary),
    block(making.command),
    "## Measured",
    _about(summary, over),
    *(table.markdown for table in seed_tables.compact_tables(summary)),
    *seed_tables.coefficient_lines(summary),
    *(f"![{one.caption}]({DATA}/{one.name})\n\n*{one.caption}*" for one in _pictures(summary, name)),
    *map(markdown, paper_section(name)),
    f"Every figure at every length, by seed: [{name}.csv]({DATA}/{name}.csv). This page is made of it by "
    "`python -m experiments.results`.",
  ]
  return "\n\n".join(parts) + "\n"


def _over(summary: Summary) -> str:
  return f"seeds {', '.join(map(str, summary.seeds))}" if len(summary.seeds) > 1 else f"seed {summary.seeds[0]} alone"


def _facts(summary: Summary) -> str:
  making = summary.making
  parts = [
    f"{making.parameters:,} parameters" if making.parameters else "",
    f"context {summary.train_context:,}",
    f"{show_count(making.tokens)} training tokens in all runs of a seed" if making.tokens else "",
    _over(summary),
  ]
  where = [making.machine, making.date, f"commit {making.commit}" if making.commit else ""]
  where += [", ".join(f"{name} {version}" for name, version in making.versions.items())]
  where += [f"{show_duration(making.seconds)} a seed" if making.seconds else ""]
  return f"{', '.join(filter(None, parts))}. {plain('; '.join(filter(None, where)))}."


def _about(summary: Summary, over: str) -> str:
  if len(summary.seeds) == 1:
    text = f"Of {over}, with the 95 % bootstrap interval over documents or prompts"
  else:
    text = f"Mean ± standard deviation over {over}"
  metrics = {task: summary.metrics(task)[0] for task in summary.tasks}
  named = [f"{plain(task)}: {plain(metric)}" for task, metric in metrics.items() if metric not in (task, LOSS)]
  text += f"; {'; '.join(['loss in nats per token', *named])}."
  base = seed_tables.compared_with(summary)
  if not base:
    return text
  if len(summary.seeds) == 1:
    return f"{text} “Minus control”: the difference from {base}, of which one seed gives no interval."
  return (
    f"{text} “Minus control”: the difference from {base}, with the 95 % interval of its mean (Student's t), bold where "
    "that leaves 0 out."
  )


def _pictures(summary: Summary, name: str) -> list[PagePicture]:
  several = len(summary.seeds) > 1
  bars = "standard deviation over seeds" if several else "95 % interval over documents or prompts"
  cut = " Not all rows are drawn." if len(seed_plots.shown_rows(summary)) < len(summary.rows) else ""
  found = [PagePicture(f"{name}_lengths.png", f"What was measured, against length. Bars: {bars}.{cut}")]
  if seed_plots.recovery_rows(summary):
    banded = any(one.low is not None for run in summary.curves for one in seed_tables.recovery(summary, run).values())
    documents = "documents, paired with the control's (Student's t over groups of them)"
    band = f" Band: 95 % interval over {'seeds' if several else documents}." if banded else ""
    found.append(PagePicture(f"{name}_recovery.png", f"Held-out loss in context less that of the control.{band}{cut}"))
  return found


def drawn(summary: Summary, name: str) -> list[tuple[PagePicture, Canvas]]:
  """The pictures of a study over its seeds, whose files begin with `name`."""
  canvases = [seed_plots.draw_lengths(summary), seed_plots.draw_recovery(summary)]
  return list(zip(_pictures(summary, name), [canvas for canvas in canvases if canvas is not None], strict=True))


def digest(summary: Summary) -> str:
  """Of the figures that the pictures of a page are drawn from."""
  return hashlib.sha256(csv_text(summary).encode()).hexdigest()[:16]


def picture_digest(path: Path) -> str | None:
  """What a picture was drawn from, as it says itself."""
  with Image.open(path) as image:
    return image.info.get(ABOUT)


def _save(canvas: Canvas, path: Path, drawn_from: str) -> None:
  save(canvas, path.parent, path.stem, dpi=DPI, about=drawn_from)
  if path.stat().st_size > MOST_BYTES:
    raise ReportError(f"{path}: has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are kept in the repository")
