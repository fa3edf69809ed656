"""Layers apart: the same memory and the same answers, and nothing of a layer's size copied for each token."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.generation import Generation, _decode, _prefill, generate
from drope_jax.layers_apart import layers_apart
from drope_jax.model import hidden_states, init_params
from drope_jax.positions import RoPE

MODEL = ModelConfig(
  vocab_size=61,
  d_model=64,
  num_layers=3,
  num_heads=2,
  num_kv_heads=2,
  head_dim=32,
  d_ff=112,
  positions=RoPE(),
  init_std=0.3,
)
SCANNED = ComputeConfig(scan_layers=True)
TOKENS = np.arange(20, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def params():
  return jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))


def decode_program(params, compute):
  """The decode loop as it is compiled, and the parameters that it reads."""
  batch = Generation(params, MODEL, TOKENS, max_new_tokens=8, compute=compute)
  prefilled = _prefill.lower(*batch._prompts(), **batch._how, chunk=batch._chunk).out_info
  return _decode.lower(batch._decoded_with, batch._request, prefilled, 8, **batch._how).compile().as_text()


def test_the_arrays_of_a_layer_are_the_memory_of_the_stacked_ones(params):
  apart = layers_apart(params)
  assert apart["embedding"] is params["embedding"] and len(apart["layers"]) == MODEL.num_layers
  assert layers_apart(apart) is apart  # so that `generate` takes them too
  for i, layer in enumerate(apart["layers"]):
    assert layer.keys() == params["layers"].keys()
    for name, array in layer.items():
      view = np.asarray(params["layers"][name])[i]
      np.testing.assert_array_equal(array, view)
      if view.nbytes % 64 == 0:  # the alignment that XLA wants
        assert array.unsafe_buffer_pointer() == view.ctypes.data


def test_hidden_states_are_those_of_stacked_layers(params):
  run = jax.jit(lambda params: hidden_states(params, MODEL, TOKENS, compute=SCANNED).states_BTD)
  np.testing.assert_allclose(run(layers_apart(params)), run(params), rtol=2e-5, atol=2e-5)


def test_decoding_copies_no_layer_and_answers_the_same(params):
  # A result that is as large as a matrix of one layer: (D, F) or (F, D), with or without the axis of layers.
  of_a_layer = re.compile(r" = f32\[(1,)*(64,112|112,64)\]\S* (?!parameter|get-tuple-element|bitcast)\w")
  assert of_a_layer.search(decode_program(params, SCANNED))
  assert not of_a_layer.search(decode_program(params, ComputeConfig()))
  answers = [generate(params, MODEL, TOKENS, max_new_tokens=8, compute=how) for how in (SCANNED, ComputeConfig())]
  assert answers[0] == answers[1]


@pytest.mark.parametrize("make", [np.asarray, lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)])
def test_what_is_no_array_of_a_device_is_left_alone(params, make):
  other = jax.tree.map(make, params)
  assert layers_apart(other) is other


def test_a_model_of_half_the_bytes(params):
  halves = jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
  layer = layers_apart(halves)["layers"][1]
  assert layer["q"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(layer["q"], halves["layers"]["q"][1])


def test_layers_are_committed_to_their_device_only_if_the_parameters_are(params):
  # Else a sampling key, a mesh or a default device of another CPU would be refused or ignored.
  held = jax.device_put(params, jax.devices()[0])
  for given, expected in ((params, False), (held, True)):
    apart = layers_apart(given)["layers"]
    assert {array.committed for layer in apart for array in layer.values()} == {expected}
