"""How far training can move the attention's positional bias, at initialisation (paper: figure 4).

`python -m experiments.study --config=experiments/studies/fig4_bias_gradients.py:SIZE --workdir=DIR` writes
figures/bias_gradients.png and .csv (`--config.layers=0,8,16,23`: of these layers only). A^c is that of definition 3.1,
for diagonal and for previous-token heads; drawn for each layer is the norm of one gradient, that of A^c's mean over the
layer's heads and the rows of text (which can cancel in it) with respect to the layer's query and key projections. Mean
over seeds; bars: standard deviation. In the paper it is larger with RoPE in every layer, and the gap grows with depth.
The paper's figure has no numbers, and the paper does not state the text, its length, the parameters, or over what it
averages. A control that it lacks is measured too: the partial drop, which is ours, with the same weights.

The study also writes figures/prefix_spread.png and .csv: by layer the prefix spread of the attention's inputs, which
theorem 3.4 bounds without positions if it is small in the first layer. It is not small on text, so a second panel shows
the same text with all embeddings moved towards one of them, to a thousandth of their distance.

| size  | model                        | rows × tokens |
|-------|------------------------------|---------------|
| mini  | the quickstart's, 935,040    | 8 × 128       |
| small | that of `small`, 15,735,168  | 8 × 256       |
| paper | the 494M shape of table 4    | 1 × 1,024     |

Parameters: as above, at their initialisation, the same for every embedding. Nothing is trained. FLOPs: for each seed
and embedding, three forward passes over the rows' tokens, and the attention of each layer with its gradient. `paper`
takes 10.8 GB of memory and, for three seeds, 4 minutes of one CPU core. Numbers to expect: docs/results/figures.md.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import MaxNLocator

from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import check
from drope_jax.model import init_params
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import Params, count_parameters
from drope_jax.theory import bias_gradient_norms, diagonal_weights, prefix_spreads, previous_token_weights
from drope_jax.transitions import PartialDrop, drop
from experiments.plan import Study, check_at_least_one
from experiments.reporting.looks import INK, PURPLE, VERMILION
from experiments.studies import sizes
from experiments.studies.branching import getter
from experiments.studies.figures import Out, only_drawn, panels, save, text_rows, write_csv

BIASES = {"diagonal head": diagonal_weights, "previous-token head": previous_token_weights}
LOOKS = {"RoPE": (INK, "o"), "NoPE": (VERMILION, "s"), "partial drop": (PURPLE, "^")}

# The distance of all embeddings from one of them, as a share of what it is in the model.
TEXTS = {"text": 1.0, "text, embeddings a thousandth as far apart": 1e-3}


CAPTIONS = {
  "bias_gradients": "By layer, counted from 0: how far training can move the attention's positional bias A "
  "(definition 3.1) at initialisation. This is the norm of the gradient, with respect to W_Q and W_K, of A's mean over "
  "heads and rows of text. Mean over seeds; bars: standard deviation.",
  "prefix_spread": "By layer, counted from 0: the prefix spread Δ (theorem 3.4) of the attention's inputs, as a share "
  "of their norm √d. Bars: standard deviation over seeds.",
}


class Value(NamedTuple):
  """What is measured in one layer, for one seed."""

  panel: str  # of BIASES or TEXTS
  embedding: str  # of LOOKS
  seed: int
  layer: int
  value: float


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class BiasGradients:
  """The settings, as `--config.NAME=VALUE`."""

  model: ModelConfig
  context: int  # tokens; the partial drop keeps the pairs that make a full turn in them
  rows: int  # of text
  length: int  # of a row, in tokens
  layers: tuple[int, ...] = ()  # to differentiate; none: all
  seeds: tuple[int, ...] = (0, 1, 2)  # of the initialisation
  tokenizer: str = "byte"  # of the text: byte, or a tokenizer.json

  def __post_init__(self) -> None:
    check_at_least_one(self, "context", "rows")
    check(self.length > 1, f"BiasGradients.length is {self.length}; a row needs at least 2 tokens")
    check(bool(self.seeds), "BiasGradients.seeds is empty; it needs at least one seed")
    last = self.model.num_layers - 1
    for layer in self.layers:
      check(0 <= layer <= last, f"BiasGradients.layers has {layer}; the model's are 0 to {last}")

  def study(self, workdir: Path) -> Study:
    title = "Gradients of the positional bias at initialisation (paper: figure 4)"
    return only_drawn(title, self.context, CAPTIONS, self.draw)

  def models(self) -> Mapping[str, ModelConfig]:
    """The models that are compared, by the names of LOOKS; they have the same parameters."""
    partial = PartialDrop(turns=1.0).apply(self.model, self.context)
    return {"RoPE": self.model, "NoPE": drop(self.model), "partial drop": partial}

  def draw(self, out: Out) -> None:
    norms, spreads = measure(self)
    caption = (
      f"{count_parameters(self.model) / 1e6:.0f}M parameters, not trained; {self.rows} × {self.length:,} tokens of "
      f"Python's prose; seeds: {len(self.seeds)}."
    )
    where = ("embedding", "seed", "layer")
    write_csv(out.folder / "bias_gradients.csv", ("bias", *where, "norm"), norms)
    save(curves(norms, BIASES, "norm of ∇A by W_Q, W_K"), caption, out, "bias_gradients")
    write_csv(out.folder / "prefix_spread.csv", ("text", *where, "spread"), spreads)
    save(curves(spreads, TEXTS, "prefix spread Δ / √d"), caption, out, "prefix_spread")


def measure(how: BiasGradients) -> tuple[list[Value], list[Value]]:
  """Norms of gradients, and prefix spreads as a share of the inputs' norm."""
  layers = how.layers or tuple(range(how.model.num_layers))
  tokens = jnp.asarray(text_rows(load_tokenizer(how.tokenizer), how.rows, how.length, how.model.vocab_size))
  c_CTT = np.stack([weights(how.length) for weights in BIASES.values()])
  norms: list[Value] = []
  spreads: list[Value] = []
  for seed in how.seeds:
    params = init_params(how.model, jax.random.key(seed))
    for embedding, model in how.models().items():
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


def _of(size: sizes.Size, rows: int, length: int) -> BiasGradients:
  settings = size()
  return BiasGradients(model=settings["model"], context=settings["context"], rows=rows, length=length)


SIZES = {
  "mini": lambda: _of(sizes.mini, 8, 128),
  "small": lambda: _of(sizes.small, 8, 256),
  "paper": lambda: _of(sizes.paper, 1, 1024),
}
get_config = getter(SIZES)
