"""A prompt of 32,768 tokens fits: what prefill needs beside its cache, by the compiled program's own account."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ModelConfig
from drope_jax.generation import Generation, _prefill
from drope_jax.parameters import map_specs
from drope_jax.positions import RoPE

NARROW = {"d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 48}


@pytest.mark.parametrize("positions", [RoPE(), None], ids=["rope", "dropped"])
def test_prefill_of_a_long_prompt_needs_little_beside_its_cache(positions):
  model = ModelConfig(vocab_size=264, positions=positions, **NARROW)
  params = map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), model)
  batch = Generation(params, model, [np.zeros(32_700, np.int32)], max_new_tokens=64)
  compiled = _prefill.lower(*batch._prompts(), **batch._how, chunk=batch._chunk).compile()
  batch_size, capacity = batch._tokens_BS.shape
  assert (batch_size, capacity, batch._chunk) == (1, 32_768, 4096)
  keys = model.num_layers * capacity * model.num_kv_heads * model.head_dim  # elements; as many values
  cache_bytes = 2 * keys * 4
  assert cache_bytes <= compiled.memory_analysis().output_size_in_bytes < 1.1 * cache_bytes
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * cache_bytes
  # No scores of a chunk against everything: 4,096 x 32,768 of one head alone are 128 times the keys.
  sizes = [
    math.prod(map(int, shape.split(","))) for shape in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", compiled.as_text())
  ]
  assert max(sizes) == keys
