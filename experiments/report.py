"""Writes a report from records alone: `python -m experiments.report runs/quickstart [--formats=png,svg,pdf]`.

DIR is the workdir of a study (study.json, results.jsonl and each run's config.json and metrics.jsonl are read), the
workdir of a single run, or the output of `experiments.evaluate`, a results.jsonl alone. Writes DIR/report.md, its
pictures in each format, and every table as CSV and LaTeX (booktabs) in DIR/tables.

DIR may also be a folder of one study's seeds, DIR/seed-0, DIR/seed-1, ..., as `experiments.study --seeds` and
experiments/launch/one_gpu.sh leave it. The finished seeds are then merged into DIR/seeds.md, as by `experiments.seeds`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from drope_jax import cli
from drope_jax.evaluate.figures import LOSS
from drope_jax.evaluate.tasks import task_classes
from drope_jax.markdown import block, code, plain
from experiments.reporting import own_figures, plots, study_command, tables, training_tables
from experiments.reporting.arms import described, is_control
from experiments.reporting.paper_tables import paper_section
from experiments.reporting.records import Records, read_evaluation, read_run, read_study
from experiments.reporting.writing import Part, Picture, add_formats, write_markdown
from experiments.seeds import merge_seeds, seed_workdirs

BACKGROUND = """\
A language model must know the order of its tokens. Most models get it from **RoPE**: queries and keys are rotated
by an angle that grows with the position, and beyond the training length these angles are new to the model.
**DroPE** (arXiv 2512.12167) trains with RoPE, *drops* the rotations altogether (the causal mask is all that is left of
the order), and *recalibrates*: it trains briefly on at the same length. It never trains on long texts. Its fair control
is the same model **continued** with RoPE for as many tokens. Other methods need no training: they rescale the control's
rotations, or crop the text. A model without rotations may spread its attention thin over a long text; a
**temperature**, a factor β on the attention logits that is fitted on held-out text, is meant to sharpen it again."""

ABOUT_TABLES = f"""\
Each line is a row of the study, each column a length (as a multiple of the training context, and in tokens). Intervals
are 95 % bootstrap intervals over the n samples. Bold: the best of each column. “{tables.LEVEL}”: the lengths at which
the interval of the difference from the best contains 0; differences are paired, sample by sample, where the records
hold the samples, and their intervals are wider where they do not. {tables.MISSING}: not measured."""

OTHER_TEXT = """\
The rows read different tokens: their tokenizers or documents differ. Losses and perplexities per token cannot be
compared then, so bits per byte come first, and no row is marked as the best in the others."""

ABOUT_TEMPERATURE = """\
β = 1 + c·ln s is the factor on the attention logits (s: the length as a multiple of the training context). Rows that
are not listed have β = 1. To fit c, every β of a grid is tried on held-out text at each length; the best, between the
points of the grid, is the vertex of the parabola through the three lowest; c is fitted to these by least squares."""


def _task(records: Records, task: str, drawn: set[Picture]) -> list[Part]:
  """The section of a task: its main metric, the other metrics, and their parts."""
  about = [cls.about for cls in task_classes().get(task, []) if cls.about]
  main, *others = records.metrics(task)
  as_text = main == LOSS and tables.is_text(records, task)
  divided = tables.divisions(records, task)
  pictures = [plots.of_samples(task), *(plots.of_parts(task, by) for by in dict.fromkeys(by for _, by in divided))]
  details = [tables.results_table(records, task, metric) for metric in ([main] if as_text else []) + others]
  details += [part for metric, by in divided if (part := tables.parts_table(records, task, metric, by)) is not None]
  return [
    f"## {plain(task)}",
    *about,
    *([OTHER_TEXT] if tables.is_text(records, task) and not records.same_tokens(task) else []),
    tables.results_table(records, task, main, as_perplexity=as_text),
    *(picture for picture in pictures if picture in drawn),
    *(_folded("Other metrics and parts, in numbers", details) if details else []),
  ]


def _folded(title: str, inside: Sequence[Part]) -> list[Part]:
  return [f"<details><summary>{title}</summary>", *inside, "</details>"]


def _training(records: Records, drawn: set[Picture]) -> list[Part]:
  """The section of what was trained: runs, arms and their losses."""
  if not records.trained:
    return []
  unfinished = [run.name for run in records.runs.values() if run.last is None and run.pretrained is None]
  heldout, gaps = training_tables.heldout_table(records), training_tables.token_gap_table(records)
  return [
    "## The training",
    training_tables.runs_table(records),
    *([training_tables.arms_described(records)] if len(records.arms) > 1 else []),
    *([f"No training record yet: {', '.join(map(code, unfinished))}."] if unfinished else []),
    *([plots.LOSS] if plots.LOSS in drawn else []),
    *([heldout] if heldout is not None else []),
    *([picture for picture in (plots.RECOVERY, plots.HELDOUT, plots.TOKENS) if picture in drawn]),
    *([gaps] if gaps is not None else []),
  ]


def _temperature(records: Records) -> list[Part]:
  """The section of the temperature: the β of every row, and its fit; empty if every β is 1."""
  betas = tables.betas_table(records)
  shown = [*training_tables.temperature_section(records), *([] if betas is None else [betas])]
  return ["## The temperature", ABOUT_TEMPERATURE, *shown] if shown else []


def _made(records: Records) -> list[str]:
  versions = plain(", ".join(f"{name} {version}" for name, version in records.versions.items()))
  said = [
    f"Seed {records.seed}." if records.rows else "",
    f"{plain(records.machine.rstrip('.'))}." if records.machine else "",
  ]
  took = records.seconds
  said += ["" if not took else f"The whole study took {training_tables.show_duration(took)}."]
  said += [f"{versions}." if versions else ""]
  said += ["`python -m experiments.report` regenerates this report from the records beside it."] if records.rows else []
  command = [block(records.command)] if records.command else []
  return ["## How this was made", *command, " ".join(one for one in said if one)]


def _compose(records: Records, drawn: set[Picture]) -> list[Part]:
  """The whole report.md."""
  study = len(records.arms) > 1 or any(not is_control(run) for run in records.runs.values() if run.pretrained)
  single = next(iter(records.runs.values())) if len(records.runs) == 1 else None
  rows = "\n".join(f"- **{plain(row.label)}**: {described(records, row)}." for row in records.rows if records.runs)
  pretrained = training_tables.pretrained_described(records)
  measured = [part for task in records.tasks for part in _task(records, task, drawn)]
  drawn_itself = own_figures.pictures(records.directory, records.directory)
  rotations: list[Part] = ["## The rotations", plots.FREQUENCIES]
  about = [ABOUT_TABLES, f"One seed of training. {plain(records.spread)}".rstrip() if records.trained else ""]
  return [
    f"# {plain(records.title)}",
    *([summary] if (summary := plots.of_summary(records)) in drawn else []),
    *(["## What is compared"] if study else []),
    *([BACKGROUND] if study else []),
    *([rows] if rows else []),
    *([pretrained] if pretrained else []),
    *([" ".join(filter(None, about))] if measured else []),
    *measured,
    *paper_section(study_command.parse(records.command).name),
    *(["## Figures of this study", *drawn_itself] if drawn_itself else []),
    *_temperature(records),
    *_training(records, drawn),
    *(rotations if plots.FREQUENCIES in drawn else []),
    *(_folded("The settings of the run", [training_tables.config_table(single)]) if single and single.config else []),
    *_made(records),
  ]


def read(directory: Path) -> Records:
  """The records of a directory: a study's, a single run's, or an evaluation's.

  Raises:
    ReportError: records are missing, empty or malformed; the message names the file.
  """
  there = _recorded(directory)
  if there & {"study.json", "runs"}:
    return read_study(directory)
  if "metrics.jsonl" in there or ("config.json" in there and "results.jsonl" not in there):
    return read_run(directory)
  return read_evaluation(directory) if "results.jsonl" in there else read_study(directory)


def _recorded(directory: Path) -> set[str]:
  """The names of what may be reported that are there."""
  names = ("study.json", "runs", "metrics.jsonl", "config.json", "results.jsonl")
  return {name for name in names if (directory / name).exists()}


def write_report(directory: Path, formats: Sequence[str] = ("png",)) -> Path:
  """Writes report.md, the plots and the tables for the records in `directory`; returns the path of report.md.

  Of a folder of seeds it is seeds.md instead: see seeds.merge_seeds.

  Args:
    formats: of the plots, from writing.FORMATS; report.md shows the PNG, which is always written.

  Raises:
    ReportError: as `read`, or as seeds.merge_seeds.
  """
  if not _recorded(directory) and seed_workdirs(directory):
    return merge_seeds(directory, formats)
  path, records = directory / "report.md", read(directory)
  drawn = plots.draw_all(records, formats)
  write_markdown(path, _compose(records, drawn), formats)
  return path


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.report", about=__doc__)
  parser.add_argument(
    "directory",
    type=cli.path_argument,
    metavar="DIR",
    help="workdir of a study or a run, folder of a study's seeds, or output of an evaluation",
  )
  add_formats(parser)
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), lambda given: print(write_report(Path(given.directory), given.formats)), arguments)


if __name__ == "__main__":
  sys.exit(main())
