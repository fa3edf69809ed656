import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.evaluate.methods import METHODS, Inference, Method, inference
from drope_jax.generation import (
  Generation,
  _choose,
  _decode,
  _prefill,
  _Sampler,
  default_prefill_chunk,
  generate,
  round_up,
)
from drope_jax.model import hidden_states, unembed
from drope_jax.parameters import map_specs
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, layer_cycle
from drope_jax.scalings import NTK, PI, DynamicNTK, DynamicYaRN, Llama3, NTKByParts, YaRN

NEW = 9
LENGTHS = (
  1,
  8,
  13,
  16,
  21,
  22,
  22,
  22,
)  # of the longest, 21 tokens are prefilled: in chunks of 5, the last holds only one
PROMPTS = [np.random.default_rng(i).integers(0, 61, length).tolist() for i, length in enumerate(LENGTHS)]


@functools.cache
def tiny(positions=None):
  """A config and its parameters; the weights are large, so that the most likely token leads clearly."""
  sizes = {"vocab_size": 61, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 24}
  config = ModelConfig(**sizes, num_layers=max(2, len(layer_cycle(positions))), positions=positions)
  rng = np.random.default_rng(0)
  return config, map_specs(lambda spec: jnp.asarray(rng.normal(not spec.decay, 0.5, spec.shape), jnp.float32), config)


@functools.partial(jax.jit, static_argnums=1)
def next_tokens(params, config, tokens_BT, lengths_B, length_B1, logit_scale):
  """The most likely token after each of the left-aligned rows, without a cache."""
  compute = ComputeConfig(attention="reference")
  x_BTD, *_ = hidden_states(params, config, tokens_BT, compute=compute, length=length_B1, logit_scale=logit_scale)
  last_B1D = x_BTD[jnp.arange(len(lengths_B)), lengths_B - 1][:, None]
  return unembed(params, last_B1D)[:, 0].argmax(-1)


def recomputed(params, config, prompts, new, *, logit_scale=1.0):
  """Greedy generation that runs the whole sequence for every token."""
  lengths_B = np.array([len(prompt) for prompt in prompts])
  tokens_BT = np.zeros((len(prompts), max(lengths_B) + new), np.int32)
  for row, prompt in zip(tokens_BT, prompts, strict=True):
    row[: len(prompt)] = prompt
  for i in range(new):
    next_B = next_tokens(params, config, tokens_BT, lengths_B + i, (lengths_B + new)[:, None], logit_scale)
    tokens_BT[np.arange(len(prompts)), lengths_B + i] = next_B
  return [row[length : length + new].tolist() for row, length in zip(tokens_BT, lengths_B, strict=True)]


