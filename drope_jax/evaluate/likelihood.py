"""The log-likelihood of given continuations of prompts, batched by length."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drope_jax.evaluate.subject import Subject, batches
from drope_jax.generation import round_up
from drope_jax.loss import chunk_for
from drope_jax.model import Array, hidden_states, separate_frequencies, unembed
from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.parameters import Params
from drope_jax.rotation import Frequencies


class Scored(NamedTuple):
  """A continuation's log-likelihood in nats, and whether greedy decoding would have produced it."""

  log_prob: float
  greedy: bool


def score_continuations(subject: Subject, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Scored]:
  """The scores of (prompt, continuation) pairs of token ids, in order.

  A cropped model sees the last tokens of a prompt that leave room for the continuation within its window.

  Raises:
    ValueError: for a prompt or a continuation without tokens, or a continuation that a crop has no room for.
  """
  crop = subject.how.crop
  sequences = []
  for i, (prompt, continuation) in enumerate(pairs):
    if not len(prompt) or not len(continuation):
      raise ValueError(f"pairs[{i}] has an empty {'prompt' if not len(prompt) else 'continuation'}")
    if crop is not None and len(continuation) > crop:
      raise ValueError(f"pairs[{i}] has a continuation of {len(continuation)} tokens; a crop of {crop} has no room")
    sequence = np.concatenate([prompt, continuation]).astype(np.int32)
    sequences.append(sequence if crop is None else sequence[-(crop + 1) :])
  lengths = [len(sequence) - 1 for sequence in sequences]  # tokens that the model reads
  config, frequencies = separate_frequencies(subject.how.config)
  scored: list[Scored | None] = [None] * len(pairs)
  done = 0
  for batch in batches(lengths, subject.batch_tokens):
    scored_width = min(round_up(max(len(pairs[i][1]) for i in batch.indices)), batch.width)
    tokens_BS = np.zeros((batch.rows, batch.width + 1), np.int32)
    starts_B, lengths_B = np.zeros(len(tokens_BS), np.int32), np.ones(len(tokens_BS), np.int32)
    for row, i in enumerate(batch.indices):
      tokens_BS[row, : lengths[i] + 1] = sequences[i]
      starts_B[row], lengths_B[row] = lengths[i] - len(pairs[i][1]), lengths[i]
    nll_BK, top_BK = _scores(
      subject.params,
      tokens_BS,
      starts_B,
      lengths_B[:, None],
      subject.how.logit_scale,
      frequencies,
      config,
      subject.compute or ComputeConfig(),
      scored_width,
    )
    nll_BK, top_BK = np.asarray(nll_BK, np.float64), np.asarray(top_BK)
    for row, i in enumerate(batch.indices):
      size = len(pairs[i][1])
      scored[i] = Scored(-float(nll_BK[row, :size].sum()), bool(top_BK[row, :size].all()))
    done += len(batch.indices)
    subject.progress(done / len(pairs))
  return [one for one in scored if one is not None]


@functools.partial(jax.jit, static_argnames=("config", "compute", "size"))
def _scores(
  params: Params,
  tokens_BS: Array,
  starts_B: Array,
  lengths_B1: Array,
  logit_scale: float | Array,
  frequencies: Frequencies | None,
  config: ModelConfig,
  compute: ComputeConfig,
  size: int,
) -> tuple[Array, Array]:
  """Losses (B, K) of the K = `size` predictions from position `starts_B` on, and whether each target is the top token.

  `lengths_B1` is for dynamic scalings, so that padding does not change results.
  """
  x_BTD, *_ = hidden_states(
    params,
    config,
    tokens_BS[:, :-1],
    compute=compute,
    length=lengths_B1,
    logit_scale=logit_scale,
    frequencies=frequencies,
  )
  places_BK = jnp.minimum(starts_B[:, None] + jnp.arange(size), x_BTD.shape[1] - 1)
  x_ND = jnp.take_along_axis(x_BTD, places_BK[..., None], axis=1).reshape(-1, x_BTD.shape[-1])
  targets_N = jnp.take_along_axis(tokens_BS, places_BK + 1, axis=1).reshape(-1)

  def score(x_and_target: tuple[Array, Array]) -> tuple[Array, Array]:
    x_D, target = x_and_target
    logits_V = unembed(params, x_D[None, None], softcap=config.logits_softcap)[0, 0]
    return jax.nn.logsumexp(logits_V) - logits_V[target], logits_V.argmax() == target

  nll_N, top_N = lax.map(score, (x_ND, targets_N), batch_size=compute.loss_chunk or chunk_for(params, x_ND[None]))
  return nll_N.reshape(places_BK.shape), top_N.reshape(places_BK.shape)
