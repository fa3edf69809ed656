"""The page of a study in docs/results: findings, how it was made, its tables and pictures, and the paper's tables.

A page is made from the files in data/ beside it: NAME.csv and NAME.json (summary_files.py), the pictures, and NAME.txt,
the findings in Markdown. These are written by a person; no command writes NAME.txt.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.figure import Figure as Canvas
from PIL import Image

from drope_jax.errors import ReportError
from drope_jax.evaluate.figures import LOSS
from drope_jax.files import replace_whole
from drope_jax.markdown import block, plain
from experiments.reporting import rate_plots, seed_curves, seed_plots, seed_tables
from experiments.reporting.dots import about_lengths
from experiments.reporting.paper_tables import paper_section
from experiments.reporting.spread import Spread
from experiments.reporting.summary import TOKENS, Summary
from experiments.reporting.summary_files import csv_text, read_summary
from experiments.reporting.training_tables import show_count, show_duration
from experiments.reporting.writing import ABOUT, Picture, markdown, save, shrink

DATA = "data"  # folder beside the pages
DPI = 100
MOST_BYTES = 150_000  # of a picture that is kept in the repository


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
  """The text of NAME.txt; empty if there is none."""
  written = path.parent / DATA / f"{path.stem}.txt"
  return written.read_text(encoding="utf-8").strip() if written.exists() else ""


def page_text(summary: Summary, name: str, written: str = "") -> str:
  """The page as Markdown."""
  making = summary.making
  over = _over(summary)
  parts = [
    f"# {plain(making.title)}",
    *([written] if written else []),
    _facts(summary),
    block(making.command),
    "## Measured",
    _about(summary, over),
    *(table.markdown for table in seed_tables.compact_tables(summary)),
    *_by_distance(summary),
    *([table.markdown] if (table := seed_curves.tokens_table(summary)) is not None else []),
    *seed_tables.coefficient_lines(summary),
    *(picture._replace(name=f"{DATA}/{picture.name}").markdown for picture in _pictures(summary, name)),
    *map(markdown, paper_section(name)),
    f"Every figure at every length, by seed: [{name}.csv]({DATA}/{name}.csv). This page is generated from it by "
    "`python -m experiments.results`.",
  ]
  return "\n\n".join(parts) + "\n"


def _over(summary: Summary) -> str:
  return f"seeds {', '.join(map(str, summary.seeds))}" if len(summary.seeds) > 1 else f"seed {summary.seeds[0]} only"


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
  where += [f"{show_duration(making.seconds)} per seed" if making.seconds else ""]
  return f"{', '.join(filter(None, parts))}. {plain('; '.join(filter(None, where)))}."


def _about(summary: Summary, over: str) -> str:
  if len(summary.seeds) == 1:
    text = f"Results of {over}, with the 95 % bootstrap interval over documents or prompts"
  else:
    text = f"Mean ± standard deviation over {over}"
  metrics = {task: summary.metrics(task)[0] for task in summary.tasks}
  named = [f"{plain(task)}: {plain(metric)}" for task, metric in metrics.items() if metric not in (task, LOSS)]
  text += f"; {'; '.join(['loss in nats per token', *named])}."
  base = seed_tables.compared_with(summary)
  if not base:
    return text
  if len(summary.seeds) == 1:
    return f"{text} “Minus control”: the difference from {base}; one seed gives no interval for it."
  return (
    f"{text} “Minus control”: the difference from {base}, with the 95 % interval of its mean (Student's t), bold where "
    "the interval excludes 0."
  )


def _by_distance(summary: Summary) -> list[str]:
  tables = [table.markdown for table in seed_tables.distance_tables(summary)]
  about = "Gain: how many nats per token a copied piece is likelier than one that never stood in the text."
  return [about, *tables] if tables else []


def _pictures(summary: Summary, name: str) -> list[Picture]:
  several = len(summary.seeds) > 1
  bars = "standard deviation over seeds" if several else "95 % interval over documents or prompts"
  count = len(seed_plots.lengths_groups(summary))
  found = []
  for number in range(1, count + 1):
    part = f" ({number} of {count})" if count > 1 else ""
    stem = f"{name}_lengths" + (f"_{number}" if number > 1 else "")
    found.append(Picture(f"{stem}.png", f"{about_lengths(summary, part)} Bars: {bars}."))
  if rate_plots.rate_lines(summary):
    shown = "Loss in context by peak learning rate: runs that differ in it alone are joined."
    found.append(Picture(f"{name}_rates.png", f"{shown} Bars: {bars}."))
  documents = "documents, paired with the control's (Student's t over groups of them)"
  band = f" Band: 95 % interval over {'seeds' if several else documents}."
  by_step = [seed_curves.recovery(summary, run) for run in summary.curves()]
  if any(by_step):
    shown = "Held-out loss in context less that of the control (the line at 0)."
    found.append(Picture(f"{name}_recovery.png", shown + (band if _banded(by_step) else "")))
  by_tokens = [seed_curves.token_gap(summary, run) for run in summary.curves(TOKENS)]
  if any(by_tokens):
    base = seed_curves.base_label(summary)
    shown = f"Held-out loss in context by training tokens of the whole arm, and its difference from “{base}”."
    beside = " Bands: standard deviation over seeds, and 95 % interval of the mean difference." if several else band
    found.append(Picture(f"{name}_tokens.png", shown + (beside if _banded(by_tokens) else "")))
  return found


def _banded(curves: Iterable[Mapping[float, Spread]]) -> bool:
  return any(one.low is not None for curve in curves for one in curve.values())


def drawn(summary: Summary, name: str) -> list[tuple[Picture, Canvas]]:
  """The pictures of a study over its seeds, whose files begin with `name`."""
  canvases = [seed_plots.draw_lengths(summary, group) for group in seed_plots.lengths_groups(summary)]
  canvases += filter(
    None, (rate_plots.draw_rates(summary), seed_plots.draw_recovery(summary), seed_plots.draw_tokens(summary))
  )
  return list(zip(_pictures(summary, name), canvases, strict=True))


def digest(summary: Summary) -> str:
  """A digest of the figures that the pictures of a page are drawn from."""
  return hashlib.sha256(csv_text(summary).encode()).hexdigest()[:16]


def picture_digest(path: Path) -> str | None:
  """The digest that is stored in a picture."""
  with Image.open(path) as image:
    return image.info.get(ABOUT)


def _save(canvas: Canvas, path: Path, drawn_from: str) -> None:
  save(canvas, path.parent, path.stem, dpi=DPI)
  shrink(path, drawn_from)
  if path.stat().st_size > MOST_BYTES:
    raise ReportError(f"{path}: has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are kept in the repository")
