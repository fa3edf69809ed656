"""The decoder with a key/value cache: it is the decoder without one."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import (
  POSITIONS,
  TINY,
  assert_close,
  logits_of,
  random_params,
  random_tokens,
  tiny,
)

from drope_jax.cache import init_cache
from drope_jax.model import hidden_states, unembed
from drope_jax.positions import RoPE
from drope_jax.scalings import DynamicYaRN, LongRoPE


def step(params, config, tokens_BT, cache, length=None):
  with jax.disable_jit():
    x_BTD, cache, _ = hidden_states(params, config, tokens_BT, cache=cache, length=length)
    return unembed(params, x_BTD), cache


ADDED = tiny(positions=POSITIONS["pattern"], token_shift=True, logn_scale=True)
PLAIN = {name: tiny(positions=positions) for name, positions in POSITIONS.items()}
CACHED = {
  **PLAIN,
  "dynamic yarn": tiny(positions=RoPE(100.0, DynamicYaRN(4))),
  "longrope": tiny(positions=RoPE(100.0, LongRoPE((1.0, 1.0), (2.0, 4.0), 4, 4.0), rotary_dim=4)),
  "additions": ADDED,
}


@pytest.mark.parametrize("config", CACHED.values(), ids=CACHED)
def test_a_cache_changes_nothing_however_the_tokens_are_cut(config):
  params, tokens = random_params(config), random_tokens(2, 8)
  expected = logits_of(params, config, tokens)
  for chunks in [(1,) * 8, (4, 4), (1, 4, 1, 1, 1)]:
    cache, logits = init_cache(config, batch=2, capacity=10), []
    for start, end in itertools.pairwise(np.cumsum([0, *chunks])):
      chunk_logits, cache = step(params, config, tokens[:, start:end], cache, 8)  # 8: the length of it all
      logits.append(chunk_logits)
    assert cache.lengths_B.tolist() == [8, 8]
    assert_close(jnp.concatenate(logits, 1), expected)


@pytest.mark.parametrize("config", [*PLAIN.values(), ADDED], ids=[*PLAIN, "additions"])
def test_rows_of_a_cache_may_have_lengths_of_their_own(config):
  params, prompts, answers = random_params(config), random_tokens(2, 4), random_tokens(2, 4, seed=1)
  lengths = [1, 3]
  _, cache = step(params, config, prompts, init_cache(config, batch=2, capacity=10))
  # Rows shorter than the chunk hold tokens beyond their length: these must not be seen, and are written over.
  cache = dataclasses.replace(cache, lengths_B=jnp.array(lengths))
  logits, cache = step(params, config, answers, cache)
  assert cache.lengths_B.tolist() == [5, 7]
  rows = [[*prompts[row, :length], *answers[row]] for row, length in enumerate(lengths)]
  without_cache = logits_of(params, config, jnp.array([row + [0] * (8 - len(row)) for row in rows]))
  for row, length in enumerate(lengths):
    assert_close(logits[row], without_cache[row, length : length + 4])


def test_segments_cannot_be_used_with_a_cache():
  tokens = random_tokens(1, 3)
  with pytest.raises(ValueError, match="segments_BT"):
    hidden_states(random_params(TINY), TINY, tokens, cache=init_cache(TINY, 1, 4), segments_BT=tokens)


def test_position_ids_cannot_be_used_with_a_cache():
  # Keys are rotated by their slots when they are read: ids given for the queries alone would be another function.
  with pytest.raises(ValueError, match="position_ids_BT"):
    hidden_states(
      random_params(TINY),
      TINY,
      random_tokens(1, 3),
      cache=init_cache(TINY, 1, 4),
      position_ids_BT=jnp.array([[7, 8, 9]]),
    )


def test_a_chunk_longer_than_the_cache_is_refused():
  with pytest.raises(ValueError, match="cache"):
    hidden_states(random_params(TINY), TINY, random_tokens(1, 5), cache=init_cache(TINY, 1, 4))


def test_a_dynamic_scaling_with_a_cache_must_be_told_the_length():
  config = tiny(positions=RoPE(scaling=DynamicYaRN(4)))
  with pytest.raises(ValueError, match="length"):
    hidden_states(random_params(config), config, random_tokens(1, 3), cache=init_cache(config, 1, 4))


def test_rows_of_a_dynamic_scaling_may_have_lengths_of_their_own():
  config = tiny(positions=RoPE(100.0, DynamicYaRN(4)))
  params, tokens = random_params(config), random_tokens(2, 8)
  together = logits_of(params, config, tokens, length=jnp.array([[8], [20]]))
  for row, length in enumerate([8, 20]):
    assert_close(together[row], logits_of(params, config, tokens, length=length)[row], atol=1e-4)


def test_cached_keys_are_not_rotated_again():
  config, capacity = tiny(positions=RoPE()), 37

  def one_more(cache, tokens_BT):
    return hidden_states(random_params(config), config, tokens_BT, cache=cache, length=capacity)[0]

  program = str(jax.make_jaxpr(one_more)(init_cache(config, 2, capacity), random_tokens(2, 1)))
  rotated = re.findall(r":f32\[([\d,]+)\] = cos", program)
  assert rotated and not any(str(capacity) in shape.split(",") for shape in rotated)
