"""All pictures of a report that its records allow, each with its file name and caption."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure as Canvas

from experiments.reporting import measured_plots, training_plots
from experiments.reporting.axes import STYLE
from experiments.reporting.dots import about_lengths, at_one_length
from experiments.reporting.records import Records
from experiments.reporting.tables import divisions
from experiments.reporting.writing import Picture, file_name, save

LOSS = Picture(
  "loss.png",
  "Training loss of every arm, smoothed; points: the held-out loss in context. Vertical line: where the positional "
  "embedding changes.",
)
RECOVERY = Picture(
  "recovery.png",
  "Held-out loss in context during recalibration, and its difference from the control's. Bands, where the records have "
  "losses by group of documents: 95 % intervals over documents (Student's t), paired for the differences.",
)
HELDOUT = Picture(
  "heldout.png",
  "Held-out loss during training, at the training context and at multiples of it. Bands, where the records have losses "
  "by group of documents: 95 % intervals over documents (Student's t).",
)
TOKENS = Picture(
  "heldout_by_tokens.png",
  "Held-out loss in context by training tokens of the whole arm, and its difference from a run from scratch. Bands, "
  "where the records have losses by group of documents: 95 % intervals over documents (Student's t), paired for the "
  "differences.",
)
FREQUENCIES = Picture(
  "frequencies.png",
  "What each row does to the rotations of the model at the longest length: 1 keeps the trained frequency, smaller "
  "factors slow the rotation down, 0 is no rotation.",
)
_PLOTS = {
  LOSS: training_plots.plot_loss,
  RECOVERY: training_plots.plot_recovery,
  TOKENS: training_plots.plot_tokens,
  HELDOUT: training_plots.plot_heldout,
  FREQUENCIES: measured_plots.plot_frequencies,
}


def of_summary(records: Records) -> Picture:
  """All tasks by length."""
  shaded = "" if all(at_one_length(records, task) for task in records.tasks) else " Shaded: the training context."
  return Picture("summary.png", f"{about_lengths(records)}{shaded} Bars: 95 % intervals.")


def of_parts(task: str, by: str) -> Picture:
  """A metric of a task by its parts."""
  name = file_name(f"{task}_by_{by}.png")
  return Picture(name, f"{task} by {by}. Shaded, or left of the dashed line: within the training context.")


def of_samples(task: str) -> Picture:
  """The differences between rows, sample by sample."""
  name = file_name(f"{task}_by_sample.png")
  return Picture(name, f"{task} at the longest length: the difference from the control, one dot per sample. Bar: mean.")


def draw_all(records: Records, formats: Sequence[str] = ("png",)) -> set[Picture]:
  """Draws every plot that the records allow, in each format; returns the pictures that were drawn."""
  drawn = set()
  with plt.rc_context(STYLE):
    for picture, canvas in _canvases(records):
      if canvas is not None:
        save(canvas, records.directory, picture.stem, formats)
        drawn.add(picture)
  return drawn


def _canvases(records: Records) -> Iterator[tuple[Picture, Canvas | None]]:
  yield of_summary(records), measured_plots.plot_summary(records)
  for picture, plot in _PLOTS.items():
    yield picture, plot(records)
  for task in records.tasks:
    yield of_samples(task), measured_plots.plot_samples(records, task)
    for metric, by in _first_by_each(divisions(records, task)):
      yield of_parts(task, by), measured_plots.plot_parts(records, task, metric, by)


def _first_by_each(divided: list[tuple[str, str]]) -> list[tuple[str, str]]:
  """The first metric for each `by`."""
  found: dict[str, str] = {}
  for metric, by in divided:
    found.setdefault(by, metric)
  return [(metric, by) for by, metric in found.items()]
