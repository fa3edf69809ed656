"""Generation with a key/value cache: batched, with prompts of different lengths, greedy or sampled.

There are two compiled programs: one prefills the cache in chunks, the other decodes a number of tokens, or until every
row is done. Rows are left-aligned in one array that holds prompt and answer; each continues from its own length. Shapes
are rounded up (see `round_up`) and all numbers are arguments, so that calls of similar size share these programs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drope_jax.cache import Cache, init_cache
from drope_jax.layers_apart import layers_apart
from drope_jax.model import Array, hidden_states, scans, separate_frequencies, unembed
from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.parameters import Params
from drope_jax.rotation import Frequencies
from drope_jax.sharding import num_shards, round_up_to_shards

_SMALLEST_CAPACITY = 64  # tokens; a smaller cache would save less than another compilation costs
_PREFILL_CHUNK = 512  # prompt tokens of a row that are read at a time, if a device has many rows
_PREFILL_TOKENS = 4096  # of all rows of a device: fewer leave most of a GPU idle


class _Sampler(NamedTuple):
  """How the next token is drawn. `top_p` is None for the whole vocabulary, which is another compiled program."""

  temperature: float
  top_p: float | None
  key: Array


class _Request(NamedTuple):
  """The constants of a call, except for the prompts' tokens."""

  lengths_B: np.ndarray  # int32, of the prompts
  max_new_tokens: int
  eos_ids: np.ndarray | None  # int32, the tokens that end a row
  logit_scale: float | Array
  sampler: _Sampler | None  # None: greedy
  frequencies: Frequencies | None  # see separate_frequencies


class _State(NamedTuple):
  """The state of the decode loop after `step` tokens. The cache holds all but the last token of each row."""

  step: Array
  tokens_BS: Array
  cache: Cache
  done_B: Array


def generate(
  params: Params,
  config: ModelConfig,
  prompts: Sequence[Sequence[int] | np.ndarray],
  *,
  max_new_tokens: int,
  temperature: float = 0.0,
  top_p: float = 1.0,
  key: Array | None = None,
  eos_id: int | Sequence[int] | None = None,
  logit_scale: float | Array = 1.0,
  compute: ComputeConfig | None = None,
  prefill_chunk: int | None = None,
) -> list[list[int]]:
  """Continues every prompt; the result of a row does not depend on the other rows.

  For dynamic RoPE scalings, the length of a row is its prompt plus `max_new_tokens` throughout, so that all its tokens
  use the same frequencies.

  Args:
    params: the tree of `parameter_specs(config)`.
    prompts: token ids, of any lengths from 1 on.
    max_new_tokens: maximum number of new tokens.
    temperature: 0 takes the most likely token; otherwise logits are divided by it and sampled from. (The temperature of
      the attention logits is `logit_scale`.)
    top_p: when sampling, draw from the most likely tokens that together reach this probability (nucleus sampling).
    key: jax.random key, needed for sampling; the draw of row b at step t depends only on (key, b, t).
    eos_id: the token or tokens that end a row; None: rows only end at `max_new_tokens`.
    logit_scale: beta of paper appendix C.2, a scalar or (H,); see `drope_jax.temperature`.
    compute: how to compute it; the default ComputeConfig if None.
    prefill_chunk: tokens of each prompt that are read at a time, which bounds memory and does not change the result;
      None: as `default_prefill_chunk`.

  Returns:
    For each prompt the new tokens, up to and including the first that ends its row.

  Raises:
    ValueError: for an empty prompt, a token outside of the vocabulary, or an argument out of range, naming it.
  """
  batch = Generation(
    params,
    config,
    prompts,
    max_new_tokens=max_new_tokens,
    temperature=temperature,
    top_p=top_p,
    key=key,
    eos_id=eos_id,
    logit_scale=logit_scale,
    compute=compute,
    prefill_chunk=prefill_chunk,
  )
  if len(prompts) == 0:
    return []
  batch.prefill()
  return batch.decode(max_new_tokens)


