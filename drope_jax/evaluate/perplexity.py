"""Loss by position on long documents.

Position i of a document is the prediction of token i + 1 from tokens 0 .. i, so a model trained at context C has learnt
the positions 0 .. C-1. Documents are never concatenated: what lies beyond C is one long text, not a second one. Losses
are in nats per token; perplexity is exp of a mean loss.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.evaluate.methods import Inference
from drope_jax.loss import token_losses
from drope_jax.model import Array, Params, hidden_states


class Block(NamedTuple):
  """Mean loss (nats per token) of the positions start .. stop-1, over `n` tokens of all documents."""

  start: int
  stop: int
  loss: float
  n: int


def position_losses(
  params: Params,
  inference: Inference,
  documents: Sequence[Sequence[int] | np.ndarray],
  *,
  length: int,
  batch_size: int = 8,
  compute: ComputeConfig | None = None,
) -> np.ndarray:
  """The loss at every position of every document: `nll_NT`, float32 of shape (documents, length), in nats.

  Its mean is the loss at that length; rows are independent samples, for intervals. Memory on the device is linear in
  `length`: neither logits nor scores of a whole sequence exist.

  With `inference.crop` = W each prediction sees a window of W tokens at most. Windows move by W/2, and every position
  is scored once, by the first window that reaches it: with W/2 tokens of context at least, except at the start.

  Args:
    inference: see methods.inference.
    documents: token ids; the first length + 1 of each are read.
    batch_size: documents on the device at one time, if there are as many; it does not change the result.

  Raises:
    ValueError: if there is no document, or one is too short.
  """
  if not documents:
    raise ValueError("documents is empty; there is nothing to measure")
  for i, document in enumerate(documents):
    if len(document) <= length:
      raise ValueError(f"documents[{i}] has {len(document)} tokens; length {length} needs {length + 1}")
  tokens_NS = np.stack([np.asarray(document[: length + 1], np.int32) for document in documents])
  nll_NT = np.empty((len(documents), length), np.float32)
  batch_size = min(batch_size, len(documents))
  for start, stop, first_scored in _windows(length, inference.crop or length):
    for batch in range(0, len(documents), batch_size):
      tokens_BS = tokens_NS[batch : batch + batch_size, start : stop + 1]
      # A last batch that is not full is filled up with zeros, so that there is one compiled shape.
      filled_BS = np.pad(tokens_BS, [(0, batch_size - len(tokens_BS)), (0, 0)])
      nll_BT = _token_losses(params, filled_BS, inference.logit_scale, inference.config, compute or ComputeConfig())
      nll_NT[batch : batch + batch_size, first_scored:stop] = nll_BT[: len(tokens_BS), first_scored - start :]
  return nll_NT


def blocks(nll_NT: np.ndarray, size: int) -> list[Block]:
  """Means of `position_losses` over blocks of `size` positions (1: every position); the last one may be shorter."""
  length = nll_NT.shape[1]
  cuts = [(start, min(start + size, length)) for start in range(0, length, size)]
  parts = [(start, stop, nll_NT[:, start:stop]) for start, stop in cuts]
  return [Block(start, stop, float(part.mean(dtype=np.float64)), part.size) for start, stop, part in parts]


def _windows(length: int, width: int) -> list[tuple[int, int, int]]:
  """(start, stop, first scored position) of windows of `width` positions that cover 0 .. length-1."""
  stops = [min(width, length)]
  while stops[-1] < length:
    stops.append(min(stops[-1] + max(width // 2, 1), length))
  return [(max(stop - width, 0), stop, scored) for scored, stop in zip([0, *stops[:-1]], stops, strict=True)]


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _token_losses(
  params: Params, tokens_BS: Array, logit_scale: float | Array, config: ModelConfig, compute: ComputeConfig
) -> Array:
  x_BTD, _ = hidden_states(params, config, tokens_BS[:, :-1], compute=compute, logit_scale=logit_scale)
  return token_losses(params, x_BTD, tokens_BS[:, 1:], compute.loss_chunk).nll_BT
