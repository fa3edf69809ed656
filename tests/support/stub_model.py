"""Models with known answers, to replace `hidden_states`; tokenizer, prompts, generation and scores are real."""

import dataclasses
import itertools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax.config import ModelConfig
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.subject import Subject
from drope_jax.model import Hidden

LIKELIHOOD = "drope_jax.evaluate.likelihood"  # the module to put a `scorer` into
_UNUSED = itertools.count(1.0)


def reader(continuation: Callable[[str], str], tokenizer, reach: int | None = None):
  """`hidden_states` of a model that continues the text it sees, its last `reach` tokens, by `continuation`.

  The cache holds the tokens seen so far, as keys. An empty continuation ends the answer.
  """

  def next_tokens(seen_BS, lengths_B):
    rows = []
    for row, length in zip(np.asarray(seen_BS), np.asarray(lengths_B), strict=True):
      text = tokenizer.decode(row[max(0, length - reach) if reach else 0 : length].astype(int).tolist())
      rows.append(next(iter(tokenizer.encode(continuation(text))), tokenizer.eos_id))
    return np.asarray(rows, np.int32)

  def hidden_states(params, config, tokens_BT, *, cache, **inputs):
    rows, slots_BT = jnp.arange(len(tokens_BT))[:, None], cache.lengths_B[:, None] + jnp.arange(tokens_BT.shape[1])
    keys = cache.k_LBSKh.at[0, rows, slots_BT, 0, 0].set(tokens_BT.astype(jnp.float32), mode="drop")
    cache = dataclasses.replace(cache, k_LBSKh=keys, lengths_B=cache.lengths_B + tokens_BT.shape[1])
    if tokens_BT.shape[1] > 1:  # a prefill, whose hidden states are not read
      return Hidden(jnp.zeros((*tokens_BT.shape, config.d_model)), cache, {})
    shape = jax.ShapeDtypeStruct((len(tokens_BT),), jnp.int32)
    token_B = jax.pure_callback(next_tokens, shape, keys[0, :, :, 0, 0], cache.lengths_B)
    return Hidden(jax.nn.one_hot(token_B[:, None], config.d_model), cache, {})

  return hidden_states


def scorer(logits: Callable[[list[int]], np.ndarray], tail: int = 20):
  """`hidden_states` for likelihood.py: `logits` maps the tokens so far to the logits of the next one.

  It is called for the last `tail` positions of each row only, which is enough for the continuations that are scored.
  """

  def hidden_states(params, config, tokens_BT, *, length, **inputs):
    def all_logits(tokens_BT, lengths_B1):
      x_BTV = np.zeros((*tokens_BT.shape, config.vocab_size), np.float32)
      for row, tokens, size in zip(x_BTV, tokens_BT.tolist(), lengths_B1[:, 0].tolist(), strict=True):
        for last in range(max(size - tail, 0), size):
          row[last] = logits(tokens[: last + 1])
      return x_BTV

    shape = jax.ShapeDtypeStruct((*tokens_BT.shape, config.vocab_size), jnp.float32)
    x_BTV = jax.pure_callback(lambda *args: all_logits(*map(np.asarray, args)), shape, tokens_BT, length)
    return Hidden(x_BTV, None, {})

  return hidden_states


def saying(continuation: Callable[[str], str], tokenizer, sure: float = 100.0):
  """`scorer` of a model that expects the `continuation` of the text so far; `sure`: the logit of its first token."""

  def logits(tokens):
    expected = tokenizer.encode(continuation(tokenizer.decode(tokens)))
    return sure * (np.arange(tokenizer.vocab_size) == next(iter(expected), tokenizer.eos_id))

  return scorer(logits)


def guessing(tokenizer):
  """`scorer` of a model whose logits are noise, but the same for the same tokens."""
  return scorer(lambda tokens: np.random.default_rng(hash(tuple(tokens)) % 2**32).normal(size=tokenizer.vocab_size))


def put(
  monkeypatch, hidden_states, tokenizer, crop: int | None = None, module: str = "drope_jax.generation", **fields
) -> Subject:
  """Replaces `hidden_states` in `module`; returns a subject for tasks."""
  monkeypatch.setattr(sys.modules[module], "hidden_states", hidden_states)
  size = tokenizer.vocab_size
  config = ModelConfig(
    vocab_size=size,
    d_model=size,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    d_ff=1,
    positions=None,
    init_std=next(_UNUSED),  # makes each config different, so that each stub gets a compiled program of its own
  )
  params = {"embedding": jnp.eye(size)}  # logits are then equal to the hidden states
  return Subject(params=params, how=Inference(config, crop=crop), tokenizer=tokenizer, train_context=128, **fields)
