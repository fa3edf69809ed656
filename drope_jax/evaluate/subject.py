"""The subject of a measurement: a model under a method; and batches of samples of similar length."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.samples import SampleLog
from drope_jax.generation import padded_size
from drope_jax.model_config import ComputeConfig
from drope_jax.parameters import Params
from drope_jax.sharding import num_shards

BATCH_TOKENS = 16_384  # tokens on the device at a time, unless a single sample is longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
  """A model under an inference-time method, and how to run it."""

  params: Params
  how: Inference
  tokenizer: Tokenizer
  train_context: int  # tokens
  compute: ComputeConfig | None = None
  batch_tokens: int = BATCH_TOKENS  # tokens on the device at a time; does not change results
  bos: bool = False  # whether sequences begin with the tokenizer's BOS, for models that were trained so
  progress: Callable[[float], None] = lambda share: None  # called with the share of the measurement that is done
  log: SampleLog | None = None  # where answers are stored, and looked up after an interruption

  def __post_init__(self) -> None:
    if self.bos and self.tokenizer.bos_id is None:
      raise ConfigError("bos is asked for; the checkpoint's tokenizer has no token that begins a document")

  def begin(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """The token ids of a document, int32, after the BOS if `bos` is set."""
    return np.asarray([self.tokenizer.bos_id, *tokens] if self.bos else tokens, np.int32)

  def encode(self, text: str) -> np.ndarray:
    """The token ids of a text, int32, after the BOS if `bos` is set."""
    return self.begin(self.tokenizer.encode(text))


class Batch(NamedTuple):
  """Samples that are computed together, and the shape they are padded to; there are few shapes, as each is compiled."""

  indices: list[int]
  rows: int
  width: int  # tokens


def batches(lengths: Sequence[int], tokens: int) -> list[Batch]:
  """Groups samples of similar length, with at most `tokens` tokens (without padding) or a single sample per group.

  The longest come first, so that an evaluation that does not fit into memory fails at once. Groups of the same width
  have almost the same number of samples: one shape, with less than one padding row per group. On a mesh
  (`jax.set_mesh`), `tokens` is per device that the batch is sharded over.
  """
  tokens *= num_shards("batch") * num_shards("length")
  groups: list[list[int]] = []
  for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= tokens:
      groups[-1].append(index)
    else:
      groups.append([index])
  by_width: dict[int, list[list[int]]] = {}
  for group in groups:
    by_width.setdefault(padded_size(lengths[group[0]], "length"), []).append(group)
  packed = []
  for width, alike in by_width.items():
    indices = [i for group in alike for i in group]
    size = -(-len(indices) // -(-len(indices) // len(alike[0])))
    rows = padded_size(size, "batch")
    packed += [Batch(indices[i : i + size], rows, width) for i in range(0, len(indices), size)]
  return packed
