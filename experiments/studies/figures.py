"""What the studies with figures of their own share: pictures, their numbers as CSV, and the texts that they read."""

import csv
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from drope_jax.data.recall import Lines
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.files import writing
from experiments.plan import EvalPlan, Figures, Study
from experiments.reporting.axes import STYLE
from experiments.reporting.writing import save as save_canvas
from experiments.reporting.writing import shrink

CHARACTERS = 16  # of a caption per inch


class Out(NamedTuple):
  """Where figures go, and in which formats; a PNG is always written."""

  folder: Path
  formats: Sequence[str]


def only_drawn(title: str, context: int, captions: Mapping[str, str], draw: Callable[[Out], None]) -> Study:
  """A study that trains and measures nothing, and draws figures about models of this context."""
  return Study(
    title=title,
    seed=0,
    train_context=context,
    prepare=lambda: None,
    runs={},
    arms=(),
    rows=(),
    lengths=(),
    tasks=(),
    eval_data=EvalPlan(tokenizer="byte", dataset="", longest=1),
    figures=drawn_by(captions, draw),
  )


def drawn_by(captions: Mapping[str, str], draw: Callable[[Out], None], **more: Any) -> Figures:
  """Figures that `draw` makes, in the style of the reports; `more`: other fields of Figures."""

  def styled(folder: Path, formats: Sequence[str]) -> None:
    with plt.rc_context(STYLE):
      draw(Out(folder, formats))

  return Figures(captions, styled, **more)


# --- pictures and their numbers ----------------------------------------------------------------


def panels(count: int, width: float = 4.8, height: float = 2.9) -> tuple[Any, list[Axes]]:
  """A figure with `count` panels below one another, to be readable on a phone; sizes of a panel in inches."""
  figure, axes = plt.subplots(count, 1, figsize=(width, height * count), squeeze=False, layout="constrained")
  return figure, list(axes[:, 0])


def save(figure: Any, caption: str, out: Out, stem: str) -> None:
  """Saves a figure with its caption below it."""
  lines = textwrap.fill(caption, round(figure.get_figwidth() * CHARACTERS))
  figure.supxlabel(lines, fontsize=8, color="#555555")
  save_canvas(figure, out.folder, stem, out.formats, dpi=110)
  shrink(out.folder / f"{stem}.png")


def standard_error(values_N: np.ndarray) -> np.ndarray:
  """Of the mean over the first axis; NaN for a single value, whose error is not known."""
  n = len(values_N)
  return values_N.std(0, ddof=1) / n**0.5 if n > 1 else np.full_like(values_N[0], np.nan)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Saves the numbers of a picture."""
  with writing(path, path), path.open("w", newline="") as file:
    csv.writer(file).writerows([header, *rows])


# --- texts -------------------------------------------------------------------------------------


def text_lines(tokenizer: Tokenizer, longest: int) -> Lines:
  """Prose of Python's own documentation, in a tokenizer's tokens."""
  return EvalData(tokenizer=tokenizer, longest=longest).essay_lines


def text_rows(tokenizer: Tokenizer, rows: int, length: int, vocab_size: int) -> np.ndarray:
  """Rows of that prose, int32 (rows, length)."""
  ids = [token for filler in text_lines(tokenizer, length).fillers for token in filler.ids]
  repeated = np.resize(np.asarray(ids, np.int32), rows * length).reshape(rows, length)
  return repeated % vocab_size
