"""Evolutionary search for the factors of RoPE's pairs at a longer context, after LongRoPE2 (arXiv 2502.20082).

`python -m experiments.factor_search --checkpoint=RUN --factor=8 [--generations=20 --population=16 --samples=16]` prints
the factors for a run with RoPE; studies/table10_extension.py runs the search for its control by itself.

As in LongRoPE2, the search minimises the loss on the answers of needle prompts at the longer length, not the loss on
all tokens. Factors do not decrease from fast to slow pairs, lie between 1 and twice the extension, and are at least the
extension from the critical pair on: the first pair that makes no full turn within the training context. The first
population holds PI, NTK and YaRN. Two parts of LongRoPE2 are left out: the search for the critical pair itself, and the
fine-tuning on short and long texts. Needles are drawn from the run's split `fit`, on which no result is measured;
`--seed` does not change them.
"""

import dataclasses
import functools
import logging
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax import checkpoint, cli
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.recall import Lines, needle_sample, sentences
from drope_jax.data.sources import Source
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError, check, check_at_least
from drope_jax.files import write_json
from drope_jax.loss import token_losses
from drope_jax.model import hidden_states
from drope_jax.model_config import ModelConfig
from drope_jax.positions import RoPE
from drope_jax.rotation import Frequencies
from drope_jax.scalings import NTK, PI, LongRoPE, YaRN, base_frequencies
from drope_jax.transitions import Replace
from experiments.plan import Pretrained
from experiments.reporting.stored import read_json

logger = logging.getLogger(__name__)

