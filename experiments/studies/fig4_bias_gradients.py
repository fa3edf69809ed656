"""How far training can move the attention's positional bias, at initialisation (paper: figure 4).

`python -m experiments.studies.fig4_bias_gradients --out=DIR [--size=mini --layers 0 8 16 23 --seeds 0 1 2]` writes
bias_gradients.png and .csv: for each layer the norm of the gradient of A^c (definition 3.1, for diagonal and for
previous-token heads) with respect to that layer's query and key projections; mean over heads, rows of text and seeds,
bars: standard deviation over seeds. In the paper it is larger with RoPE in every layer, and the gap grows with depth.
The paper's figure has no numbers, and the paper does not state the text, its length, or the parameters. A control that
it lacks is measured too: the partial drop, which is ours, with the same weights.

| size  | model                        | rows × tokens |
|-------|------------------------------|---------------|
| mini  | the quickstart's, 935,040    | 8 × 128       |
| small | that of `small`, 15,735,168  | 8 × 256       |
| paper | the 494M shape of table 4    | 1 × 1,024     |

Parameters: as above, at their initialisation, the same for every embedding. Nothing is trained. FLOPs: for each seed
and embedding, one forward pass over the rows' tokens, and the attention of each layer with its gradient. `paper` takes
6.6 GB of memory and, for three seeds, 4.3 minutes of one CPU core. Numbers to expect: docs/results/figures.md.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import MaxNLocator

from drope_jax import cli
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import check
from drope_jax.model import init_params
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import count_parameters
from drope_jax.theory import bias_gradient_norms, diagonal_weights, previous_token_weights
from drope_jax.transitions import PartialDrop, drop
from experiments.reporting.looks import INK, PURPLE, VERMILION
from experiments.studies import sizes
from experiments.studies.figures import add_out, panels, save, styled, text_rows, write_csv


class Size(NamedTuple):
  """A model, and the text that it reads."""

  model: ModelConfig
  context: int
  rows: int
  length: int  # tokens


_SIZES = {"mini": (sizes.mini, 8, 128), "small": (sizes.small, 8, 256), "paper": (sizes.paper, 1, 1024)}


def sized(name: str) -> Size:
  of, rows, length = _SIZES[name]
  settings = of()
  return Size(settings["model"], settings["context"], rows, length)


BIASES = {"diagonal head": diagonal_weights, "previous-token head": previous_token_weights}
LOOKS = {"RoPE": (INK, "o"), "NoPE": (VERMILION, "s"), "partial drop": (PURPLE, "^")}


def norms(
  size: Size, layers: Sequence[int], seeds: Sequence[int], tokenizer: str
) -> list[tuple[str, str, int, int, float]]:
  """(bias, embedding, seed, layer, norm) of every value that enters the figure."""
  rope = size.model
  models = {"RoPE": rope, "NoPE": drop(rope), "partial drop": PartialDrop(turns=1.0).apply(rope, size.context)}
  tokens = jnp.asarray(text_rows(load_tokenizer(tokenizer), size.rows, size.length, rope.vocab_size))
  c_CTT = np.stack([weights(size.length) for weights in BIASES.values()])
  found = []
  for seed in seeds:
    params = init_params(rope, jax.random.key(seed))
    for embedding, model in models.items():
      norms_CL = bias_gradient_norms(params, model, tokens, c_CTT, layers)
      for bias, of_layers in zip(BIASES, norms_CL, strict=True):
        found += [(bias, embedding, seed, layer, float(v)) for layer, v in zip(layers, of_layers, strict=True)]
  return found


@styled
def draw(given: Namespace) -> None:
  size = sized(given.size)
  layers = given.layers or list(range(size.model.num_layers))
  for layer in layers:
    check(0 <= layer < size.model.num_layers, f"--layers has {layer}; the model's are 0 to {size.model.num_layers - 1}")
  rows = norms(size, layers, given.seeds, given.tokenizer)
  figure, axes = panels(len(BIASES))
  for axis, bias in zip(axes, BIASES, strict=True):
    for embedding, (color, marker) in LOOKS.items():
      values = np.array([[r[4] for r in rows if r[:2] == (bias, embedding) and r[3] == layer] for layer in layers])
      spread = values.std(1, ddof=1) if values.shape[1] > 1 else None
      look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4, "capsize": 2}
      axis.errorbar(layers, values.mean(1), spread, label=embedding, **look)
    axis.set(title=bias, xlabel="layer", ylabel="norm of ∇A by W_Q, W_K")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
  axes[0].legend(fontsize=8)
  text = f"{size.rows} × {size.length:,} tokens of Python's prose"
  caption = (
    f"{count_parameters(size.model) / 1e6:.0f}M parameters at initialisation; {text}; seeds: {len(given.seeds)}."
  )
  save(figure, caption, given, "bias_gradients")
  write_csv(given.out / "bias_gradients.csv", ("bias", "embedding", "seed", "layer", "norm"), rows)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.studies.fig4_bias_gradients", about=__doc__)
  add_out(parser)
  about_size = "of the model: mini, small, or paper (494M)"
  parser.add_argument("--size", choices=tuple(_SIZES), default="mini", help=about_size)
  parser.add_argument("--layers", type=int, nargs="+", metavar="L", help="layers to differentiate; default: all")
  parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds of the initialisation"
  )
  parser.add_argument("--tokenizer", default="byte", help="of the text: byte, or a tokenizer.json")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), draw, arguments, computes=True)


if __name__ == "__main__":
  sys.exit(main())
