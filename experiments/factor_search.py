"""Factors of RoPE's pairs for a longer context, found by an evolutionary search, after LongRoPE2 (arXiv 2502.20082).

`python -m experiments.factor_search --checkpoint=RUN --factor=8 [--generations=20 --population=16 --samples=16]` prints
the factors for a run with RoPE, as `--config.longrope` of studies/table10_extension.py takes them.

As there, what guides the search is the loss on the answers of needle prompts at the longer length alone, not that of
all tokens; the factors never fall from a fast pair to a slow one, lie between 1 and twice the extension, and from the
critical pair on, the first that does not come full circle within the training context, are at least the extension. The
first population has PI, NTK and YaRN. What is not here: the search for the critical pair itself, and the original's
fine-tuning with short and long texts mixed. Needles are drawn from the run's split `fit`, which no result is measured
on.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax import checkpoint, cli
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.corpus import documents
from drope_jax.data.recall import Lines, needle_sample, sentences
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.loss import token_losses
from drope_jax.model import hidden_states
from drope_jax.positions import RoPE
from drope_jax.rotation import Frequencies
from drope_jax.scalings import NTK, PI, LongRoPE, YaRN, base_frequencies

Loss = Callable[[np.ndarray], float]
FACTS = 4  # in a prompt
CHANGED = 0.3  # the share of pairs that a mutation changes
STEP = 0.15  # the standard deviation of a change, of the logarithm of a factor


def search(loss: Loss, first: Sequence[np.ndarray], critical: int, factor: float, how: Namespace) -> np.ndarray:
  """The factors (h/2,) with the lowest loss that were found.

  Args:
    loss: of factors; it is called once for each of `population` candidates in every one of `generations`.
    first: what the search begins with.
    critical: the first pair that must be slowed down by `factor` or more.
    how: generations, population and seed.
  """
  rng = np.random.default_rng(how.seed)
  known = [(loss(one), one) for one in (_allowed(one, critical, factor) for one in first)]
  for _ in range(how.generations):
    known = sorted(known, key=lambda pair: pair[0])[: max(how.population // 4, 2)]
    children = [_child([one for _, one in known], critical, factor, rng) for _ in range(how.population)]
    known += [(loss(child), child) for child in children]
  return min(known, key=lambda pair: pair[0])[1]


def _child(parents: Sequence[np.ndarray], critical: int, factor: float, rng: np.random.Generator) -> np.ndarray:
  """Two parents crossed, and some of the pairs changed."""
  mother, father = (parents[i] for i in rng.integers(len(parents), size=2))
  mixed = np.where(rng.random(len(mother)) < 0.5, mother, father)
  changed = rng.random(len(mixed)) < CHANGED
  return _allowed(mixed * np.exp(np.where(changed, rng.normal(0, STEP, len(mixed)), 0.0)), critical, factor)


def _allowed(factors: np.ndarray, critical: int, factor: float) -> np.ndarray:
  """The nearest factors that the search allows: see the module's docstring."""
  least = np.where(np.arange(len(factors)) < critical, 1.0, factor)
  return np.maximum.accumulate(np.clip(factors, least, 2 * factor))


def needle_loss(loaded: Checkpoint, lines: Lines, length: int, samples: int) -> Loss:
  """The loss, in nats per token, on the answers of needle prompts of `length` tokens, as a function of the factors."""
  drawn = [needle_sample(lines, length, index / max(samples - 1, 1), 0, index, FACTS) for index in range(samples)]
  longest = max(len(sample.answer) for sample in drawn)
  rows = [np.append(sample.tokens, np.resize(np.asarray(sample.answer), longest)) for sample in drawn]
  counts = np.array([[len(sample.answer)] for sample in drawn])
  at = np.arange(length + longest - 1) - (length - 1)  # of each target, from the answer's first token on
  tokens_BT, weights_BT = np.stack(rows).astype(np.int32), ((at >= 0) & (at < counts)).astype(np.float32)
  omega = base_frequencies(_rope(loaded).theta, loaded.model.head_dim)
  ones = (1.0,) * len(omega)
  attention_factor = LongRoPE(ones, ones, loaded.context, length / loaded.context).default_attention_factor

  @jax.jit
  def mean_loss(params, slowed):
    table = Frequencies(slowed, attention_factor)
    states = hidden_states(params, loaded.model, tokens_BT[:, :-1], frequencies=table).states_BTD
    nll_BT = token_losses(params, states, jnp.asarray(tokens_BT[:, 1:])).nll_BT
    return (nll_BT * weights_BT).sum() / weights_BT.sum()

  return lambda factors: float(mean_loss(loaded.params, jnp.asarray(omega / factors, jnp.float32)))


def _rope(loaded: Checkpoint) -> RoPE:
  positions = loaded.model.positions
  if not isinstance(positions, RoPE) or positions.scaling is not None or positions.pairs is not None:
    raise ConfigError(
      f"--checkpoint: its positions are {positions}; the search needs a RoPE of all pairs, not rescaled"
    )
  return positions


def _print_factors(given: Namespace) -> None:
  loaded = checkpoint.load(given.checkpoint)
  rope, head_dim = _rope(loaded), loaded.model.head_dim
  if loaded.config is None and given.dataset is None:
    raise ConfigError("--dataset: the checkpoint is an imported model, which names none; give one with a split `fit`")
  dataset = given.dataset or (loaded.config.data.source or loaded.config.data.directory if loaded.config else "")
  fillers = [one for text in documents(dataset, "fit") for one in sentences(text)]
  lines = Lines(load_tokenizer(str(given.checkpoint)), fillers)
  loss = needle_loss(loaded, lines, round(given.factor * loaded.context), given.samples)
  omega = base_frequencies(rope.theta, head_dim)
  scalings = (PI(given.factor), NTK(given.factor), YaRN(given.factor, loaded.context))
  first = [omega / np.asarray(rope.rescaled(how).frequencies(head_dim).omega) for how in scalings]
  critical = int((omega * loaded.context / (2 * np.pi) >= 1).sum())
  found = search(loss, first, critical, given.factor, given)
  print("loss on answers, all with LongRoPE's attention factor:", end=" ")
  print(", ".join(f"{type(how).__name__} {loss(one):.3f}" for how, one in zip(scalings, first, strict=True)), end=", ")
  print(f"found {loss(found):.3f}")
  print(f"--config.longrope='{tuple(round(float(one), 4) for one in found)}'")


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.factor_search", about=__doc__)
  parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN", help="workdir of a run with RoPE")
  parser.add_argument("--factor", type=float, required=True, metavar="S", help="extension of the context")
  parser.add_argument("--dataset", metavar="PATH", help="with a split `fit`; default: that of the run")
  parser.add_argument("--generations", type=int, default=20, help="rounds of the search")
  parser.add_argument("--population", type=int, default=16, help="candidates of a generation")
  parser.add_argument("--samples", type=int, default=16, help="needle prompts")
  parser.add_argument("--seed", type=int, default=0, help="of the search and its prompts")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), _print_factors, arguments)


if __name__ == "__main__":
  sys.exit(main())
