"""What a task is: a name, and figures that it measures of a model at a length.

Tasks are values that sit side by side: perplexity.Perplexity, needles.Needles, ruler.Ruler, longbench.LongBench,
multiple_choice.MultipleChoice, the probes. `catalog.py` makes them from what is at hand, `measure.py` runs them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from drope_jax.config import ComputeConfig
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.results import at_depth
from drope_jax.evaluate.samples import SampleLog
from drope_jax.generation import padded
from drope_jax.model import Params
from drope_jax.sharding import pieces

RESAMPLES = 1000  # bootstrap resamples behind an interval
DEPTH_BINS = (0.0, 0.25, 0.5, 0.75, 1.0)  # a score by depth counts a sample for the nearest of these
BATCH_TOKENS = 16_384  # tokens on the device at one time, unless one sample alone is longer


class Figure(NamedTuple):
  """One measured number over `n` samples, with its 95 % interval (None: too few samples for one)."""

  metric: str
  value: float
  n: int
  low: float | None = None
  high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
  """What is measured: a model under a method, and the means to run it."""

  params: Params
  how: Inference
  tokenizer: Tokenizer
  train_context: int  # tokens
  compute: ComputeConfig | None = None
  batch_tokens: int = BATCH_TOKENS  # does not change a result
  bos: bool = False  # whether a sequence begins with the tokenizer's BOS, for models that were trained so
  progress: Callable[[float], None] = lambda share: None  # told which share of the measurement is done
  log: SampleLog | None = None  # where answers are kept, and found again after an interruption

  def __post_init__(self) -> None:
    if self.bos and self.tokenizer.bos_id is None:
      raise ConfigError("bos is asked for; the checkpoint's tokenizer has no token that begins a document")

  def begin(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Token ids that a document begins with, int32, after the BOS if there is to be one."""
    return np.asarray([self.tokenizer.bos_id, *tokens] if self.bos else tokens, np.int32)

  def encode(self, text: str) -> np.ndarray:
    """`begin` of a text's token ids."""
    return self.begin(self.tokenizer.encode(text))


class Task(Protocol):
  """Something to measure."""

  @property
  def name(self) -> str:
    """As in results.jsonl."""

  @property
  def bounded(self) -> bool:
    """Whether `length` is that of its sequences; else it is the method's alone, and they are as long as they are."""

  def settings(self, length: int) -> dict[str, Any]:
    """What else decides its figures at `length`, as JSON: with other settings it is another measurement."""

  def check(self, length: int, crop: int | None) -> None:
    """Raises ConfigError if it cannot be measured at `length` tokens, of which the model sees the last `crop`."""

  def measure(self, subject: Subject, length: int) -> list[Figure]:
    """The figures, the one that stands for the task first."""


def mean_figure(
  metric: str, values_N: Sequence[float] | np.ndarray, *, weights_N: np.ndarray | None = None, n: int | None = None
) -> Figure:
  """The mean of a metric over samples, with a bootstrap interval: the samples drawn again, with replacement.

  Args:
    values_N: one of each sample, all of equal weight unless `weights_N` says otherwise.
    weights_N: for the ratio of two sums: sum(weights * values) / sum(weights).
    n: what the record says as n; the number of samples if None.
  """
  values_N = np.asarray(values_N, np.float64)
  weights_N = np.ones(len(values_N)) if weights_N is None else np.asarray(weights_N, np.float64)
  if not len(values_N):
    raise ValueError(f"{metric}: there is no sample to average")
  value = float((weights_N * values_N).sum() / weights_N.sum())
  low, high = bootstrap(values_N, weights_N) if len(values_N) > 1 else (None, None)
  return Figure(metric, value, len(values_N) if n is None else n, low, high)


def figures_by_depth(
  metric: str,
  actual_N: Sequence[float],
  values_N: Sequence[float] | np.ndarray,
  depths: Sequence[float],
) -> list[Figure]:
  """The mean at each of `depths` that has values; a value counts for the depth nearest to its actual one."""
  values_N = np.asarray(values_N)
  nearest_N = np.abs(np.asarray(actual_N)[:, None] - np.asarray(depths)).argmin(axis=1)
  groups = [(depth, values_N[nearest_N == i]) for i, depth in enumerate(depths)]
  return [mean_figure(at_depth(metric, depth), group_N) for depth, group_N in groups if len(group_N)]


def bootstrap(values_N: np.ndarray, weights_N: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The 2.5th and 97.5th percentile of the weighted mean over RESAMPLES resamples; the same samples give the same."""
  size = len(values_N)
  rng = np.random.default_rng(seed)
  means = np.empty(RESAMPLES)
  rows = max(1, 1_000_000 // size)  # of draws that exist at one time
  for start in range(0, RESAMPLES, rows):
    draws = rng.integers(0, size, (min(rows, RESAMPLES - start), size))
    weights = weights_N[draws]
    means[start : start + len(draws)] = (weights * values_N[draws]).sum(axis=1) / weights.sum(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


class Batch(NamedTuple):
  """Samples that are computed together, and the shape they are padded to: few shapes, since each is compiled."""

  indices: list[int]
  rows: int
  width: int  # tokens


def batches(lengths: Sequence[int], tokens: int) -> list[Batch]:
  """Samples of these lengths in groups of similar length, each of at most `tokens` unpadded, or a single one.

  The longest come first, so that what does not fit into memory fails at once. Groups of one width are of one size, or
  nearly: then the filling is less than a row a group, and there is one shape. On a mesh (`jax.set_mesh`) every device
  that the batch is spread over has `tokens`, and all of them have rows.
  """
  tokens *= pieces("batch") * pieces("length")
  groups: list[list[int]] = []
  for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= tokens:
      groups[-1].append(index)
    else:
      groups.append([index])
  by_width: dict[int, list[list[int]]] = {}
  for group in groups:
    by_width.setdefault(padded(lengths[group[0]], "length"), []).append(group)
  packed = []
  for width, alike in by_width.items():
    indices = [i for group in alike for i in group]
    size = -(-len(indices) // -(-len(indices) // len(alike[0])))
    rows = padded(size, "batch")
    packed += [Batch(indices[i : i + size], rows, width) for i in range(0, len(indices), size)]
  return packed


def check_room(name: str, length: int, crop: int | None, needed: int) -> None:
  """Raises ConfigError unless a sequence, and the part of it that a cropped model sees, is longer than `needed`."""
  seen = min(length, crop or length)
  if seen <= needed:
    raise ConfigError(f"{name} at {length} tokens: {seen} of them are seen; it needs more than {needed}")
