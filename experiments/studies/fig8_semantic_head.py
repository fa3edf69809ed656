"""What YaRN does to a semantic head: the last token's attention over a needle (paper: figure 8).

`python -m experiments.studies.fig8_semantic_head --checkpoint=RUN --out=DIR [--dropped=RUN --length=256 --samples=20]`
writes semantic_head.png and .csv: how much attention the last token of a prompt gives to each token of the needle that
it asks for, in the model as it was trained and under YaRN with extension 2. The head is the one that gives the needle
the most attention in the model as it was trained, on average over the samples. The paper shows one head and one prompt,
in which YaRN moves much of the weight to other tokens. Added here are the mean over many prompts, with its standard
error, and the same for the model without its embedding, recalibrated (`--dropped`) or not. semantic_head_all.csv has
every head's attention to the whole needle, and its difference from the same head of the model as it was trained.

RUN is the workdir of any run, or an imported model (`python -m experiments.fetch_smollm2`). Nothing is trained.
Parameters are those of the model; FLOPs are three forward passes over `samples` × `length` tokens. Numbers to expect:
docs/results/figures.md.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np

from drope_jax import cli
from drope_jax.data.recall import Lines, needle_sample
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.theory import last_query_weights
from experiments.studies.figures import (
  Shown,
  name_of,
  panels,
  parser_of_runs,
  save,
  shown,
  standard_error,
  styled,
  text_lines,
  write_csv,
)

FACTS = 4  # per prompt, one of which is asked for
DEPTH = 0.25  # of the fact that is asked for
LEAD = 3  # tokens before the value that are shown too: its topic and the arrow


def prompts(lines: Lines, samples: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens (N, T), and the positions (N, n) of the value that each prompt asks for and of LEAD tokens before it.

  Prompts whose value differs from the first one's in its number of tokens are left out.
  """
  drawn = [needle_sample(lines, length, DEPTH, 0, index, FACTS) for index in range(samples)]
  size = len(drawn[0].answer)
  alike = [sample for sample in drawn if len(sample.answer) == size]
  places_Nn = [np.arange(sample.needle.stop - size - LEAD, sample.needle.stop) for sample in alike]
  return np.stack([sample.tokens for sample in alike]), np.stack(places_Nn)


def needle_weights(one: Shown, tokens_NT: np.ndarray, places_Nn: np.ndarray) -> np.ndarray:
  """Attention of the last token of each prompt on the tokens of the needle, by head: (L, N, H, n)."""
  how = one.inference(tokens_NT.shape[1])
  found = []
  for row, places in zip(tokens_NT, places_Nn, strict=True):
    weights = last_query_weights(one.loaded.params, how.config, row[None], logit_scale=how.logit_scale)
    found.append(np.asarray(weights)[:, 0][..., places])
  return np.stack(found, axis=1)


def of_all_heads(compared: Sequence[Shown], weights_LNHn: Sequence[np.ndarray]) -> list[tuple[Any, ...]]:
  """(model, layer, head, weight on the needle, its error, change from the first model, its error) of every head."""
  of_needle = [weights.sum(-1).swapaxes(0, 1) for weights in weights_LNHn]  # (N, L, H) each
  rows: list[tuple[Any, ...]] = []
  for one, of_NLH in zip(compared, of_needle, strict=True):
    moved_NLH = of_NLH - of_needle[0]
    columns = (of_NLH.mean(0), standard_error(of_NLH), moved_NLH.mean(0), standard_error(moved_NLH))
    rows += [(one.label, *at, *(column[at] for column in columns)) for at in np.ndindex(of_NLH.shape[1:])]
  return rows


@styled
def draw(given: Namespace) -> None:
  compared = shown(given)
  lines = text_lines(load_tokenizer(str(given.checkpoint)), given.length)
  tokens, places = prompts(lines, given.samples, given.length)
  figure, (axis,) = panels(1, width=5.6, height=3.8)
  found = [needle_weights(one, tokens, places) for one in compared]  # (L, N, H, n) each
  rows, head, sums = [], None, []
  for number, (one, weights) in enumerate(zip(compared, found, strict=True)):
    if head is None or one.loaded is not compared[0].loaded:  # YaRN is shown on the head chosen under RoPE
      mass = weights.sum(-1).mean(1)
      layer, index = np.unravel_index(mass.argmax(), mass.shape)
      head = (int(layer), int(index))
    chosen = weights[head[0], :, head[1]]  # (N, n)
    mean, error = chosen.mean(0), standard_error(chosen)
    at = np.arange(chosen.shape[1]) + 0.25 * number
    sums.append(chosen.sum(1))
    label = f"{one.label} (layer {head[0]}, head {head[1]}: sum {sums[-1].mean():.2f})"
    axis.bar(at, mean, 0.22, yerr=error, label=label, color=one.color, capsize=2)
    rows += [(one.label, *head, token, m, e) for token, (m, e) in enumerate(zip(mean, error, strict=True))]
  axis.set(title="attention of the last token", xlabel="token of the needle", ylabel="mean attention weight")
  axis.margins(y=0.35)  # room for the legend
  values = places.shape[1] - LEAD
  value = [f"value, token {i + 1}" for i in range(values)] if values > 1 else ["value"]
  names = [*(f"{LEAD - i} before" for i in range(LEAD)), *value]
  axis.set_xticks(np.arange(len(names)) + 0.25 * (len(compared) - 1) / 2, names)
  axis.legend(fontsize=8, loc="upper left")
  moved = sums[1] - sums[0]  # the same head and prompts
  spread = f" ± {standard_error(moved):.2f}" if len(moved) > 1 else ""
  caption = (
    f"{len(tokens)} prompts of {given.length:,} tokens, the needle at a depth of {DEPTH:g}; "
    f"{name_of(given.checkpoint)}, trained at {compared[0].loaded.context:,}. "
    f"YaRN less RoPE: {moved.mean():+.2f}{spread}; bars and ±: standard error over prompts."
  )
  save(figure, caption, given, "semantic_head")
  where, how_much = ("model", "layer", "head"), ("weight", "standard_error")
  write_csv(given.out / "semantic_head.csv", (*where, "token", *how_much), rows)
  header = (*where, *how_much, "change", "standard_error_of_change")
  write_csv(given.out / "semantic_head_all.csv", header, of_all_heads(compared, found))


def _parser() -> cli.Parser:
  parser = parser_of_runs("fig8_semantic_head", __doc__)
  parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
  parser.add_argument("--samples", type=int, default=20, help="prompts")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), draw, arguments, computes=True)


if __name__ == "__main__":
  sys.exit(main())
