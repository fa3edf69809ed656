"""Tables and plots, from the records alone: `python -m experiments.report runs/quickstart`.

DIR is the workdir of a study, of which study.json, results.jsonl and each run's config.json and metrics.jsonl are read,
or the output of `experiments.evaluate`, a results.jsonl alone. Writes DIR/report.md and PNG plots.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from drope_jax import cli
from experiments.reporting import evaluation, plots, tables
from experiments.reporting.finding import PERPLEXITY, RETRIEVAL, finding, sides_note, spread_note
from experiments.reporting.records import Study, read_evaluation, read_study

BACKGROUND = """\
A language model must know in which order its tokens stand. Most are told by **RoPE**: queries and keys are rotated
by an angle that grows with the position, and beyond the lengths of the training these angles are new to the model.
**DroPE** (arXiv 2512.12167) trains with RoPE, *drops* the rotations altogether (what remains of the order is that a
token sees only what precedes it), and *recalibrates*: a short further training at the same length. It never trains
on anything long. Its fair control is the same model **continued** with RoPE for as many tokens. Both are compared
with methods that need no training: they rescale the control's rotations, or cut the text. A model without rotations
may spread its attention thin over a long text; a **temperature**, a factor β on the attention logits that is fitted
on held-out text, is meant to sharpen it again."""

BACKGROUND_UNTRAINED = """\
A language model must know in which order its tokens stand. Most are told by **RoPE**: queries and keys are rotated
by an angle that grows with the position, and beyond the lengths of the training these angles are new to the model.
Here a pretrained model is used as it is: beyond its training context, with methods that rescale its rotations, and
with the rotations *dropped*, which is where **DroPE** (arXiv 2512.12167) begins. DroPE then *recalibrates*, a short
further training, which is **not** done here: what the dropped row shows is how much there is to recover."""

ABOUT_PERPLEXITY = f"""\
Among how many tokens the model is, in effect, undecided when it predicts the next one (the exponential of the mean
loss over all positions of documents of that length); lower is better. n: predicted tokens. Bold: the best of each
column, and those level with it. {tables.MISSING}: not measured."""

ABOUT_NEEDLES = """\
A fact (“color -> teal”) lies somewhere in a long text, as do facts of other topics, and is asked for at the end
(“color ->”). Which values a topic can have, eight of them, is learnt in training; which one it has here must be found:
a guess is right 12.5 % of the time. Per cent answered exactly, over all depths (± one standard error); higher is
better. n: prompts."""

ABOUT_TEMPERATURE = """\
At each length every β of a grid is tried on held-out text, and c of β = 1 + c·ln s (s: the length as a multiple of
the training context) is fitted to the best ones by least squares."""

CAPTIONS = {
  "summary.png": "What was measured, against length. Shaded: the training context. Bars: one standard error.",
  "loss.png": "Training loss of every arm. Dotted line: the positional embedding is dropped.",
  "perplexity_by_position.png": "Perplexity by position in the longest documents. Shaded: the training context.",
  "needles.png": "Needles found, in per cent, by length and by depth: how far into the text the fact stands. "
  "Right of the dashed line: beyond the training context.",
  "frequencies.png": "What the scaling methods do to the rotations of this model at the longest length: 1 leaves a "
  "rotation as it was trained, smaller slows it down, 0 is no rotation at all.",
}


def _picture(name: str, drawn: set[str]) -> str:
  if name not in drawn:
    return f"{tables.MISSING} (`{name}`: there are no records to draw it from)"
  return f"![{CAPTIONS[name]}]({name})\n\n*{CAPTIONS[name]}*"


def _compose(study: Study, drawn: set[str]) -> str:
  """The whole report.md."""
  unnamed = tables.unnamed_results(study)
  unfinished = [run.name for run in study.runs.values() if run.last is None and run.pretrained is None]
  gaps = [f"No training record yet: {', '.join(f'`{name}`' for name in unfinished)}."] if unfinished else []
  gaps += [f"Measured, but not shown above (no row or table for it): {', '.join(unnamed)}."] if unnamed else []
  versions = ", ".join(f"{name} {version}" for name, version in study.versions.items()) or tables.MISSING
  retrieval = ["## Needle retrieval", ABOUT_NEEDLES, tables.results_table(study, RETRIEVAL)]
  retrieval += [_picture("needles.png", drawn)]
  temperature = ["## The temperature", ABOUT_TEMPERATURE, tables.temperature_section(study)]
  training = ["## The training", tables.runs_table(study), tables.arms_described(study)]
  pretrained = tables.pretrained_described(study)
  parts = [
    f"# {study.title}",
    f"**{finding(study)}**",
    f"{sides_note(study)} {spread_note(study)}".lstrip(),
    _picture("summary.png", drawn),
    "## What is compared",
    BACKGROUND if study.trained else BACKGROUND_UNTRAINED,
    tables.rows_described(study),
    "## Perplexity",
    ABOUT_PERPLEXITY,
    tables.results_table(study, PERPLEXITY),
    _picture("perplexity_by_position.png", drawn),
    f"<details><summary>Perplexity by position, in numbers</summary>\n\n{tables.blocks_table(study)}\n\n</details>",
    *(retrieval if RETRIEVAL.task in study.tasks else []),
    *(temperature if study.has_temperature else []),
    *(training if study.trained else []),
    *(["## Pretrained, and measured without training", pretrained] if pretrained else []),
    *gaps,
    *([_picture("loss.png", drawn)] if study.trained else []),
    "## The rotations",
    _picture("frequencies.png", drawn),
    "## How this was made",
    f"```\n{study.command}\n```",
    f"Seed {study.seed}. {study.machine.rstrip('.')}. "
    + (f"The whole study took {tables.show_duration(study.seconds)}. " if study.seconds is not None else "")
    + f"{versions}. `python -m experiments.report` writes this report again from the records beside it: "
    "`results.jsonl` has every figure" + (", `runs/*/metrics.jsonl` every logged step." if study.trained else "."),
  ]
  return "\n\n".join(parts) + "\n"


def write_report(directory: Path) -> Path:
  """Writes report.md and the plots of what lies in `directory`; returns the path of report.md.

  Raises:
    ReportError: records are missing, empty or malformed; the message names the file.
  """
  path = directory / "report.md"
  of_a_study = any((directory / name).exists() for name in ("study.json", "runs"))
  if not of_a_study and (directory / "results.jsonl").exists():
    study = read_evaluation(directory)
    text = evaluation.compose(study, plots.draw_depths(study))
  else:
    study = read_study(directory)
    text = _compose(study, plots.draw_all(study))
  path.write_text(text)
  return path


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.report", about=__doc__)
  parser.add_argument("directory", type=Path, metavar="DIR", help="workdir of a study, or output of an evaluation")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), lambda given: print(write_report(given.directory.expanduser())), arguments)


if __name__ == "__main__":
  sys.exit(main())
