"""What YaRN does to a positional head, and whether a dropped model has one (paper: figure 7).

`python -m experiments.study --config=experiments/studies/fig7_positional_head.py:SIZE --workdir=DIR` trains a model
with RoPE and the same model dropped and recalibrated, and writes figures/positional_head.png, with positional_head.csv
(A^c of definition 3.1 of every head) and positional_head_by_distance.csv (of the heads that are drawn). The upper
panels show the attention of the most positional head by distance, as the model was trained and under YaRN with
extension 2. As in the paper, this is the head with the largest A^c in the model as it was trained, for the diagonal and
for the previous token. The paper shows one head of Qwen2.5-0.5B, little changed. Added here is the most positional head
of the dropped model. The lower panels show A^c of all heads, ranked, since one head is not representative.

`--config.trained=RUN` looks into a model that exists, and trains nothing: RUN is the workdir of any run with RoPE, or
an imported model (`python -m experiments.fetch_smollm2`). `--config.dropped=RUN` is then the same model dropped and
recalibrated; without it, the model is dropped and not recalibrated.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    3 |    3 |      1.3M |      8.18e12 | 1 (2 CPU cores) |
| small |  15,735,168 |   256 |    3 |    3 |    125.0M |      1.30e16 |    2 (one H200) |
| paper | 494,005,120 | 1,024 |    3 |    3 | 18,874.4M |      6.09e19 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed, whose losses within and beyond the context are measured too.
The figure takes three forward passes over `rows` × `length` tokens. Numbers to expect: docs/results/figures.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import check
from drope_jax.theory import (
  attention_by_distance,
  attention_weights,
  diagonal_weights,
  positional_bias,
  positional_heads,
  previous_token_weights,
)
from experiments.plan import check_at_least_one
from experiments.studies import sizes
from experiments.studies.branching import getter
from experiments.studies.figures import Out, panels, save, standard_error, text_rows, write_csv
from experiments.studies.heads import Compared, HeadStudy, Shown

BIASES = {"diagonal": diagonal_weights, "previous token": previous_token_weights}
DISTANCES = 32  # tokens: the largest distance that is drawn


class Heads(NamedTuple):
  """Measurements of all heads of a model under a method: means over rows of text, and their standard errors."""

  bias_CLH: np.ndarray  # A^c, in the order of BIASES
  bias_error_CLH: np.ndarray
  by_distance_LHT: np.ndarray  # mean attention weight
  by_distance_error_LHT: np.ndarray


def heads(one: Shown, tokens_BT: np.ndarray) -> Heads:
  how, c_CTT = one.inference(tokens_BT.shape[1]), [weights(tokens_BT.shape[1]) for weights in BIASES.values()]
  found = []
  for row_T in tokens_BT:  # one at a time: the weights of all layers are large
    weights = attention_weights(one.loaded.params, how.config, row_T[None], logit_scale=how.logit_scale)
    bias_CLH = [positional_bias(weights, c)[:, 0] for c in c_CTT]
    found.append((np.stack(bias_CLH), np.asarray(jax.vmap(attention_by_distance)(weights))))
  biases, profiles = map(np.stack, zip(*found, strict=True))
  return Heads(biases.mean(0), standard_error(biases), profiles.mean(0), standard_error(profiles))


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class PositionalHead(HeadStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "Positional heads with and without RoPE (paper: figure 7)"
  captions: ClassVar[Mapping[str, str]] = {
    "positional_head": "The two upper panels: mean attention by distance of the head with the largest A, for its own "
    "token and for the previous one. The two lower panels: A of all heads, ranked for each model by itself. A "
    "(definition 3.1) is 1 for a head that attends to that one token only, 0 for one that attends to all evenly, and "
    "below 0 for one that avoids it.",
  }

  tasks: tuple[str, ...] = ("perplexity",)
  rows: int = 16  # of text, to average over
  length: int = 128  # of a row, in tokens

  def __post_init__(self) -> None:
    super().__post_init__()
    check_at_least_one(self, "rows")
    check(self.length > 1, f"PositionalHead.length is {self.length}; a row needs at least 2 tokens")

  def draw(self, compared: Compared, out: Out) -> None:
    tokens_BT = text_rows(load_tokenizer(compared.path), self.rows, self.length, compared.trained.model.vocab_size)
    found = [heads(one, tokens_BT) for one in compared.models]
    figure, axes = panels(2 * len(BIASES), height=2.6)
    all_heads, drawn = [], []
    for c, bias in enumerate(BIASES):
      above, below = axes[c], axes[len(BIASES) + c]
      chosen_on = (found[0], found[0], found[2])  # YaRN is shown on the most positional head under RoPE
      for one, on, seen in zip(compared.models, chosen_on, found, strict=True):
        ((layer, head),) = positional_heads(on.bias_CLH[c])
        a, a_error = seen.bias_CLH[c, layer, head], seen.bias_error_CLH[c, layer, head]
        profile, error = seen.by_distance_LHT[layer, head], seen.by_distance_error_LHT[layer, head]
        look: dict[str, Any] = {"color": one.color, "marker": one.marker, "markersize": 4, "linewidth": 1.4}
        known = f" ± {a_error:.2f}" if np.isfinite(a_error) else ""
        said = f"{one.label}\n(layer {layer}, head {head}: A = {a:.2f}{known})"
        shown_to = min(DISTANCES, len(profile))
        above.errorbar(range(shown_to), profile[:shown_to], error[:shown_to], label=said, capsize=2, **look)
        order = np.argsort(seen.bias_CLH[c], axis=None)[::-1]
        ranks, ranked, ranked_error = np.arange(1, len(order) + 1), *(x[c].ravel()[order] for x in seen[:2])
        below.plot(ranks, ranked, label=one.label, **look, markevery=max(len(ranked) // 16, 1))
        low, high = ranked - ranked_error, ranked + ranked_error
        below.fill_between(ranks, low, high, color=one.color, alpha=0.25, linewidth=0)
        drawn += [(bias, one.label, layer, head, d, *of) for d, of in enumerate(zip(profile, error, strict=True))]
        all_heads += [
          (bias, one.label, *at, value, seen.bias_error_CLH[c][at]) for at, value in np.ndenumerate(seen.bias_CLH[c])
        ]
      above.set(title=f"most positional: {bias}", xlabel="distance (tokens)", ylabel="mean attention weight")
      below.set(title=f"all heads: {bias}", xlabel="head, by rank", ylabel="positional bias A")
      above.legend(fontsize=8)
      below.legend(fontsize=8)
    caption = f"{self.rows} rows of {self.length} tokens of Python's prose; {compared.about}. "
    caption += "Bars, bands and ±: standard error over rows."
    where = ("bias", "model", "layer", "head")
    write_csv(out.folder / "positional_head.csv", (*where, "A", "standard_error"), all_heads)
    write_csv(out.folder / "positional_head_by_distance.csv", (*where, "distance", "weight", "standard_error"), drawn)
    save(figure, caption, out, "positional_head")


SIZES = {
  "mini": sizes.of(PositionalHead, sizes.mini),
  "small": sizes.of(PositionalHead, sizes.small),
  "paper": sizes.of(PositionalHead, sizes.paper),
}
get_config = getter(SIZES)
