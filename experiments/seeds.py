"""Compares the seeds of a study: `python -m experiments.seeds DIR DIR ... [--control=LABEL --out=DIR --page=FILE]`.

Each DIR is a workdir of the same study with another seed; a single docs/results/data/NAME.json stands for the workdirs
that the page NAME was made of. Markdown is printed; `--out=DIR` writes it to DIR/seeds.md
instead, with pictures beside it, and every table as CSV and LaTeX in DIR/tables. The first table of a metric has mean ±
standard deviation. The second has the differences from the control, each taken within a seed, which cancels what a seed
does to all rows alike: mean ± standard deviation, and a 95 % interval of the mean (Student's t, n - 1 degrees of
freedom). The control is the row labelled LABEL; by default it is the run that kept its embedding and started from the
same weights.

`--page=docs/results/NAME.md` writes the study's page and puts its figures into data/ beside it, from which `python -m
experiments.results` regenerates it. One seed is enough for a page; its intervals are then over documents and prompts.
Findings are written by hand into data/NAME.txt, which the page includes.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from drope_jax import cli
from drope_jax.errors import ReportError, check
from drope_jax.files import check_folder
from drope_jax.markdown import plain
from experiments.page import write_numbers
from experiments.reporting import own_figures, seed_curves, seed_tables
from experiments.reporting.making import making_of
from experiments.reporting.paper_tables import paper_section
from experiments.reporting.records import read_study
from experiments.reporting.study_page import DATA, drawn, write_page
from experiments.reporting.summary import Summary, summarized
from experiments.reporting.summary_files import read_summary, write_summary
from experiments.reporting.writing import Part, add_formats, markdown, save, write_markdown
from experiments.results import RESULTS, write_index

STUDIES = Path(__file__).parent / "studies"


def seed_report(directories: Sequence[Path], control: str | None = None) -> list[Part]:
  """The tables of all tasks and metrics, as the parts of a report.

  Args:
    directories: workdirs of one study, with different seeds, or the NAME.json of a page alone.
    control: the label of the row that the others are compared with.

  Raises:
    ReportError: two workdirs have the same seed, or one lacks a figure that another has.
  """
  return _parts(_summary_of_several(directories, control))


def _summary_of_several(directories: Sequence[Path], control: str | None) -> Summary:
  if len(directories) == 1 and directories[0].suffix == ".json":
    check(control is None, "--control belongs to workdirs; the figures of a page have their control already")
    return read_summary(directories[0])
  summary = summary_of(directories, "study", control)
  if len(summary.seeds) < 2:
    raise ReportError(f"seeds are {list(summary.seeds)}; a spread needs at least two, all different")
  return summary


def _parts(summary: Summary) -> list[Part]:
  base, seeds = seed_tables.compared_with(summary), ", ".join(map(str, summary.seeds))
  alone = len(summary.seeds) == 1
  over = f"seed {seeds} alone" if alone else f"mean ± standard deviation over seeds {seeds}"

  def difference(other: str) -> str:
    spread = f"seed {seeds} alone" if alone else f"mean ± standard deviation (95 % interval) over seeds {seeds}"
    return f"difference from {other}, {spread}"

  parts: list[Part] = []
  for task in summary.tasks:
    for metric in summary.metrics(task):
      about = plain(f"{task}, {metric}")
      parts += [f"{about}: {over}", seed_tables.spread_table(summary, task, metric)]
      if base:
        parts += [f"{about}: {difference(base)}", seed_tables.spread_table(summary, task, metric, less_control=True)]
  recovery, by_tokens = seed_curves.recovery_table(summary), seed_curves.token_gap_table(summary)
  if recovery is not None:
    parts += [f"held-out loss in context while training: {difference(base)}", recovery]
  if by_tokens is not None:
    compared = difference(f"“{seed_curves.base_label(summary)}” of the same seed after as many tokens")
    parts += [f"held-out loss in context of whole arms: {compared}", by_tokens]
  paper = paper_section(summary.making.study.name)
  return [*parts, *seed_tables.coefficient_lines(summary), *paper]


def seed_workdirs(directory: Path) -> list[Path]:
  """The workdirs seed-N in a folder of them, in the order of their seeds, finished or not."""
  found = [path.parent for path in directory.glob("seed-*/study.json")]
  return sorted(found, key=lambda workdir: (len(workdir.name), workdir.name))


def finished_seeds(directory: Path) -> list[Path]:
  """Those of `seed_workdirs` that have a report.md.

  A study writes it when all that it was asked for is measured: of an interrupted one it is missing, but not of one that
  was limited by `--only`, or of one whose own figures failed.
  """
  return [workdir for workdir in seed_workdirs(directory) if (workdir / "report.md").exists()]


def merge_seeds(directory: Path, formats: Sequence[str] = ("png",)) -> Path:
  """Writes DIRECTORY/seeds.md over its `finished_seeds`; returns its path. The others are left out, and named.

  Raises:
    ReportError: none is finished, or as `seed_report`.
  """
  finished = finished_seeds(directory)
  if not finished:
    raise ReportError(
      f"{directory}: no seed-N in it has a report.md, so none is finished; `python -m experiments.report` of a seed-N "
      "writes one from its records"
    )
  for workdir in seed_workdirs(directory):
    if workdir not in finished:
      print(f"{workdir}: left out, since it has no report.md: its study is not finished", file=sys.stderr)
  return write_seeds(finished, directory, formats=formats)


def write_seeds(
  directories: Sequence[Path], out: Path, control: str | None = None, formats: Sequence[str] = ("png",)
) -> Path:
  """Writes OUT/seeds.md with its pictures and tables; returns its path. Raises ReportError as `seed_report`."""
  summary = _summary_of_several(directories, control)
  out.mkdir(parents=True, exist_ok=True)
  pictures: list[Part] = []
  for picture, canvas in drawn(summary, "seeds"):
    save(canvas, out, picture.stem, formats)
    pictures.append(picture)
  for directory in directories:
    itself = own_figures.pictures(directory, out)
    pictures += [f"Figures of the study itself, {plain(directory.name)}:", *itself] if itself else []
  path = out / "seeds.md"
  write_markdown(path, [f"# {plain(summary.making.title)}", *pictures, *_parts(summary)], formats)
  return path


def summary_of(directories: Sequence[Path], name: str, control: str | None = None, commit: str = "") -> Summary:
  """The figures over seeds of workdirs of one study; raises ReportError as `summarized`."""
  studies = [read_study(directory) for directory in directories]
  return summarized(studies, making_of(studies, name, commit), control)


def write_study_page(directories: Sequence[Path], page: Path, control: str | None = None, commit: str = "") -> Path:
  """Writes a page of docs/results, its figures in data/, and the index; returns the page's path."""
  summary = summary_of(directories, page.stem, control, commit)
  write_summary(summary, page.parent / DATA, page.stem)
  write_page(page)
  write_index(page.parent)
  study = STUDIES / f"{page.stem}.py"
  if page.parent.resolve() == RESULTS.resolve() and study.exists():
    write_numbers(study)
  return page