STATIC_SCALINGS = (PI(4.0), NTK(4.0), NTKByParts(4.0, 8), YaRN(4.0, 8), Llama3(4.0, 8))
DYNAMIC_SCALINGS = (DynamicNTK(8), DynamicYaRN(8))
POSITIONS = {
  "rope": RoPE(),
  "static scalings": LayerPattern(tuple(Layer(RoPE(scaling=scaling)) for scaling in STATIC_SCALINGS)),
  "dynamic scalings": LayerPattern(tuple(Layer(RoPE(scaling=scaling)) for scaling in DYNAMIC_SCALINGS)),
  "alibi": ALiBi(),
  "nope": None,
  "windowed rope, global nope": LayerPattern((Layer(RoPE(), window=5), Layer(None))),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_cached_generation_equals_recomputation(name):
  config, params = tiny(POSITIONS[name])
  expected = recomputed(params, config, PROMPTS, NEW)
  assert generate(params, config, PROMPTS, max_new_tokens=NEW, prefill_chunk=5) == expected


def test_logit_scale_is_that_of_the_model():
  config, params = tiny()
  expected = recomputed(params, config, PROMPTS, NEW, logit_scale=1.7)
  assert generate(params, config, PROMPTS, max_new_tokens=NEW, logit_scale=1.7, prefill_chunk=5) == expected
  assert generate(params, config, PROMPTS, max_new_tokens=NEW, prefill_chunk=5) != expected


# What a method of methods.py is possible for, and the numbers it needs.
OF_METHODS = {
  **dict.fromkeys(("rope", "pi", "ntk", "yarn", "dynamic_ntk", "dynamic_yarn", "crop"), RoPE()),
  "yarn:2+0.4": RoPE(),
  "alibi": ALiBi(),
  "pattern": POSITIONS["windowed rope, global nope"],
  "nope": None,
  "drope:0.4": None,
}


# The slow ones have a scaling that a pattern above has too, and get it as the others get theirs.
@pytest.mark.parametrize(
  "method",
  [
    pytest.param(method, marks=pytest.mark.slow) if method in ("pi", "ntk", "dynamic_ntk") else method
    for method in OF_METHODS
  ],
)
def test_under_every_method_cached_generation_equals_recomputation(method):
  config, params = tiny(OF_METHODS[method])
  how = inference(method, config, 16, 64)
  assert (how.logit_scale > 1.5) == (method in ("yarn:2+0.4", "drope:0.4"))
  assert (how == Inference(config)) == (method in ("rope", "alibi", "pattern", "nope"))
  prompts = [how.seen(np.array(prompt), NEW) for prompt in PROMPTS]
  assert max(map(len, prompts)) == (16 - NEW if method == "crop" else max(LENGTHS))
  expected = recomputed(params, how.config, prompts, NEW, logit_scale=how.logit_scale)
  rows = generate(params, how.config, prompts, max_new_tokens=NEW, logit_scale=how.logit_scale, prefill_chunk=5)
  assert rows == expected


def test_no_method_is_left_out():
  assert {Method.parse(method).name for method in OF_METHODS} == set(METHODS)


@pytest.mark.parametrize(("method", "chunk"), [("dynamic_yarn", 128), ("drope:0.4", 512)])
def test_the_blockwise_kernel_answers_long_prompts_as_recomputation(method, chunk):
  config, params = tiny(OF_METHODS[method])
  prompts = [np.random.default_rng(i).integers(0, 61, length).tolist() for i, length in enumerate((300, 131, 260))]
  how = inference(method, config, 64, 309)
  expected = recomputed(params, how.config, prompts, NEW, logit_scale=how.logit_scale)
  asked = {"max_new_tokens": NEW, "logit_scale": how.logit_scale, "compute": ComputeConfig(attention="blockwise")}
  assert generate(params, how.config, prompts, prefill_chunk=chunk, **asked) == expected


@pytest.mark.parametrize("chunk", [1, 8, 512, None])
def test_chunk_boundaries_do_not_matter(chunk):
  config, params = tiny(RoPE())
  expected = generate(params, config, PROMPTS, max_new_tokens=NEW, prefill_chunk=5)
  assert generate(params, config, PROMPTS, max_new_tokens=NEW, prefill_chunk=chunk) == expected


@pytest.mark.parametrize(
  ("length", "rows", "chunk"),
  [
    *((4096, 1, 4096), (5120, 1, 2560), (32768, 1, 4096), (40, 1, 40)),  # 5,120 in two equal pieces, not 4,096 twice
    *((4096, 2, 2048), (2048, 3, 1024), (1024, 8, 512), (640, 64, 320), (4096, 0, 4096)),
  ],
)
def test_few_long_prompts_are_read_in_large_and_equal_pieces(length, rows, chunk):
  assert default_prefill_chunk(length, rows) == chunk


def test_a_long_prompt_is_read_as_it_is_in_small_pieces():
  config, params = tiny(RoPE())
  prompt = np.random.default_rng(0).integers(0, 61, 1300)
  expected = generate(params, config, [prompt], max_new_tokens=NEW, prefill_chunk=100)
  assert generate(params, config, [prompt], max_new_tokens=NEW) == expected


def test_the_last_chunk_fits_into_a_full_cache():
  config, params = tiny(RoPE())
  prompt = (
    np.random.default_rng(0).integers(0, 61, 63).tolist()
  )  # with one new token the capacity is 64, no multiple of 15
  assert generate(params, config, [prompt], max_new_tokens=1, prefill_chunk=15) == recomputed(
    params, config, [prompt], 1
  )


def test_each_row_is_what_it_would_be_alone():
  config, params = tiny(POSITIONS["dynamic scalings"])  # whose frequencies depend on the length of the row
  together = generate(params, config, PROMPTS, max_new_tokens=NEW, prefill_chunk=5)
  assert together[1:] == [
    generate(params, config, [row], max_new_tokens=NEW, prefill_chunk=5)[0] for row in PROMPTS[1:]
  ]


def test_rows_that_fill_a_batch_up_are_not_returned():
  config, params = tiny(RoPE())
  rows = generate(params, config, (PROMPTS * 2)[:13], max_new_tokens=NEW)  # a batch of 14
  assert rows == (generate(params, config, PROMPTS, max_new_tokens=NEW) * 2)[:13]


def test_no_prompts_no_rows():
  config, params = tiny()
  assert generate(params, config, [], max_new_tokens=3) == []


# --- piece by piece ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_the_pieces_together_are_the_whole(size):
  config, params = tiny(RoPE())
  free = generate(params, config, PROMPTS, max_new_tokens=NEW)
  sampling = {"temperature": 5.0, "top_p": 0.95, "key": jax.random.key(1)}
  for how in ({"eos_id": free[2][3]}, sampling):
    how["max_new_tokens"] = NEW
    batch = Generation(params, config, PROMPTS, **how)
    batch.prefill()
    rows = [[] for _ in PROMPTS]
    while not batch.finished:
      for row, piece, ended in zip(rows, batch.decode(size), batch.ended, strict=True):
        row.extend(piece)
        assert len(piece) <= size
        assert ended == (len(row) == NEW or row[-1] == how.get("eos_id"))
    assert rows == generate(params, config, PROMPTS, **how)
    assert batch.decode(size) == [[] for _ in PROMPTS]


def test_nothing_is_compiled_after_compile():
  config, params = tiny(RoPE())
  config = dataclasses.replace(config, init_std=0.6)  # the same function, but a program of its own
  batch = Generation(params, config, PROMPTS, max_new_tokens=NEW)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
  batch.compile()
  assert sum("backend_compile" in name for name in compiled) >= 2
  compiled.clear()
  batch.prefill()
  batch.decode(NEW)
  assert not any("backend_compile" in name for name in compiled)


def test_decoding_wants_the_prompts_read():
  config, params = tiny(RoPE())
  with pytest.raises(ValueError, match="call prefill before decode"):
    Generation(params, config, PROMPTS, max_new_tokens=1).decode(1)


# --- the end -----------------------------------------------------------------------------------


def test_rows_end_with_their_first_eos():
  config, params = tiny(RoPE())
  free = generate(params, config, PROMPTS, max_new_tokens=NEW)
  eos_id = free[2][3]
  expected = [row[: row.index(eos_id) + 1] if eos_id in row else row for row in free]
  assert generate(params, config, PROMPTS, max_new_tokens=NEW, eos_id=eos_id) == expected
  assert len(expected[2]) <= 4


def test_decoding_stops_when_all_rows_are_done(monkeypatch):
  config, params = tiny(RoPE())
  free = generate(params, config, PROMPTS, max_new_tokens=NEW)[2]
  steps = []

  def counting(params, config, tokens_BT, **inputs):
    jax.debug.callback(lambda: steps.append(1) if tokens_BT.shape[1] == 1 else None)
    return hidden_states(params, config, tokens_BT, **inputs)

  monkeypatch.setattr("drope_jax.generation.hidden_states", counting)
  config = dataclasses.replace(config, init_std=0.7)  # the same function, but a program of its own, for the counter
  rows = generate(params, config, [PROMPTS[2]] * len(PROMPTS), max_new_tokens=NEW, eos_id=free[3])
  jax.effects_barrier()
  assert len(steps) == len(rows[0]) == free.index(free[3]) + 1 < NEW


def test_calls_of_similar_size_share_a_program():
  config, params = tiny(RoPE())
  sample = functools.partial(generate, params, config, key=jax.random.key(0))
  sample(PROMPTS, max_new_tokens=NEW, temperature=5.0, top_p=0.95)
  programs = _prefill._cache_size(), _decode._cache_size()
  sample([prompt[:21] for prompt in PROMPTS], max_new_tokens=4, temperature=0.3, top_p=0.2, logit_scale=2.0)
  assert (_prefill._cache_size(), _decode._cache_size()) == programs


def test_rounding_up_adds_at_most_a_quarter_and_leaves_few_sizes():
  sizes = [round_up(size) for size in range(1, 4097)]
  assert all(size <= rounded <= 1.25 * size for size, rounded in enumerate(sizes, start=1))
  assert len(set(sizes)) < 50


# --- sampling ----------------------------------------------------------------------------------


def frequencies(logits_V, temperature, top_p):
  draws = 20_000
  sampler = _Sampler(temperature, top_p, jax.random.key(0))
  tokens_B = _choose(jnp.tile(jnp.asarray(logits_V), (draws, 1)), jnp.int32(0), sampler)
  return np.bincount(tokens_B, minlength=len(logits_V)) / draws


def test_samples_follow_the_softmax_at_the_temperature():
  logits_V = np.array([1.0, 0.0, 2.0, -1.0], np.float32)
  np.testing.assert_allclose(frequencies(logits_V, 0.7, None), jax.nn.softmax(logits_V / 0.7), atol=0.015)


def test_top_p_keeps_the_most_likely_tokens_that_reach_it():
  logits_V = np.log(np.array([0.1, 0.5, 0.05, 0.35], np.float32))
  np.testing.assert_allclose(frequencies(logits_V, 1.0, 0.8), [0, 0.5 / 0.85, 0, 0.35 / 0.85], atol=0.015)
  assert frequencies(logits_V, 1.0, 0.01)[1] == 1.0


def test_sampling_depends_on_key_and_step_but_not_on_other_rows():
  config, params = tiny(RoPE())
  sample = functools.partial(generate, params, config, max_new_tokens=NEW, temperature=5.0, top_p=0.95)
  first = sample(PROMPTS, key=jax.random.key(0))
  assert sample(PROMPTS, key=jax.random.key(0)) == first
  assert sample(PROMPTS, key=jax.random.key(1)) != first
  assert sample(PROMPTS[:2], key=jax.random.key(0)) == first[:2]
  same = sample([PROMPTS[7]] * len(PROMPTS), key=jax.random.key(0))
  assert same[0] != same[1]  # rows draw for themselves


def test_a_low_temperature_is_greedy():
  config, params = tiny(RoPE())
  key = jax.random.key(0)
  cold = generate(params, config, PROMPTS, max_new_tokens=NEW, temperature=1e-4, top_p=0.95, key=key)
  assert cold == generate(params, config, PROMPTS, max_new_tokens=NEW)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompts": [[1], []]}, r"prompts\[1\] is empty"),
    ({"prompts": [[1, 61]]}, r"prompts\[0\] holds token 61.*vocab_size is 61"),
    ({"prompts": [[-1]]}, r"prompts\[0\] holds token -1"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"temperature": -0.5}, "temperature is -0.5"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": 1.0}, "sampling needs `key`"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"eos_id": 61}, "eos_id is 61"),
    ({"prefill_chunk": 0}, "prefill_chunk is 0"),
  ],
)
def test_bad_input_is_named(changes, message):
  config, params = tiny()
  with pytest.raises(ValueError, match=message):
    generate(params, config, **{"prompts": [[1]], "max_new_tokens": 1, **changes})