Loss = Callable[[np.ndarray], float]
FACTS = 4  # per prompt
MUTATED = 0.3  # share of the pairs that a mutation changes
MUTATION_SD = 0.15  # standard deviation of the change to the logarithm of a factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
  """How long to search, and on how many prompts."""

  generations: int = 20
  population: int = 16  # candidates per generation
  samples: int = 16  # needle prompts
  seed: int = 0  # of the candidates; it does not change the prompts

  def __post_init__(self) -> None:
    check_at_least(self, 0, "generations", "seed")
    check_at_least(self, 1, "population", "samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched(Pretrained):
  """A run with RoPE whose factors are searched for when its study first measures it; `transition` is ignored.

  WORKDIR/runs/NAME/factors.json keeps the factors and the losses that they were chosen by.
  """

  factor: float  # extension of the context
  dataset: str  # with a split `fit`
  how: Search = Search()

  def settled(self, directory: Path) -> Pretrained:
    path = directory / "factors.json"
    if not path.exists():
      loaded, lines = checkpoint.load(self.checkpoint), lines_to_fit_on(self.checkpoint, self.dataset)
      directory.mkdir(parents=True, exist_ok=True)
      write_json(dataclasses.asdict(search_factors(loaded, lines, self.factor, self.how)), path)
    factors, saved = tuple(read_json(path)["factors"]), checkpoint.open_step(self.checkpoint)
    scaling = LongRoPE(factors, factors, saved.context, self.factor)
    return Pretrained(self.checkpoint, Replace(_rope(saved.model).rescaled(scaling)), self.model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """The result of a search. All losses are on answers, with LongRoPE's attention factor."""

  factors: list[float]  # one for each pair, the fastest first
  loss: float  # in nats per token
  losses_of_others: dict[str, float]  # of the methods in the first population


def search_factors(loaded: Checkpoint, lines: Lines, factor: float, how: Search) -> Found:
  """Factors for `factor` times the context of a model with RoPE.

  Raises:
    ConfigError: the model's positions are not a plain RoPE, or the factor is below 1.
  """
  check(math.isfinite(factor) and factor >= 1, f"--factor is {factor}; it must be a number of at least 1")
  rope, head_dim = _rope(loaded.model), loaded.model.head_dim
  loss = needle_loss(loaded, lines, round(factor * loaded.context), how.samples)
  omega = base_frequencies(rope.theta, head_dim)
  scalings = (PI(factor), NTK(factor), YaRN(factor, loaded.context))
  first = [omega / np.asarray(rope.rescaled(one).frequencies(head_dim).omega) for one in scalings]
  critical = int((omega * loaded.context / (2 * np.pi) >= 1).sum())
  found = np.round(search(loss, first, critical, factor, how), 4)
  others = {type(one).__name__: loss(factors) for one, factors in zip(scalings, first, strict=True)}
  return Found(factors=found.tolist(), loss=loss(found), losses_of_others=others)


def lines_to_fit_on(run: str, dataset: str | Source) -> Lines:
  """The sentences that needle prompts are made of: those of the split `fit`, in the tokens of a run."""
  fillers = [one for text in documents(dataset, "fit") for one in sentences(text)]
  return Lines(load_tokenizer(run), fillers)


def search(loss: Loss, first: Sequence[np.ndarray], critical: int, factor: float, how: Search) -> np.ndarray:
  """The factors (h/2,) with the lowest loss found.

  Args:
    loss: of factors; it is called once per candidate, `population` times in each of the `generations`.
    first: the first population.
    critical: index of the first pair that must be slowed down by `factor` or more.
  """
  rng = np.random.default_rng(how.seed)
  known = [(loss(one), one) for one in (nearest_allowed(one, critical, factor) for one in first)]
  for generation in range(how.generations):
    known = sorted(known, key=lambda pair: pair[0])[: max(how.population // 4, 2)]
    children = [_child([one for _, one in known], critical, factor, rng) for _ in range(how.population)]
    known += [(loss(child), child) for child in children]
    logger.info("factor search: generation %d, loss %.4f", generation + 1, min(one for one, _ in known))
  return min(known, key=lambda pair: pair[0])[1]


def _child(parents: Sequence[np.ndarray], critical: int, factor: float, rng: np.random.Generator) -> np.ndarray:
  """A cross of two parents, with some of the pairs mutated."""
  mother, father = (parents[i] for i in rng.integers(len(parents), size=2))
  mixed = np.where(rng.random(len(mother)) < 0.5, mother, father)
  mutated = rng.random(len(mixed)) < MUTATED
  changes = np.where(mutated, rng.normal(0, MUTATION_SD, len(mixed)), 0.0)
  return nearest_allowed(mixed * np.exp(changes), critical, factor)


def nearest_allowed(factors: np.ndarray, critical: int, factor: float) -> np.ndarray:
  """The nearest factors that the search allows: see the module's docstring."""
  least = np.where(np.arange(len(factors)) < critical, 1.0, factor)
  return np.maximum.accumulate(np.clip(factors, least, 2 * factor))


def needle_loss(loaded: Checkpoint, lines: Lines, length: int, samples: int) -> Loss:
  """The loss in nats per token on the answers of needle prompts of `length` tokens, as a function of the factors."""
  drawn = [needle_sample(lines, length, index / max(samples - 1, 1), 0, index, FACTS) for index in range(samples)]
  longest = max(len(sample.answer) for sample in drawn)
  rows = [np.append(sample.tokens, np.resize(np.asarray(sample.answer), longest)) for sample in drawn]
  counts = np.array([[len(sample.answer)] for sample in drawn])
  at = np.arange(length + longest - 1) - (length - 1)  # of each target, from the answer's first token on
  tokens_BT, weights_BT = np.stack(rows).astype(np.int32), ((at >= 0) & (at < counts)).astype(np.float32)
  omega = base_frequencies(_rope(loaded.model).theta, loaded.model.head_dim)
  ones = (1.0,) * len(omega)
  attention_factor = LongRoPE(ones, ones, loaded.context, length / loaded.context).default_attention_factor

  @jax.jit
  def mean_loss(params, slowed):
    table = Frequencies(slowed, attention_factor)
    states = hidden_states(params, loaded.model, tokens_BT[:, :-1], frequencies=table).states_BTD
    nll_BT = token_losses(params, states, jnp.asarray(tokens_BT[:, 1:])).nll_BT
    return (nll_BT * weights_BT).sum() / weights_BT.sum()

  return lambda factors: float(mean_loss(loaded.params, jnp.asarray(omega / factors, jnp.float32)))


def _rope(model: ModelConfig) -> RoPE:
  positions = model.positions
  if not isinstance(positions, RoPE) or positions.scaling is not None or positions.pairs is not None:
    raise ConfigError(
      f"--checkpoint: its positions are {positions}; the search needs RoPE on all pairs, without scaling"
    )
  return positions


def _print_factors(given: Namespace) -> None:
  how = Search(generations=given.generations, population=given.population, samples=given.samples, seed=given.seed)
  loaded = checkpoint.load(given.checkpoint)
  _rope(loaded.model)
  if loaded.config is None and given.dataset is None:
    raise ConfigError("--dataset is required for an imported model: a dataset with a split `fit`")
  dataset = given.dataset or (loaded.config.data.dataset if loaded.config else "")
  found = search_factors(loaded, lines_to_fit_on(given.checkpoint, dataset), given.factor, how)
  losses = {**found.losses_of_others, "found": found.loss}
  print("loss on answers, all with LongRoPE's attention factor:", end=" ")
  print(", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
  print(f"factors, the fastest pair first: {', '.join(f'{one:g}' for one in found.factors)}")


def _parser() -> cli.Parser:
  parser = cli.Parser(prog="python -m experiments.factor_search", about=__doc__)
  path = functools.partial(cli.path_argument, local=False)
  parser.add_argument("--checkpoint", type=path, required=True, metavar="RUN", help="workdir of a run with RoPE")
  parser.add_argument("--factor", type=float, required=True, metavar="S", help="extension of the context")
  parser.add_argument("--dataset", type=path, metavar="PATH", help="dataset with a split `fit`; default: the run's")
  parser.add_argument("--generations", type=int, default=Search.generations, help="rounds of the search")
  parser.add_argument("--population", type=int, default=Search.population, help="candidates per generation")
  parser.add_argument("--samples", type=int, default=Search.samples, help="needle prompts")
  parser.add_argument("--seed", type=int, default=Search.seed, help="of the candidates, not of the prompts")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """The command; returns its exit status."""
  return cli.run_parsed(_parser(), _print_factors, arguments, computes=True)


if __name__ == "__main__":
  sys.exit(main())
