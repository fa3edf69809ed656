"""What YaRN does to a positional head, and whether a dropped model has one (paper: figure 7).

`python -m experiments.studies.fig7_positional_head --checkpoint=RUN --out=DIR [--dropped=RUN --length=256 --rows=8]`
writes positional_head.png and, of every head, positional_head.csv (A^c of definition 3.1) and, of the heads that are
drawn, positional_head_by_distance.csv. Above: the attention of the most positional head by distance, as the model was
trained and under YaRN with extension 2. It is the head with the largest A^c, for the diagonal and for the previous
token, in the model as it was trained: so the paper finds it. The paper shows one head of Qwen2.5-0.5B, little changed.
What it lacks is beside it: the most positional head of the same model without its embedding, recalibrated (`--dropped`)
or not. Below it: A^c of all heads, the largest first, so that one picture does not stand for all.

RUN is the workdir of any run, or an imported model (`python -m experiments.fetch_smollm2`). Nothing is trained;
parameters and FLOPs are those of three forward passes of the model over `rows` × `length` tokens. There is no
`--workdir` and no table of it in the paper. Numbers to expect: docs/results/figures.md.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from drope_jax import cli
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.theory import (
  attention_by_distance,
  attention_weights,
  diagonal_weights,
  positional_bias,
  previous_token_weights,
)
from experiments.studies.figures import (
  Shown,
  name_of,
  panels,
  parser_of_runs,
  save,
  shown,
  styled,
  text_rows,
  write_csv,
)

BIASES = {"diagonal": diagonal_weights, "previous token": previous_token_weights}
DISTANCES = 32  # that are drawn


class Heads(NamedTuple):
  """All heads of a model under a method, averaged over rows of text."""

  bias_CLH: np.ndarray  # A^c, in the order of BIASES
  by_distance_LHT: np.ndarray  # mean attention weight


def heads(one: Shown, tokens_BT: np.ndarray) -> Heads:
  how, c_CTT = one.inference(tokens_BT.shape[1]), [weights(tokens_BT.shape[1]) for weights in BIASES.values()]
  found = []
  for row_T in tokens_BT:  # one at a time: the weights of all layers are large
    weights = attention_weights(one.loaded.params, how.config, row_T[None], logit_scale=how.logit_scale)
    bias_CLH = [jax.vmap(positional_bias, (0, None))(weights, c)[:, 0] for c in c_CTT]
    found.append((np.stack(bias_CLH), np.asarray(jax.vmap(attention_by_distance)(weights))))
  biases, profiles = zip(*found, strict=True)
  return Heads(np.mean(biases, axis=0), np.mean(profiles, axis=0))


def most_positional(bias_LH: np.ndarray) -> tuple[int, int]:
  """(layer, head) of the largest A^c."""
  layer, head = np.unravel_index(bias_LH.argmax(), bias_LH.shape)
  return int(layer), int(head)


@styled
def draw(given: Namespace) -> None:
  compared = shown(given)
  trained = compared[0].loaded
  tokens_BT = text_rows(load_tokenizer(str(given.checkpoint)), given.rows, given.length, trained.model.vocab_size)
  found = [heads(one, tokens_BT) for one in compared]
  figure, axes = panels(2 * len(BIASES), height=2.6)
  all_heads, drawn = [], []
  for c, bias in enumerate(BIASES):
    above, below = axes[c], axes[len(BIASES) + c]
    for one, seen in zip(compared, found, strict=True):
      same = found[0] if one.loaded is trained else seen  # YaRN is shown on the head that RoPE chose
      layer, head = most_positional(same.bias_CLH[c])
      a, profile = float(seen.bias_CLH[c, layer, head]), seen.by_distance_LHT[layer, head]
      look: dict[str, Any] = {"color": one.color, "marker": one.marker, "markersize": 4, "linewidth": 1.4}
      above.plot(profile[:DISTANCES], label=f"{one.label}\n(layer {layer}, head {head}: A = {a:.2f})", **look)
      ranked = np.sort(seen.bias_CLH[c], axis=None)[::-1]
      below.plot(np.arange(1, len(ranked) + 1), ranked, label=one.label, **look, markevery=max(len(ranked) // 16, 1))
      drawn += [(bias, one.label, layer, head, d, w) for d, w in enumerate(profile)]
      all_heads += [(bias, one.label, *at, value) for at, value in np.ndenumerate(seen.bias_CLH[c])]
    above.set(title=f"most positional: {bias}", xlabel="distance (tokens)", ylabel="mean attention weight")
    below.set(title=f"all heads: {bias}", xlabel="head, by rank", ylabel="positional bias A")
    above.legend(fontsize=8)
    below.legend(fontsize=8)
  caption = f"{given.rows} rows of {given.length} tokens of Python's prose; {name_of(given.checkpoint)}, "
  caption += f"trained at {trained.context:,}."
  save(figure, caption, given.out / "positional_head.png")
  where = ("bias", "model", "layer", "head")
  write_csv(given.out / "positional_head.csv", (*where, "A"), all_heads)
  write_csv(given.out / "positional_head_by_distance.csv", (*where, "distance", "weight"), drawn)


def _parser() -> cli.Parser:
  parser = parser_of_runs("fig7_positional_head", __doc__)
  parser.add_argument("--length", type=int, default=256, help="tokens of a row")
  parser.add_argument("--rows", type=int, default=8, help="rows of text")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), draw, arguments, computes=True)


if __name__ == "__main__":
  sys.exit(main())
