"""What YaRN does to a positional head, and whether a dropped model has one (paper: figure 7).

`python -m experiments.studies.fig7_positional_head --checkpoint=RUN [--dropped=RUN --length=256 --rows=8]` writes
OUT/positional_head.png and .csv: the attention of the most positional head by distance, as it was trained and under
YaRN with extension 2. The head is the one with the largest A^c (definition 3.1) for previous tokens, and for the
diagonal, in the model as it was trained: so the paper finds it. The paper shows one head of Qwen2.5-0.5B, nearly
unchanged. What it lacks is run beside it: the most positional head of the same model dropped and recalibrated
(`--dropped`), and the table has A^c of every head, so that one picture does not stand for all.

RUN is the workdir of any run, or an imported model (`python -m experiments.fetch_smollm2`). Nothing is trained;
parameters and FLOPs are those of one forward pass of the model over `rows` × `length` tokens, two for the picture.
There is no `--workdir` and no table of it in the paper. Numbers to expect: not yet run.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from drope_jax import checkpoint, cli
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.theory import (
  attention_by_distance,
  diagonal_weights,
  positional_bias,
  positional_heads,
  previous_token_weights,
)
from experiments.reporting.axes import GREEN, INK, VERMILION
from experiments.studies.figures import (
  as_trained,
  attention_weights,
  panels,
  parser_of_runs,
  save,
  text_rows,
  write_csv,
)

BIASES = {"diagonal": diagonal_weights, "previous token": previous_token_weights}
YARN = "yarn:2"
SHOWN = 32  # distances


class Profile(NamedTuple):
  """The attention of the most positional head of a model, by distance."""

  model: str
  method: str
  head: tuple[int, int]  # layer, head
  bias: float  # its A^c
  by_distance: np.ndarray  # (T,)


def profiles(
  name: str, loaded: Checkpoint, methods: Sequence[str], tokens_BT: np.ndarray, c_TT: np.ndarray
) -> list[Profile]:
  """Of the head that is most positional under the first of the methods, one profile for each."""
  layers = range(loaded.model.num_layers)
  weights = attention_weights(loaded, methods[0], tokens_BT, layers)
  ((layer, head),) = positional_heads(jnp.asarray(weights), c_TT, 1)
  found = []
  for method in methods:
    seen = weights[layer] if method == methods[0] else attention_weights(loaded, method, tokens_BT, [layer])[0]
    bias = float(np.asarray(positional_bias(seen, c_TT))[:, head].mean())
    found.append(Profile(name, method, (layer, head), bias, np.asarray(attention_by_distance(seen)[head])))
  return found


def draw(given: Namespace) -> None:
  figure, axes = panels(len(BIASES))
  loaded = checkpoint.load(given.checkpoint)
  dropped = None if given.dropped is None else checkpoint.load(given.dropped)
  tokens = text_rows(load_tokenizer(str(given.checkpoint)), given.rows, given.length, loaded.model.vocab_size)
  rows = []
  for axis, (bias, weights) in zip(axes, BIASES.items(), strict=True):
    c_TT = weights(given.length)
    found = profiles("as trained", loaded, (as_trained(loaded), YARN), tokens, c_TT)
    if dropped is not None:
      found += profiles("dropped", dropped, (as_trained(dropped),), tokens, c_TT)
    for one, color in zip(found, (INK, GREEN, VERMILION), strict=False):
      name = f"{one.model}, {one.method} (layer {one.head[0]}, head {one.head[1]}; A = {one.bias:.2f})"
      axis.plot(one.by_distance[:SHOWN], label=name, color=color, marker=".")
      rows += [(bias, one.model, one.method, *one.head, one.bias, d, w) for d, w in enumerate(one.by_distance)]
    axis.set(title=f"most positional: {bias}", xlabel="distance (tokens)", ylabel="mean attention weight")
    axis.legend(fontsize=7)
  caption = f"{given.rows} rows of {given.length} tokens of Python's prose; {Path(given.checkpoint).name}."
  save(figure, caption, given.out / "positional_head.png")
  header = ("bias", "model", "method", "layer", "head", "A", "distance", "weight")
  write_csv(given.out / "positional_head.csv", header, rows)


def _parser() -> cli.Parser:
  parser = parser_of_runs("fig7_positional_head", __doc__)
  parser.add_argument("--length", type=int, default=256, help="tokens of a row")
  parser.add_argument("--rows", type=int, default=8, help="rows of text")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), draw, arguments)


if __name__ == "__main__":
  sys.exit(main())
