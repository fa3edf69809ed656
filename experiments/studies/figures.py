"""What the figures that need no training share: pictures, their numbers as CSV, and the models they compare."""

import csv
import functools
import textwrap
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from drope_jax import checkpoint, cli
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.recall import Lines
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import Inference, allowed_methods, inference
from drope_jax.files import writing
from drope_jax.transitions import drop
from experiments.reporting.axes import STYLE
from experiments.reporting.looks import GREEN, INK, VERMILION
from experiments.reporting.writing import add_formats, shrink
from experiments.reporting.writing import save as save_canvas

YARN = "yarn:2"
CHARACTERS = 16  # of a caption per inch


def parser_of_runs(name: str, about: str | None) -> cli.Parser:
  """The flags of a figure that compares a trained model with the same model dropped."""
  parser = cli.Parser(prog=f"python -m experiments.studies.{name}", about=about)
  parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="a model with RoPE")
  about_dropped = "the same model, dropped and recalibrated; default: --checkpoint, dropped and not recalibrated"
  parser.add_argument("--dropped", type=Path, metavar="RUN", help=about_dropped)
  add_out(parser)
  return parser


def add_out(parser: cli.Parser) -> None:
  """The flags that say where a figure goes, and in which formats."""
  parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the picture and its numbers")
  add_formats(parser)


def styled(draw: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
  """Wraps `draw` so that it draws in the style of the reports."""

  @functools.wraps(draw)
  def drawn(given: Namespace) -> None:
    with plt.rc_context(STYLE):
      draw(given)

  return drawn


def panels(count: int, width: float = 4.8, height: float = 2.9) -> tuple[Any, list[Axes]]:
  """A figure with `count` panels below one another, to be readable on a phone; sizes of a panel in inches."""
  figure, axes = plt.subplots(count, 1, figsize=(width, height * count), squeeze=False, layout="constrained")
  return figure, list(axes[:, 0])


def save(figure: Any, caption: str, given: Namespace, stem: str) -> None:
  """Saves a figure with its caption below it, where and how the flags of `add_out` say; a PNG is always written."""
  given.out.mkdir(parents=True, exist_ok=True)
  lines = textwrap.fill(caption, round(figure.get_figwidth() * CHARACTERS))
  figure.supxlabel(lines, fontsize=8, color="#555555")
  save_canvas(figure, given.out, stem, given.formats, dpi=110)
  shrink(given.out / f"{stem}.png")


def standard_error(values_N: np.ndarray) -> np.ndarray:
  """Of the mean over the first axis; NaN for a single value, whose error is not known."""
  n = len(values_N)
  return values_N.std(0, ddof=1) / n**0.5 if n > 1 else np.full_like(values_N[0], np.nan)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Saves the numbers of a picture."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with writing(path, path), path.open("w", newline="") as file:
    csv.writer(file).writerows([header, *rows])


def text_lines(tokenizer: Tokenizer, longest: int) -> Lines:
  """Prose of Python's own documentation, in a tokenizer's tokens."""
  return EvalData(tokenizer=tokenizer, longest=longest).essay_lines


def text_rows(tokenizer: Tokenizer, rows: int, length: int, vocab_size: int) -> np.ndarray:
  """Rows of that prose, int32 (rows, length)."""
  ids = [token for filler in text_lines(tokenizer, length).fillers for token in filler.ids]
  repeated = np.resize(np.asarray(ids, np.int32), rows * length).reshape(rows, length)
  return repeated % vocab_size


class Shown(NamedTuple):
  """A model with a method, and how it is drawn."""

  label: str
  method: str  # of evaluate/methods.py
  loaded: Checkpoint
  color: str
  marker: str

  def inference(self, length: int) -> Inference:
    """The inference on texts of `length` tokens."""
    return inference(self.method, self.loaded.model, self.loaded.context, length)


def shown(given: Namespace) -> list[Shown]:
  """The models that a figure compares: as trained, under YaRN, and dropped (see `parser_of_runs`)."""
  trained = checkpoint.load(given.checkpoint)
  if given.dropped is None:
    label, dropped = "dropped, not recalibrated", trained._replace(model=drop(trained.model))
  else:
    label, dropped = "dropped and recalibrated", checkpoint.load(given.dropped)
  return [
    Shown("RoPE, as trained", as_trained(trained), trained, INK, "o"),
    Shown("YaRN for twice the context", YARN, trained, GREEN, "D"),
    Shown(label, as_trained(dropped), dropped, VERMILION, "s"),
  ]


def name_of(run: Path) -> str:
  """The name of a run's workdir; for an imported model, in a folder `checkpoint`, that of the folder above."""
  run = run.absolute()
  return run.parent.name if run.name == "checkpoint" else run.name


def as_trained(loaded: Checkpoint) -> str:
  """The method that runs a model unchanged."""
  return allowed_methods(loaded.model)[0]
