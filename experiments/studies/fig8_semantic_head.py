"""What YaRN does to a semantic head: the last token's attention over a needle (paper: figure 8).

`python -m experiments.study --config=experiments/studies/fig8_semantic_head.py:SIZE --workdir=DIR` trains a model with
RoPE and the same model dropped and recalibrated, and writes figures/semantic_head.png and .csv: how much attention the
last token of a prompt gives to each token of the needle that it asks for, in the model as it was trained and under YaRN
with extension 2, for prompts of each length of `--config.lengths`. The head is the one that gives the needle the most
attention in the model as it was trained, on average over the prompts of the first length. The paper shows one head and
one prompt, in which YaRN moves much of the weight to other tokens. Added here are the mean over many prompts, with its
standard error, and the same for the dropped model, in a head that is chosen likewise. semantic_head_all.csv has every
head's attention to the whole needle, and its difference from the same head of the model as it was trained.

`--config.trained=RUN` looks into a model that exists, and trains nothing: RUN is the workdir of any run with RoPE, or
an imported model (`python -m experiments.fetch_smollm2`). `--config.dropped=RUN` is then the same model dropped and
recalibrated; without it, the model is dropped and not recalibrated.

| size  |  parameters |     T | runs | rows |    tokens | FLOPs (PaLM) |    minutes (on) |
| :---- | ----------: | ----: | ---: | ---: | --------: | -----------: | --------------: |
| mini  |     935,040 |   128 |    3 |    3 |      1.3M |      8.18e12 | 1 (2 CPU cores) |
| small |  15,735,168 |   256 |    3 |    3 |    125.0M |      1.30e16 |    2 (one H200) |
| paper | 494,005,120 | 1,024 |    3 |    3 | 18,874.4M |      6.09e19 |                 |

Tokens and FLOPs (PaLM) are totals over the runs of a seed, whose losses and needles are measured too. The figure takes
three forward passes over `prompts` prompts of each length. Numbers to expect: docs/results/figures.md.
"""

import dataclasses
import itertools
import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from drope_jax.data.recall import Lines, needle_sample
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.theory import last_query_weights
from experiments.plan import check_at_least_one
from experiments.studies import sizes
from experiments.studies.branching import getter
from experiments.studies.figures import Out, panels, save, standard_error, text_lines, write_csv
from experiments.studies.heads import Compared, HeadStudy, Shown

logger = logging.getLogger(__name__)

FACTS = 4  # per prompt, one of which is asked for
DEPTH = 0.25  # of the fact that is asked for
LEAD = 3  # at most so many tokens of the needle before the value are shown too, such as its topic


class Prompts(NamedTuple):
  """Prompts of one length whose needles' values all have the same number of tokens."""

  tokens_NT: np.ndarray
  places_Nn: np.ndarray  # positions of the end of each needle: the value, and at most LEAD tokens before it
  values: int  # tokens of a value

  @property
  def names(self) -> list[str]:
    """The names of the tokens at `places_Nn`."""
    lead = self.places_Nn.shape[1] - self.values
    value = [f"value, token {i + 1}" for i in range(self.values)] if self.values > 1 else ["value"]
    return [*(f"{lead - i} before" for i in range(lead)), *value]


def make_prompts(lines: Lines, count: int, length: int) -> Prompts:
  """Prompts whose values have the most common number of tokens."""
  drawn = (needle_sample(lines, length, DEPTH, 0, index, FACTS) for index in itertools.count())
  first = list(itertools.islice(drawn, 20))
  size = statistics.mode(len(sample.answer) for sample in first)
  matching = (sample for sample in itertools.chain(first, drawn) if len(sample.answer) == size)
  alike = list(itertools.islice(matching, count))
  shown = min(size + LEAD, *(len(range(*sample.needle.indices(length))) for sample in alike))
  places_Nn = np.stack([np.arange(sample.needle.stop - shown, sample.needle.stop) for sample in alike])
  return Prompts(np.stack([sample.tokens for sample in alike]), places_Nn, size)


def needle_weights(one: Shown, prompts: Prompts) -> np.ndarray:
  """Attention of the last token of each prompt on the tokens of the needle, by head: (L, N, H, n)."""
  how = one.inference(prompts.tokens_NT.shape[1])
  logger.info("%d prompts of %d tokens: %s", *prompts.tokens_NT.shape, one.label)
  found = []
  for row, places in zip(prompts.tokens_NT, prompts.places_Nn, strict=True):
    weights = last_query_weights(one.loaded.params, how.config, row[None], logit_scale=how.logit_scale)
    found.append(np.asarray(weights)[:, 0][..., places])
  return np.stack(found, axis=1)


def most_semantic(weights_LNHn: np.ndarray) -> tuple[int, int]:
  """Layer and index of the head that gives the needle the most attention, on average over the prompts."""
  mass_LH = weights_LNHn.sum(-1).mean(1)
  layer, head = np.unravel_index(mass_LH.argmax(), mass_LH.shape)
  return int(layer), int(head)


