"""Logits of randomly initialised Hugging Face models, computed by ours from the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ModelConfig, QKNorm
from drope_jax.model import Decoder, parameter_specs
from drope_jax.positions import PI, DynamicNTK, Layer, LayerPattern, Llama3, RoPE, YaRN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# head_dim is not hidden_size / num_attention_heads.
SHAPE = ModelConfig(
  vocab_size=37, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=12, d_ff=40, norm_eps=1e-6
)
ORIGINAL_CONTEXT = 16
THETA = 100.0  # at head_dim 12 and a context of 16 this gives each scaling frequencies to keep, to blend and to divide
HF_SHAPE = dict(
  vocab_size=SHAPE.vocab_size,
  hidden_size=SHAPE.d_model,
  num_hidden_layers=SHAPE.num_layers,
  num_attention_heads=SHAPE.num_heads,
  num_key_value_heads=SHAPE.num_kv_heads,
  head_dim=SHAPE.head_dim,
  intermediate_size=SHAPE.d_ff,
  rms_norm_eps=SHAPE.norm_eps,
  max_position_embeddings=ORIGINAL_CONTEXT,
  attn_implementation="eager",
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
)


def hugging_face_model(family, rope=None, **settings):
  """A model of `family` ("Llama", ...) in which no weight has a special value."""
  torch.manual_seed(0)
  rope_parameters = {"rope_type": "default", "rope_theta": THETA, **(rope or {})}
  config = getattr(transformers, f"{family}Config")(**{**HF_SHAPE, "rope_parameters": rope_parameters, **settings})
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
  return model


def our_params(hf_model, config):
  """Hugging Face's weights, one (out, in) array a layer, in our tree: (in, out), with all layers stacked in front."""
  weights = {name: value.numpy() for name, value in hf_model.state_dict().items()}
  d_model, num_heads, num_kv_heads, head_dim = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim

  def stacked(name, *shape):
    """Weight `name` of every layer, transposed if it is a matrix, and reshaped."""
    return np.stack([weights[f"model.layers.{i}.{name}"].T.reshape(shape) for i in range(config.num_layers)])

  layers = {
    "attention_norm": stacked("input_layernorm.weight", d_model),
    "q": stacked("self_attn.q_proj.weight", d_model, num_heads, head_dim),
    "k": stacked("self_attn.k_proj.weight", d_model, num_kv_heads, head_dim),
    "v": stacked("self_attn.v_proj.weight", d_model, num_kv_heads, head_dim),
    "o": stacked("self_attn.o_proj.weight", num_heads, head_dim, d_model),
    "mlp_norm": stacked("post_attention_layernorm.weight", d_model),
    "gate": stacked("mlp.gate_proj.weight", d_model, config.d_ff),
    "up": stacked("mlp.up_proj.weight", d_model, config.d_ff),
    "down": stacked("mlp.down_proj.weight", config.d_ff, d_model),
  }
  if config.qkv_bias:
    layers["q_bias"] = stacked("self_attn.q_proj.bias", num_heads, head_dim)
    layers["k_bias"] = stacked("self_attn.k_proj.bias", num_kv_heads, head_dim)
    layers["v_bias"] = stacked("self_attn.v_proj.bias", num_kv_heads, head_dim)
  if config.qk_norm is not None:
    layers["q_norm"] = stacked("self_attn.q_norm.weight", head_dim)
    layers["k_norm"] = stacked("self_attn.k_norm.weight", head_dim)
  params = {
    "embedding": weights["model.embed_tokens.weight"],
    "layers": layers,
    "final_norm": weights["model.norm.weight"],
  }
  if not config.tie_embeddings:
    params["unembedding"] = weights["lm_head.weight"]
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    lambda spec: spec.shape, parameter_specs(config), is_leaf=lambda node: hasattr(node, "decay")
  )
  return params


def assert_same_logits(hf_model, config, length=24):
  tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
  with torch.no_grad():
    expected_BTV = hf_model(torch.from_numpy(tokens_BT)).logits.numpy()
  logits_BTV = Decoder(config).apply({"params": our_params(hf_model, config)}, jnp.asarray(tokens_BT))
  assert 1 < np.abs(expected_BTV).max() < 100  # a tolerance of 1e-4 says something
  np.testing.assert_allclose(logits_BTV, expected_BTV, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_llama(tied):
  hf_model = hugging_face_model("Llama", tie_word_embeddings=tied)
  assert_same_logits(hf_model, dataclasses.replace(SHAPE, positions=RoPE(THETA), tie_embeddings=tied))


def test_qwen2_with_its_biases():
  hf_model = hugging_face_model("Qwen2", tie_word_embeddings=True)
  assert hf_model.model.layers[0].self_attn.q_proj.bias.abs().min() > 0
  assert_same_logits(hf_model, dataclasses.replace(SHAPE, positions=RoPE(THETA), qkv_bias=True))


def test_qwen3_with_its_norm_of_each_head():
  hf_model = hugging_face_model("Qwen3", tie_word_embeddings=False)
  config = dataclasses.replace(SHAPE, positions=RoPE(THETA), qk_norm=QKNorm("head"), tie_embeddings=False)
  assert_same_logits(hf_model, config)


def test_mistral_with_its_sliding_window():
  hf_model = hugging_face_model("Mistral", tie_word_embeddings=False, sliding_window=5)
  config = dataclasses.replace(SHAPE, positions=LayerPattern((Layer(RoPE(THETA), 5),)), tie_embeddings=False)
  assert_same_logits(hf_model, config)


def test_smollm3_with_its_layers_without_rope():
  hf_model = hugging_face_model("SmolLM3", tie_word_embeddings=True, no_rope_layers=[1, 0], num_hidden_layers=2)
  config = dataclasses.replace(SHAPE, positions=LayerPattern((Layer(RoPE(THETA)), Layer(None))))
  assert_same_logits(hf_model, config)


SCALINGS = {
  "linear": ({"factor": 4.0}, PI(4.0)),
  "dynamic": ({"factor": 2.0}, DynamicNTK(ORIGINAL_CONTEXT, factor=2.0)),
  "yarn": (
    {"factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT, "beta_fast": 4.0},
    YaRN(4.0, ORIGINAL_CONTEXT, beta_fast=4.0),
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
def test_llama_beyond_its_context_with_rope_scaling(kind):
  parameters, scaling = SCALINGS[kind]
  hf_model = hugging_face_model("Llama", {"rope_type": kind, **parameters})
  config = dataclasses.replace(SHAPE, positions=RoPE(THETA, scaling), tie_embeddings=False)
  assert_same_logits(hf_model, config, length=3 * ORIGINAL_CONTEXT)
  gamma = (
    scaling.frequencies(THETA, SHAPE.head_dim, 3 * ORIGINAL_CONTEXT)[0] / RoPE(THETA).frequencies(SHAPE.head_dim)[0]
  )
  assert np.ptp(gamma) > 0.1 or kind == "linear"  # fast and slow frequencies are treated differently
  assert np.abs(gamma - 1).max() > 0.1
