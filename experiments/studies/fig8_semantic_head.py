"""What YaRN does to a semantic head: the last token's attention over a needle (paper: figure 8).

`python -m experiments.studies.fig8_semantic_head --checkpoint=RUN [--dropped=RUN --length=256 --samples=20]` writes
OUT/semantic_head.png and .csv: how much of the attention of a prompt's last token falls on the needle that it asks for,
token by token, under the model as it was trained and under YaRN with extension 2. The head is the one that gives the
needle the most, on average over the samples, as it was trained. The paper shows one head and one prompt, in which YaRN
moves much of the weight to other tokens. What it lacks is run beside it: the mean over many prompts, with its standard
error, and the same model dropped and recalibrated (`--dropped`).

RUN is the workdir of any run, or an imported model (`python -m experiments.fetch_smollm2`). Nothing is trained;
parameters and FLOPs are those of one forward pass of the model over `samples` × `length` tokens for each line. There is
no `--workdir` and no table of it in the paper. Numbers to expect: not yet run.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from drope_jax import checkpoint, cli
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.recall import Lines, needle_sample
from drope_jax.data.tokenizers import load_tokenizer
from experiments.reporting.axes import GREEN, INK, VERMILION
from experiments.studies.figures import (
  as_trained,
  attention_weights,
  panels,
  parser_of_runs,
  save,
  text_lines,
  write_csv,
)

YARN = "yarn:2"
FACTS = 4  # in a prompt, one of which is asked for
DEPTH = 0.25  # of the one that is asked for
LEAD = 3  # tokens before the value that are looked at too: its topic, and the arrow


def prompts(lines: Lines, samples: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens (N, T), and the positions of each prompt's needle (N, n): of the value asked for, and LEAD before it.

  Prompts whose value has another number of tokens than the first one's are left out.
  """
  tokens: list[np.ndarray] = []
  places: list[np.ndarray] = []
  for index in range(samples):
    sample = needle_sample(lines, length, DEPTH, 0, index, FACTS)
    row, size = np.asarray(sample.tokens), len(sample.answer)
    if not places or size + LEAD == len(places[0]):
      start = needle_start(row, sample.answer)
      tokens.append(row)
      places.append(np.arange(start - LEAD, start + size))
  return np.stack(tokens), np.stack(places)


def needle_start(row: np.ndarray, answer: Sequence[int]) -> int:
  """Where the answer stands behind the words of the question that the row ends with; facts may share a value."""
  windows = np.lib.stride_tricks.sliding_window_view(row, len(answer))
  starts = np.flatnonzero((windows == np.asarray(answer)).all(1))

  def alike(start: int) -> int:
    """How many tokens before it are those that the row ends with."""
    same = row[:start][::-1] == row[::-1][:start]
    return start if same.all() else int(same.argmin())

  return int(max(starts[starts >= LEAD], key=alike))


def needle_weights(loaded: Checkpoint, method: str, tokens_NT: np.ndarray, places_Nn: np.ndarray) -> np.ndarray:
  """What the last token of each prompt gives to the needle's tokens, by head: (L, N, H, n)."""
  found = []
  for row, places in zip(tokens_NT, places_Nn, strict=True):  # one prompt at a time: (L, H, T, T) is large
    weights = attention_weights(loaded, method, row[None], range(loaded.model.num_layers))
    found.append(weights[:, 0, :, -1][:, :, places])
  return np.stack(found, axis=1)


def draw(given: Namespace) -> None:
  loaded = checkpoint.load(given.checkpoint)
  lines = text_lines(load_tokenizer(str(given.checkpoint)), given.length)
  tokens, places = prompts(lines, given.samples, given.length)
  shown = [("as trained", loaded, as_trained(loaded), INK), ("as trained", loaded, YARN, GREEN)]
  if given.dropped is not None:
    dropped = checkpoint.load(given.dropped)
    shown.append(("dropped", dropped, as_trained(dropped), VERMILION))
  figure, (axis,) = panels(1, width=6)
  rows, head = [], None
  for number, (name, model, method, color) in enumerate(shown):
    weights = needle_weights(model, method, tokens, places)  # (L, N, H, n)
    if head is None or model is not loaded:
      mass = weights.sum(-1).mean(1)
      layer, index = np.unravel_index(mass.argmax(), mass.shape)
      head = (int(layer), int(index))
    chosen = weights[head[0], :, head[1]]  # (N, n)
    mean, error = chosen.mean(0), chosen.std(0, ddof=1) / len(chosen) ** 0.5 if len(chosen) > 1 else 0 * chosen[0]
    at = np.arange(chosen.shape[1]) + 0.25 * number
    label = f"{name}, {method} (layer {head[0]}, head {head[1]}; sum {chosen.sum(1).mean():.2f})"
    axis.bar(at, mean, 0.22, yerr=error, label=label, color=color, capsize=2)
    rows += [(name, method, *head, token, m, e) for token, (m, e) in enumerate(zip(mean, error, strict=True))]
  axis.set(title="attention of the last token", xlabel="token of the needle", ylabel="mean attention weight")
  names = [f"value {i - LEAD + 1}" if i >= LEAD else f"{i - LEAD}" for i in range(places.shape[1])]
  axis.set_xticks(np.arange(len(names)) + 0.25 * (len(shown) - 1) / 2, names)
  axis.legend(fontsize=7)
  caption = f"{len(tokens)} prompts of {given.length} tokens, the needle at a depth of {DEPTH:g}; bars: standard error."
  save(figure, caption, given.out / "semantic_head.png")
  header = ("model", "method", "layer", "head", "token", "weight", "standard_error")
  write_csv(given.out / "semantic_head.csv", header, rows)


def _parser() -> cli.Parser:
  parser = parser_of_runs("fig8_semantic_head", __doc__)
  parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
  parser.add_argument("--samples", type=int, default=20, help="prompts")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), draw, arguments)


if __name__ == "__main__":
  sys.exit(main())