def of_all_heads(compared: Sequence[Shown], weights_LNHn: Sequence[np.ndarray]) -> list[tuple[Any, ...]]:
  """(model, layer, head, weight on the needle, its error, change from the first model, its error) of every head."""
  of_needle = [weights.sum(-1).swapaxes(0, 1) for weights in weights_LNHn]  # (N, L, H) each
  rows: list[tuple[Any, ...]] = []
  for one, of_NLH in zip(compared, of_needle, strict=True):
    moved_NLH = of_NLH - of_needle[0]
    columns = (of_NLH.mean(0), standard_error(of_NLH), moved_NLH.mean(0), standard_error(moved_NLH))
    rows += [(one.label, *at, *(column[at] for column in columns)) for at in np.ndindex(of_NLH.shape[1:])]
  return rows


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class SemanticHead(HeadStudy):
  """The settings, as `--config.NAME=VALUE`."""

  title: ClassVar[str] = "A semantic head with and without RoPE (paper: figure 8)"
  captions: ClassVar[Mapping[str, str]] = {
    "semantic_head": "How much attention the last token of a prompt gives to each token of the needle that it asks "
    "for: mean over prompts, in the head that gives the needle the most at the first length, on these prompts.",
  }

  prompts: int = 400  # of each length
  lengths: tuple[int, ...] = ()  # of the prompts, in tokens; none: those of `extensions`

  def __post_init__(self) -> None:
    super().__post_init__()
    check_at_least_one(self, "prompts")

  def check_texts(self, tokenizer: Tokenizer) -> None:
    """Makes a prompt of each length. Raises ConfigError for one that has no room for the needle."""
    lengths = self.lengths_of(self.context)
    lines = text_lines(tokenizer, max(lengths))
    for length in lengths:
      make_prompts(lines, 1, length)

  def lengths_of(self, context: int) -> tuple[int, ...]:
    """The lengths of the prompts, in tokens, for a model of this context."""
    return self.lengths or tuple(round(extension * context) for extension in self.extensions)

  def draw(self, compared: Compared, out: Out) -> None:
    trained = compared.trained
    lengths = self.lengths_of(trained.context)
    lines = text_lines(load_tokenizer(compared.path), max(lengths))
    figure, axes = panels(len(lengths), width=5.6, height=3.8)
    heads: tuple[tuple[int, int], ...] = ()
    rows, of_all, moves = [], [], []
    for axis, length in zip(axes, lengths, strict=True):
      prompts = make_prompts(lines, self.prompts, length)
      found = [needle_weights(one, prompts) for one in compared.models]
      of_all += [(length, *row) for row in of_all_heads(compared.models, found)]
      if not heads:
        rope, _, dropped = map(most_semantic, found)
        heads = (rope, rope, dropped)  # YaRN is shown on the head chosen under RoPE
      sums = []
      for number, (one, head, weights) in enumerate(zip(compared.models, heads, found, strict=True)):
        chosen = weights[head[0], :, head[1]]  # (N, n)
        mean, error = chosen.mean(0), standard_error(chosen)
        sums.append(chosen.sum(1))
        label = f"{one.label} (layer {head[0]}, head {head[1]}: sum {sums[-1].mean():.2f})"
        at = np.arange(chosen.shape[1]) + 0.25 * number
        axis.bar(at, mean, 0.22, yerr=error, label=label, color=one.color, capsize=2)
        rows += [(length, one.label, *head, token, m, e) for token, (m, e) in enumerate(zip(mean, error, strict=True))]
      moved = sums[1] - sums[0]  # the same head and prompts
      spread = f" ± {standard_error(moved):.2f}" if len(moved) > 1 else ""
      moves.append(f"{moved.mean():+.2f}{spread}")
      extent = f"{length:,} tokens ({length / trained.context:.3g} × the context)"
      axis.set(title=extent, xlabel="token of the needle", ylabel="mean attention weight")
      axis.margins(y=0.35)  # room for the legend
      axis.set_xticks(np.arange(chosen.shape[1]) + 0.25 * (len(compared.models) - 1) / 2, prompts.names)
      axis.legend(fontsize=8, loc="upper left")
    caption = (
      f"Attention of the last token of {self.prompts} prompts, the needle at a depth of {DEPTH:g}; {compared.about}. "
      f"YaRN less RoPE, from above: {', '.join(moves)}. Bars and ±: standard error over prompts."
    )
    where, how_much = ("length", "model", "layer", "head"), ("weight", "standard_error")
    write_csv(out.folder / "semantic_head.csv", (*where, "token", *how_much), rows)
    header = (*where, *how_much, "change", "standard_error_of_change")
    write_csv(out.folder / "semantic_head_all.csv", header, of_all)
    save(figure, caption, out, "semantic_head")


SIZES = {
  "mini": sizes.of(SemanticHead, sizes.mini),
  "small": sizes.of(SemanticHead, sizes.small),
  "paper": sizes.of(SemanticHead, sizes.paper),
}
get_config = getter(SIZES)
