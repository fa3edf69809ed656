"""How far training can move the attention's positional bias, at initialisation (paper: figure 4).

`python -m experiments.studies.fig4_bias_gradients --out=DIR [--size=mini --layers 0 8 16 23 --seeds 0 1 2]` writes
bias_gradients.png and .csv: for each layer the norm of the gradient of A^c (definition 3.1, for diagonal and for
previous-token heads) with respect to that layer's query and key projections; mean over heads, rows of text and seeds,
bars: standard deviation over seeds. In the paper it is larger with RoPE in every layer, and the gap grows with depth.
The paper's figure has no numbers, and the paper does not state the text, its length, or the parameters. A control that
it lacks is measured too: the partial drop, which is ours, with the same weights.

The command also writes prefix_spread.png and .csv: by layer the prefix spread of the attention's inputs, which theorem
3.4 bounds without positions if it is small in the first layer. It is not small on text, so a second panel shows the
same text with all embeddings moved towards one of them, to a thousandth of their distance.

| size  | model                        | rows × tokens |
|-------|------------------------------|---------------|
| mini  | the quickstart's, 935,040    | 8 × 128       |
| small | that of `small`, 15,735,168  | 8 × 256       |
| paper | the 494M shape of table 4    | 1 × 1,024     |

Parameters: as above, at their initialisation, the same for every embedding. Nothing is trained. FLOPs: for each seed
and embedding, three forward passes over the rows' tokens, and the attention of each layer with its gradient. `paper`
takes 10.8 GB of memory and, for three seeds, 4 minutes of one CPU core. Numbers to expect: docs/results/figures.md.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
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
from drope_jax.parameters import Params, count_parameters
from drope_jax.theory import bias_gradient_norms, diagonal_weights, prefix_spreads, previous_token_weights
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


# The distance of all embeddings from one of them, as a share of what it is in the model.
TEXTS = {"text": 1.0, "text, embeddings a thousandth as far apart": 1e-3}


class Value(NamedTuple):
  """What is measured in one layer, for one seed."""

  panel: str  # of BIASES or TEXTS
  embedding: str  # of LOOKS
  seed: int
  layer: int
  value: float


def measure(size: Size, layers: Sequence[int], seeds: Sequence[int], tokenizer: str) -> tuple[list[Value], list[Value]]:
  """Norms of gradients, and prefix spreads as a share of the inputs' norm."""
  rope = size.model
  models = {"RoPE": rope, "NoPE": drop(rope), "partial drop": PartialDrop(turns=1.0).apply(rope, size.context)}
  tokens = jnp.asarray(text_rows(load_tokenizer(tokenizer), size.rows, size.length, rope.vocab_size))
  c_CTT = np.stack([weights(size.length) for weights in BIASES.values()])
  norms: list[Value] = []
  spreads: list[Value] = []
  for seed in seeds:
    params = init_params(rope, jax.random.key(seed))
    for embedding, model in models.items():
      norms_CL = bias_gradient_norms(params, model, tokens, c_CTT, layers)
      spreads_XL = [
        prefix_spreads(alike(params, share), model, tokens, layers).mean(1) / model.d_model**0.5
        for share in TEXTS.values()
      ]
      for found, panels_, values_PL in ((norms, BIASES, norms_CL), (spreads, TEXTS, spreads_XL)):
        for panel, values_L in zip(panels_, values_PL, strict=True):
          found += [Value(panel, embedding, seed, layer, float(v)) for layer, v in zip(layers, values_L, strict=True)]
  return norms, spreads


def alike(params: Params, share: float) -> Params:
  """The parameters with each embedding moved towards the first one, to `share` of its distance."""
  embedding_VD = params["embedding"]
  return {**params, "embedding": embedding_VD[0] + share * (embedding_VD - embedding_VD[0])}


def curves(values: Sequence[Value], titles: Iterable[str], ylabel: str) -> Any:
  """One panel per title: means by layer, with the standard deviation over seeds."""
  titles = list(titles)
  layers = sorted({value.layer for value in values})
  figure, axes = panels(len(titles))
  for axis, title in zip(axes, titles, strict=True):
    for number, (embedding, (color, marker)) in enumerate(LOOKS.items()):
      by_LS = np.array([[v.value for v in values if v[:2] == (title, embedding) and v.layer == at] for at in layers])
      deviation = by_LS.std(1, ddof=1) if by_LS.shape[1] > 1 else None
      look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4, "capsize": 2}
      beside = np.array(layers) + 0.15 * (number - 1)  # so that equal curves do not hide one another
      axis.errorbar(beside, by_LS.mean(1), deviation, label=embedding, **look)
    axis.set(title=title, xlabel="layer", ylabel=ylabel)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
  axes[0].legend(fontsize=8)
  return figure


@styled
def draw(given: Namespace) -> None:
  size = sized(given.size)
  layers = given.layers or list(range(size.model.num_layers))
  for layer in layers:
    check(0 <= layer < size.model.num_layers, f"--layers has {layer}; the model's are 0 to {size.model.num_layers - 1}")
  norms, spreads = measure(size, layers, given.seeds, given.tokenizer)
  caption = (
    f"{count_parameters(size.model) / 1e6:.0f}M parameters, not trained; {size.rows} × {size.length:,} tokens of "
    f"Python's prose; seeds: {len(given.seeds)}."
  )
  where = ("embedding", "seed", "layer")
  figure = curves(norms, BIASES, "norm of ∇A by W_Q, W_K")
  save(figure, caption, given, "bias_gradients")
  write_csv(given.out / "bias_gradients.csv", ("bias", *where, "norm"), norms)
  figure = curves(spreads, TEXTS, "prefix spread Δ / √d")
  save(figure, caption, given, "prefix_spread")
  write_csv(given.out / "prefix_spread.csv", ("text", *where, "spread"), spreads)


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