def _run(given: Namespace) -> None:
  directories = list(map(Path, given.directories))
  if given.page is None and given.out is None:
    print(*map(markdown, seed_report(directories, given.control)), sep="\n\n")
  if given.page is not None:
    check(given.page.endswith(".md"), f"--page is {given.page}; it must be a Markdown file, as docs/results/NAME.md")
    check_folder(Path(given.page).parent, "--page")
  if given.out is not None:
    check_folder(Path(given.out), "--out")
    print(write_seeds(directories, Path(given.out), given.control, given.formats))
  if given.page is not None:
    print(write_study_page(directories, Path(given.page), given.control, given.commit))


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.seeds", about=__doc__)
  parser.add_argument(
    "directories",
    type=cli.path_argument,
    nargs="+",
    metavar="DIR",
    help="workdirs of one study, one per seed, or the NAME.json of a page",
  )
  parser.add_argument("--control", metavar="LABEL", help="row that the others are compared with")
  parser.add_argument(
    "--out", type=cli.path_argument, metavar="DIR", help="folder for seeds.md, its pictures and tables"
  )
  parser.add_argument("--page", type=cli.path_argument, metavar="FILE", help="page to write, docs/results/NAME.md")
  parser.add_argument("--commit", default="", metavar="HASH", help="commit that the study was run at, for the page")
  add_formats(parser)
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), _run, arguments)


if __name__ == "__main__":
  sys.exit(main())
