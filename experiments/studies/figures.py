"""What the figures without a training share: a picture, its numbers as CSV, attention weights of a model."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from drope_jax import cli
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.recall import Lines
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import allowed_methods, inference
from drope_jax.files import writing
from drope_jax.model import Taps, hidden_states
from drope_jax.model_config import ComputeConfig
from experiments.reporting.axes import STYLE


def parser_of_runs(name: str, about: str | None) -> cli.Parser:
  """The flags of a figure that looks at a trained model, and the same model dropped."""
  parser = cli.Parser(prog=f"python -m experiments.studies.{name}", about=about)
  parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="a model with RoPE")
  parser.add_argument("--dropped", type=Path, metavar="RUN", help="the same model, dropped and recalibrated")
  parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the picture and its numbers go")
  return parser


def panels(count: int, width: float = 4.6, height: float = 3.4) -> tuple[Any, list[Axes]]:
  """A figure of so many panels side by side, in the style of the reports."""
  with plt.rc_context(STYLE):
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, layout="constrained")
  return figure, list(axes[0])


def save(figure: Any, caption: str, path: Path) -> None:
  """The picture at `path` with its caption below it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.supxlabel(caption, fontsize=8, color="#555555", wrap=True)
  with writing(path, path):
    figure.savefig(path, dpi=150)
  plt.close(figure)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """The numbers of a picture."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with writing(path, path), path.open("w", newline="") as file:
    csv.writer(file).writerows([header, *rows])


def text_lines(tokenizer: Tokenizer, longest: int) -> Lines:
  """Prose that comes with Python, in a tokenizer's tokens."""
  return EvalData(tokenizer=tokenizer, longest=longest).essay_lines


def text_rows(tokenizer: Tokenizer, rows: int, length: int, vocab_size: int) -> np.ndarray:
  """Rows of that prose, int32 (rows, length)."""
  ids = [token for filler in text_lines(tokenizer, length).fillers for token in filler.ids]
  repeated = np.resize(np.asarray(ids, np.int32), rows * length).reshape(rows, length)
  return repeated % vocab_size


def attention_weights(loaded: Checkpoint, method: str, tokens_BT: np.ndarray, layers: Sequence[int]) -> np.ndarray:
  """What the heads of some layers look at under a method of evaluate/methods.py: float32 (L, B, H, T, T)."""
  how = inference(method, loaded.model, loaded.context, tokens_BT.shape[1])

  def weights(params: Any, tokens: Any) -> Any:
    taps = Taps(tuple(layers), ("weights",))
    compute = ComputeConfig(dtype="float32")
    return hidden_states(params, how.config, tokens, compute=compute, logit_scale=how.logit_scale, taps=taps).taps[
      "weights"
    ]

  return np.asarray(jax.jit(weights)(loaded.params, tokens_BT))


def as_trained(loaded: Checkpoint) -> str:
  """The method that runs a model unchanged."""
  return allowed_methods(loaded.model)[0]