class Generation:
  """`generate` in steps, to stream tokens and to time the parts.

  Call `prefill` once, then `decode` while not `finished`; the concatenated results are what `generate` returns.
  Arguments and errors are those of `generate`.
  """

  def __init__(
    self,
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: Array | None = None,
    eos_id: int | Sequence[int] | None = None,
    logit_scale: float | Array = 1.0,
    compute: ComputeConfig | None = None,
    prefill_chunk: int | None = None,
  ):
    eos_ids = None if eos_id is None else np.atleast_1d(np.asarray(eos_id, np.int32))
    _check_arguments(config, prompts, max_new_tokens, eos_ids, prefill_chunk)
    sampler = _make_sampler(temperature, top_p, key)
    self._params, self._num_prompts, self._max_new_tokens = params, len(prompts), max_new_tokens
    self._decoded_with = _for_decoding(params, config, compute or ComputeConfig())
    longest = max(map(len, prompts), default=1)
    capacity = max(padded_size(longest + max_new_tokens, "length"), padded_size(_SMALLEST_CAPACITY, "length"))
    num_rows = padded_size(len(prompts), "batch")
    self._tokens_BS = np.zeros((num_rows, capacity), np.int32)
    for row, prompt in zip(self._tokens_BS, prompts, strict=False):
      row[: len(prompt)] = prompt
    lengths_B = np.array([len(prompt) for prompt in prompts] + [1] * (num_rows - len(prompts)), np.int32)
    config, frequencies = separate_frequencies(config)
    self._request = _Request(lengths_B, max_new_tokens, eos_ids, logit_scale, sampler, frequencies)
    self._how: dict[str, Any] = {"config": config, "compute": compute or ComputeConfig()}
    padded = padded_size(longest, "length")
    chunk = prefill_chunk or default_prefill_chunk(padded, num_rows // num_shards("batch"))
    self._chunk = min(round_up_to_shards(chunk, "length"), padded)
    self._state: _State | None = None  # None until `prefill`

  @property
  def ended(self) -> list[bool]:
    """For each prompt, whether its answer is complete."""
    if self._state is None:
      return [False] * self._num_prompts
    full = int(self._state.step) >= self._max_new_tokens
    return [full or bool(done) for done in np.array(self._state.done_B)[: self._num_prompts]]

  @property
  def finished(self) -> bool:
    """Whether every answer is complete."""
    return all(self.ended)

  def compile(self) -> None:
    """Compiles both programs now, so that `prefill` and `decode` can be timed."""
    prefill = _prefill.lower(*self._prompts(), **self._how, chunk=self._chunk)
    prefill.compile()
    _decode.lower(self._decoded_with, self._request, prefill.out_info, 0, **self._how).compile()

  def prefill(self) -> None:
    """Fills the cache with the prompts, and waits until that is done."""
    self._state = jax.block_until_ready(_prefill(*self._prompts(), **self._how, chunk=self._chunk))

  def decode(self, num_tokens: int) -> list[list[int]]:
    """The next tokens of each prompt, at most `num_tokens`; none for a row that has ended.

    Raises:
      ValueError: before `prefill`.
    """
    if self._state is None:
      raise ValueError("nothing is read yet; call prefill before decode")
    step, ended = int(self._state.step), self.ended
    until = min(step + num_tokens, self._max_new_tokens)
    self._state = _decode(self._decoded_with, self._request, self._state, until, **self._how)
    new_steps = int(self._state.step) - step
    rows = np.array(self._state.tokens_BS)  # a copy: the array itself is donated to the next call
    starts = self._request.lengths_B[: self._num_prompts] + step
    return [
      [] if has_ended else _until_eos(row[start : start + new_steps].tolist(), self._request.eos_ids)
      for row, start, has_ended in zip(rows[: self._num_prompts], starts, ended, strict=True)
    ]

  def _prompts(self) -> tuple[Params, _Request, np.ndarray, np.ndarray]:
    padding_B = np.arange(len(self._tokens_BS)) >= self._num_prompts  # rows that only pad the batch
    return self._params, self._request, self._tokens_BS, padding_B


def _for_decoding(params: Params, config: ModelConfig, compute: ComputeConfig) -> Params:
  """The parameters for the decode loop: with separate layers, which then run unrolled, unless layers are scanned."""
  return params if scans(config, compute, unrolled_is_faster=True) else layers_apart(params)


def _check_arguments(
  config: ModelConfig,
  prompts: Sequence[Sequence[int] | np.ndarray],
  max_new_tokens: int,
  eos_ids: np.ndarray | None,
  prefill_chunk: int | None,
) -> None:
  for i, prompt in enumerate(prompts):
    if len(prompt) == 0:
      raise ValueError(f"prompts[{i}] is empty; a prompt needs at least one token")
    for token in (np.min(prompt), np.max(prompt)):
      if not 0 <= token < config.vocab_size:
        raise ValueError(f"prompts[{i}] holds token {token}; the model's vocab_size is {config.vocab_size}")
  if max_new_tokens < 1:
    raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
  for eos_id in () if eos_ids is None else eos_ids:
    if not 0 <= eos_id < config.vocab_size:
      raise ValueError(f"eos_id is {eos_id}; the model's vocab_size is {config.vocab_size}")
  if prefill_chunk is not None and prefill_chunk < 1:
    raise ValueError(f"prefill_chunk is {prefill_chunk}; it must be at least 1")


def _make_sampler(temperature: float, top_p: float, key: Array | None) -> _Sampler | None:
  """None for greedy decoding."""
  if not temperature >= 0:
    raise ValueError(f"temperature is {temperature}; it must be at least 0")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p is {top_p}; it must lie in (0, 1]")
  if temperature == 0:
    return None
  if key is None:
    raise ValueError(f"temperature is {temperature}; sampling needs `key`, a jax.random key")
  return _Sampler(temperature, None if top_p == 1 else top_p, key)


def default_prefill_chunk(length: int, rows: int) -> int:
  """The tokens of each prompt that are read at a time: equal pieces of about 512, or of more for less than 8 rows.

  Args:
    length: of the longest prompt, padded.
    rows: of the batch, on each device.
  """
  largest = max(_PREFILL_CHUNK, _PREFILL_TOKENS // max(rows, 1))
  return -(-length // -(-length // largest))


def round_up(size: int) -> int:
  """`size` rounded up to three leading binary digits: four sizes per doubling, at most a quarter too large."""
  step = 1 << max(size.bit_length() - 3, 0)
  return -(-size // step) * step


def padded_size(size: int, dimension: str) -> int:
  """The padded size of a dimension ("batch" or "length"): few sizes exist, and the mesh divides each of them."""
  return round_up_to_shards(round_up(size), dimension)


def _until_eos(tokens: list[int], eos_ids: np.ndarray | None) -> list[int]:
  ends = () if eos_ids is None else np.flatnonzero(np.isin(tokens, eos_ids)).tolist()
  return tokens[: ends[0] + 1] if ends else tokens


def _extend(
  params: Params, request: _Request, tokens_BT: Array, cache: Cache, config: ModelConfig, compute: ComputeConfig
) -> tuple[Array, Cache]:
  """Hidden states of tokens that follow those of the cache, and the extended cache."""
  length_B1 = jnp.asarray(request.lengths_B + request.max_new_tokens)[:, None]
  x_BTD, extended, _ = hidden_states(
    params,
    config,
    tokens_BT,
    compute=compute,
    cache=cache,
    length=length_B1,
    logit_scale=request.logit_scale,
    frequencies=request.frequencies,
  )
  assert extended is not None  # since a cache was given
  return x_BTD, extended


@functools.partial(jax.jit, static_argnames=("config", "compute", "chunk"))
def _prefill(
  params: Params,
  request: _Request,
  tokens_BS: Array,
  done_B: Array,
  *,
  config: ModelConfig,
  compute: ComputeConfig,
  chunk: int,
) -> _State:
  """The state before the first new token. `tokens_BS` holds the prompts; rows that are `done_B` are not continued."""
  batch, capacity = tokens_BS.shape

  def read(i: Array, cache: Cache) -> Cache:
    start = jnp.minimum(i * chunk, capacity - chunk)  # the last chunk may overlap the one before it
    cache = dataclasses.replace(cache, lengths_B=jnp.full(batch, start))
    tokens_BT = lax.dynamic_slice_in_dim(tokens_BS, start, chunk, axis=1)
    return _extend(params, request, tokens_BT, cache, config, compute)[1]

  # Prefill computes no logits: the last token of each prompt is left to the first step of the decode loop. Shorter rows
  # write beyond their own length here, but to slots that they do not see yet and that are overwritten as they grow.
  cache = init_cache(config, batch, capacity, compute)
  cache = lax.fori_loop(0, -(-(request.lengths_B.max() - 1) // chunk), read, cache)
  cache = dataclasses.replace(cache, lengths_B=request.lengths_B - 1)
  return _State(jnp.int32(0), tokens_BS, cache, done_B)


@functools.partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="state")
def _decode(
  params: Params, request: _Request, state: _State, until: int, *, config: ModelConfig, compute: ComputeConfig
) -> _State:
  """Decodes up to step `until`, or until all rows are done. `state` is donated."""
  rows = jnp.arange(state.tokens_BS.shape[0])

  def unfinished(state: _State) -> Array:
    return (state.step < until) & ~state.done_B.all()

  def next_token(state: _State) -> _State:
    step, tokens_BS, cache, done_B = state
    x_B1D, cache = _extend(params, request, tokens_BS[rows, cache.lengths_B][:, None], cache, config, compute)
    token_B = _choose(unembed(params, x_B1D, softcap=config.logits_softcap)[:, 0], step, request.sampler)
    tokens_BS = tokens_BS.at[rows, cache.lengths_B].set(token_B)
    done_B = done_B if request.eos_ids is None else done_B | jnp.isin(token_B, request.eos_ids)
    return _State(step + 1, tokens_BS, cache, done_B)

  return lax.while_loop(unfinished, next_token, state)


def _choose(logits_BV: Array, step: Array, sampler: _Sampler | None) -> Array:
  """The next token of each row, int32 (B,)."""
  if sampler is None:
    return logits_BV.argmax(-1).astype(jnp.int32)
  logits_BV = logits_BV / sampler.temperature
  if sampler.top_p is not None:
    logits_BV = jnp.where(_nucleus(logits_BV, sampler.top_p), logits_BV, -jnp.inf)
  step_key = jax.random.fold_in(sampler.key, step)
  row_keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(jnp.arange(logits_BV.shape[0]))
  return jax.vmap(jax.random.categorical)(row_keys, logits_BV).astype(jnp.int32)


def _nucleus(logits_BV: Array, top_p: Array | float) -> Array:
  """Which tokens belong to the smallest set of most likely tokens with a total probability of `top_p`: bool (B, V)."""
  order_BV = jnp.argsort(logits_BV, axis=-1, descending=True)
  sorted_BV = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order_BV, axis=-1)
  before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV
  return jnp.take_along_axis(before_BV < top_p, jnp.argsort(order_BV, axis=-1), axis=-1)
