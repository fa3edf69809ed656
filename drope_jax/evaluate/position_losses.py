"""The loss at every position of long documents.

Position i of a document is the prediction of token i + 1 from tokens 0 .. i, so a model trained at context C was
trained on positions 0 .. C-1. A BOS, if there is one, is token 0, and never predicted. Losses are in nats per token.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.subject import BATCH_TOKENS, batches
from drope_jax.loss import token_losses
from drope_jax.model import Array, hidden_states, separate_frequencies
from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.parameters import Params
from drope_jax.rotation import Frequencies
from drope_jax.sharding import round_up_to_shards


def position_losses(
  params: Params,
  inference: Inference,
  documents: Sequence[Sequence[int] | np.ndarray],
  *,
  length: int,
  window: int | None = None,
  batch_size: int = 8,
  compute: ComputeConfig | None = None,
  progress: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
  """The loss at every position of every document: `nll_NT`, float32 of shape (documents, length), in nats.

  Its mean is the loss at that length; rows are independent samples, for confidence intervals. Device memory is linear
  in `length`: neither the logits nor the scores of a whole sequence exist.

  With a `window` of W, or `inference.crop` = W, each prediction sees at most W tokens. Windows move by W/2, and each
  position is scored once, by the first window that contains it, with at least W/2 tokens of context except at the
  start.

  Args:
    inference: see methods.inference.
    documents: token ids; the first length + 1 of each are read.
    window: maximum number of tokens that a prediction sees (sliding evaluation); None: all that precede it.
    batch_size: documents on the device at a time; does not change the result.
    progress: called with the share that is done.

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
  config, frequencies = separate_frequencies(inference.config)
  windows = _windows(length, min(inference.crop or length, window or length))
  for done, (start, stop, first_scored) in enumerate(windows):
    for batch in range(0, len(documents), batch_size):
      tokens_BS = tokens_NS[batch : batch + batch_size, start : stop + 1]
      # An incomplete last batch is padded with zeros, so that there is one compiled shape; on a mesh both dimensions
      # are padded so that it divides them.
      rows, width = round_up_to_shards(batch_size, "batch"), round_up_to_shards(stop - start, "length")
      filled_BS = np.pad(tokens_BS, [(0, rows - len(tokens_BS)), (0, width - (stop - start))])
      nll_BT = _token_losses(
        params, filled_BS, inference.logit_scale, frequencies, config, compute or ComputeConfig(), stop - start
      )
      scored_BT = nll_BT[: len(tokens_BS), first_scored - start : stop - start]
      nll_NT[batch : batch + batch_size, first_scored:stop] = scored_BT
      progress((done + min((batch + batch_size) / len(documents), 1.0)) / len(windows))
  return nll_NT


def documents_at_once(inference: Inference, num_documents: int, length: int, tokens: int = BATCH_TOKENS) -> int:
  """A `batch_size` for `position_losses` with windows of `length` tokens: see subject.batches."""
  return batches([min(length, inference.crop or length)] * num_documents, tokens)[0].rows


def trace_losses(
  params: Params, inference: Inference, rows: int, length: int, compute: ComputeConfig
) -> jax.stages.Traced:
  """The program that `position_losses` runs on `rows` documents at a time, of abstract `params` (drope_jax.aot)."""
  tokens_BS = jax.ShapeDtypeStruct((rows, length + 1), np.int32)
  config, frequencies = separate_frequencies(inference.config)
  return _token_losses.trace(params, tokens_BS, inference.logit_scale, frequencies, config, compute, length)


def _windows(length: int, width: int) -> list[tuple[int, int, int]]:
  """(start, stop, first scored position) of windows of `width` positions that cover 0 .. length-1."""
  stops = [min(width, length)]
  while stops[-1] < length:
    stops.append(min(stops[-1] + max(width // 2, 1), length))
  return [(max(stop - width, 0), stop, scored) for scored, stop in zip([0, *stops[:-1]], stops, strict=True)]


@functools.partial(jax.jit, static_argnames=("config", "compute", "length"))
def _token_losses(
  params: Params,
  tokens_BS: Array,
  logit_scale: float | Array,
  frequencies: Frequencies | None,
  config: ModelConfig,
  compute: ComputeConfig,
  length: int,
) -> Array:
  """Losses (B, T) of sequences of `length` tokens, padded to T."""
  x_BTD, *_ = hidden_states(
    params,
    config,
    tokens_BS[:, :-1],
    compute=compute,
    length=length,
    logit_scale=logit_scale,
    frequencies=frequencies,
  )
  softcap = config.logits_softcap
  return token_losses(params, x_BTD, tokens_BS[:, 1:], compute.loss_chunk, softcap=softcap).nll_BT
