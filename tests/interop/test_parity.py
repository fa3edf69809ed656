"""Logits of randomly initialised models of transformers, computed by ours from the files that transformers wrote."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.pretrained import (
  ORIGINAL_CONTEXT,
  SHAPE,
  THETA,
  TOKENS_BT,
  hugging_face_model,
  logits_of,
  shaped,
  torch,
  write_folder,
)

from drope_jax.cache import init_cache
from drope_jax.config import QKNorm
from drope_jax.interop.importing import open_source, read_params
from drope_jax.model import Decoder, hidden_states, unembed
from drope_jax.positions import Layer, LayerPattern, RoPE
from drope_jax.scalings import PI, DynamicNTK, Llama3, YaRN

PROMPT = ORIGINAL_CONTEXT + 4  # cached decoding starts beyond the original context already
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT, "beta_fast": 4.0}


def imported(model, directory):
  source, pretrained = open_source(write_folder(model, directory))
  return read_params(source, pretrained.model), pretrained


def assert_same_logits(model, expected, directory, length=24):
  """The files of `model` are read as config `expected`, and give its logits."""
  params, (config, context, beta) = imported(model, directory)
  assert (config, context, beta) == (expected, ORIGINAL_CONTEXT, 1.0)
  tokens_BT = TOKENS_BT[:, :length]
  expected_BTV = logits_of(model, tokens_BT)
  logits_BTV = jax.jit(Decoder(config).apply)({"params": params}, jnp.asarray(tokens_BT))
  assert 1 < np.abs(expected_BTV).max() < 100  # a tolerance of 1e-4 says something
  np.testing.assert_allclose(logits_BTV, expected_BTV, atol=1e-4)
  return params


def decoded_with_cache(model, tokens_BT):
  """Logits of transformers for the tokens from PROMPT - 1 on: a prompt first, then token by token."""
  with torch.no_grad():
    out = model(torch.from_numpy(tokens_BT[:, :PROMPT]), use_cache=True)
    logits = [out.logits[:, -1]]
    for t in range(PROMPT, tokens_BT.shape[1]):
      out = model(torch.from_numpy(tokens_BT[:, t : t + 1]), past_key_values=out.past_key_values, use_cache=True)
      logits.append(out.logits[:, -1])
  return torch.stack(logits, 1).numpy()


def our_decoding(params, config, tokens_BT):
  """The same with our cache: the prompt in chunks of 7 tokens (the last of fewer), then token by token."""

  @jax.jit
  def extend(cache, tokens_BT, length):
    x_BTD, cache, _ = hidden_states(params, config, tokens_BT, cache=cache, length=length)
    return unembed(params, x_BTD)[:, -1], cache

  cache, each = init_cache(config, *tokens_BT.shape), []
  ends = [*range(7, PROMPT, 7), *range(PROMPT, tokens_BT.shape[1] + 1)]
  length_B1 = jnp.full((len(tokens_BT), 1), tokens_BT.shape[1])
  for start, end in itertools.pairwise([0, *ends]):
    logits, cache = extend(cache, jnp.asarray(tokens_BT[:, start:end]), length_B1)
    each.append(logits)
  return np.stack(each[ends.index(PROMPT) :], 1)


def assert_same_decoding(model, params, config):
  tokens_BT = TOKENS_BT[:, : PROMPT + 4]
  ours = our_decoding(params, config, tokens_BT)
  np.testing.assert_allclose(ours, decoded_with_cache(model, tokens_BT), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_llama(tied, tmp_path):
  model = hugging_face_model("Llama", tie_word_embeddings=tied)
  params = assert_same_logits(model, shaped(tie_embeddings=tied), tmp_path)
  assert_same_decoding(model, params, shaped(tie_embeddings=tied))


# What each kind of model is written with, and what it is read as.
ROPES = {"plain": ({}, RoPE(THETA)), "yarn": (YARN, RoPE(THETA, YaRN(4.0, ORIGINAL_CONTEXT, beta_fast=4.0)))}


@pytest.mark.parametrize("rope", ROPES)
def test_qwen2_with_its_biases(rope, tmp_path):
  parameters, positions = ROPES[rope]
  # It has no head_dim: its heads are hidden_size / num_attention_heads.
  model = hugging_face_model("Qwen2", parameters, tie_word_embeddings=True, head_dim=8)
  assert model.model.layers[0].self_attn.q_proj.bias.abs().min() > 0
  config = shaped(qkv_bias=True, head_dim=8, positions=positions)
  assert_same_decoding(model, assert_same_logits(model, config, tmp_path), config)


@pytest.mark.parametrize("rope", ROPES)
def test_qwen3_with_its_norm_of_each_head(rope, tmp_path):
  parameters, positions = ROPES[rope]
  model = hugging_face_model("Qwen3", parameters, tie_word_embeddings=False)
  config = shaped(qk_norm=QKNorm("head"), tie_embeddings=False, positions=positions)
  assert_same_decoding(model, assert_same_logits(model, config, tmp_path), config)


def test_qwen3_with_windows_in_its_last_layer(tmp_path):
  model = hugging_face_model("Qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=1)
  pattern = LayerPattern((Layer(RoPE(THETA)), Layer(RoPE(THETA), 5)))
  assert_same_logits(model, shaped(positions=pattern, qk_norm=QKNorm("head"), tie_embeddings=False), tmp_path)


def test_olmoe_with_one_expert_and_its_norm_of_full_width(tmp_path):
  model = hugging_face_model("Olmoe", head_dim=8, num_experts=1, num_experts_per_tok=1, tie_word_embeddings=False)
  config = shaped(qk_norm=QKNorm("full"), head_dim=8, tie_embeddings=False)
  assert_same_decoding(model, assert_same_logits(model, config, tmp_path), config)


def test_granite_with_the_usual_logit_scale(tmp_path):
  model = hugging_face_model("Granite", attention_multiplier=SHAPE.head_dim**-0.5, tie_word_embeddings=False)
  assert_same_logits(model, shaped(tie_embeddings=False), tmp_path)


def test_mistral_with_its_sliding_window(tmp_path):
  model = hugging_face_model("Mistral", tie_word_embeddings=False, sliding_window=5)
  expected = shaped(positions=LayerPattern((Layer(RoPE(THETA), 5),)), tie_embeddings=False)
  assert_same_logits(model, expected, tmp_path)


@pytest.mark.parametrize("layers", [[1, 0], [0, 0]], ids=["mixed", "none"])
def test_smollm3_with_its_layers_without_rope(layers, tmp_path):
  model = hugging_face_model("SmolLM3", tie_word_embeddings=True, no_rope_layers=layers)
  pattern = LayerPattern((Layer(RoPE(THETA)), Layer(None))) if any(layers) else None
  assert_same_logits(model, shaped(positions=pattern), tmp_path)


SCALINGS = {
  "linear": ({"factor": 4.0}, PI(4.0)),
  "dynamic": ({"factor": 2.0}, DynamicNTK(ORIGINAL_CONTEXT, factor=2.0)),
  "yarn": (YARN, YaRN(4.0, ORIGINAL_CONTEXT, beta_fast=4.0)),
  "yarn with its attention factor": (
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "attention_factor": 1.5},
    YaRN(4.0, 8, attention_factor=1.5),
  ),
  "llama3": (
    {
      "factor": 4.0,
      "original_max_position_embeddings": ORIGINAL_CONTEXT,
      "low_freq_factor": 0.2,
      "high_freq_factor": 2.0,
    },
    Llama3(4.0, ORIGINAL_CONTEXT, 0.2, 2.0),
  ),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_beyond_the_context_with_rope_scaling(kind, tmp_path):
  parameters, scaling = SCALINGS[kind]
  model = hugging_face_model("Llama", {"rope_type": kind, **parameters}, tie_word_embeddings=False)
  config = shaped(positions=RoPE(THETA, scaling), tie_embeddings=False)
  params = assert_same_logits(model, config, tmp_path, length=3 * ORIGINAL_CONTEXT)
  gamma = (
    scaling.frequencies(THETA, SHAPE.head_dim, 3 * ORIGINAL_CONTEXT)[0] / RoPE(THETA).frequencies(SHAPE.head_dim)[0]
  )
  assert np.ptp(gamma) > 0.1 or kind == "linear"  # fast and slow frequencies are treated differently
  assert np.abs(gamma - 1).max() > 0.1

  if "attention factor" in kind:  # yarn's frequencies; the factor changes nothing about the cache
    return
  tokens_BT = TOKENS_BT[:, : PROMPT + 4]
  if kind == "dynamic":
    # transformers caches keys as they were rotated for an earlier length, and keeps the frequencies of the longest text
    # until it sees a short one. Ours computes a row for one length throughout; so does it if it has no cache and is
    # made to forget.
    logits_of(model, tokens_BT[:, : ORIGINAL_CONTEXT // 2])
    expected = logits_of(model, tokens_BT)[:, PROMPT - 1 :]
  else:
    expected = decoded_with_cache(model, tokens_BT)
  np.testing.assert_allclose(our_decoding(params, config, tokens_BT), expected, atol=1e-4)


def test_scaling_as_transformers_4_wrote_it(tmp_path):
  model = hugging_face_model("Llama", {"rope_type": "linear", "factor": 4.0}, tie_word_embeddings=False)
  _, pretrained = imported(model, tmp_path)
  path = tmp_path / "config.json"
  old = path.read_text().replace('"rope_parameters"', '"rope_scaling"').replace('"rope_type"', '"type"')
  assert '"type": "linear"' in old
  path.write_text(old)
  assert open_source(tmp_path)[1] == pretrained
