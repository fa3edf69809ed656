"""All pictures of a report: whatever there are records for, each with its file name and caption."""

import re
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from drope_jax.markdown import plain
from experiments.reporting import measured_plots, training_plots
from experiments.reporting.axes import STYLE
from experiments.reporting.records import Records
from experiments.reporting.tables import divisions


class Picture(NamedTuple):
  """A file beside the report."""

  name: str
  caption: str

  @property
  def markdown(self) -> str:
    return f"![{plain(self.caption)}]({self.name})\n\n*{plain(self.caption)}*"


SUMMARY = Picture("summary.png", "What was measured, against length. Shaded: the training context. Bars: 95 %.")
LOSS = Picture("loss.png", "Training loss of every arm. Dotted line: the positional embedding is changed.")
RECOVERY = Picture("recovery.png", "Held-out loss in context while recalibrating, and its distance from the control's.")
HELDOUT = Picture("heldout.png", "Held-out loss while training, at the training context and at multiples of it.")
FREQUENCIES = Picture(
  "frequencies.png",
  "What each row does to the rotations of the model at the longest length: 1 leaves a rotation as it was trained, "
  "smaller slows it down, 0 is no rotation.",
)
_PLOTS = {
  SUMMARY: measured_plots.plot_summary,
  LOSS: training_plots.plot_loss,
  RECOVERY: training_plots.plot_recovery,
  HELDOUT: training_plots.plot_heldout,
  FREQUENCIES: measured_plots.plot_frequencies,
}


def of_parts(task: str, by: str) -> Picture:
  name = re.sub(r"[^\w.-]", "-", f"{task}_by_{by}")
  return Picture(f"{name}.png", f"{task} by {by}. Shaded, or left of the dashed line: within the training context.")


def draw_all(records: Records) -> set[Picture]:
  """Draws every plot there are records for."""
  drawn = set()
  with plt.rc_context(STYLE):
    for picture, plot in _PLOTS.items():
      if plot(records, records.directory / picture.name):
        drawn.add(picture)
    for task in records.tasks:
      for metric, by in _first_by_each(divisions(records, task)):
        picture = of_parts(task, by)
        if measured_plots.plot_parts(records, records.directory / picture.name, task, metric, by):
          drawn.add(picture)
  return drawn


def _first_by_each(divided: list[tuple[str, str]]) -> list[tuple[str, str]]:
  """One metric for each `by`: the first."""
  found: dict[str, str] = {}
  for metric, by in divided:
    found.setdefault(by, metric)
  return [(metric, by) for by, metric in found.items()]


def remove_others(directory: Path, report: Path, drawn: set[Picture]) -> None:
  """Deletes the pictures of an earlier report that this one no longer has."""
  if report.exists():
    earlier = set(re.findall(r"\]\(([\w.-]+\.png)\)", report.read_text()))
    for name in earlier - {picture.name for picture in drawn}:
      (directory / name).unlink(missing_ok=True)
