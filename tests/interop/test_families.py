"""The families that add something to Llama: logits of transformers' own classes, in and out again, and dropped."""

import functools
import math

import jax
import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.pretrained import (
  ORIGINAL_CONTEXT,
  THETA,
  TOKENS_BT,
  assert_same_params,
  hugging_face_model,
  logits_of,
  shaped,
  torch,
  transformers,
  write_folder,
)

import drope_jax
from drope_jax.config import QKNorm
from drope_jax.errors import ConfigError
from drope_jax.interop.exporting import export_model
from drope_jax.interop.families import FAMILIES
from drope_jax.interop.formats import choose
from drope_jax.interop.gguf_export import architecture_of, rotation_of
from drope_jax.interop.hf_config import read_config
from drope_jax.interop.importing import import_model
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR
from drope_jax.model import hidden_states, unembed
from drope_jax.positions import Layer, LayerPattern, RoPE
from drope_jax.scalings import LongRoPE, YaRN
from drope_jax.transitions import Drop, PartialDrop

pytestmark = pytest.mark.usefixtures("compile_once")

LOCAL = RoPE(30.0)  # the rotation of layers with a window, where a class gives them one of their own
LONG = ORIGINAL_CONTEXT // 2  # tokens of LongRoPE's original context: the texts below are longer and shorter than that
YARN = {"rope_type": "yarn", "rope_theta": THETA, "factor": 2.0, "original_max_position_embeddings": LONG}
YARN |= {"attention_factor": 1.25}
BY_KIND = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL.theta}}
SHORT_FACTOR, LONG_FACTOR = [1.0, 1.25, 1.5, 1.75], [1.0, 2.0, 4.0, 8.0]
LONGROPE = {
  **{"rope_type": "longrope", "rope_theta": THETA, "short_factor": SHORT_FACTOR, "long_factor": LONG_FACTOR},
  "original_max_position_embeddings": LONG,
}
GEMMA = {"norm_placement": "both", "activation": "gelu_tanh", "embedding_multiplier": math.sqrt(32)}
ALTERNATING = LayerPattern((Layer(RoPE(THETA), 5), Layer(RoPE(THETA))))


SHORT = TOKENS_BT[:, :LONG]
YARNED = RoPE(THETA, YaRN(2.0, LONG, attention_factor=1.25))
KINDS = ["sliding_attention", "full_attention"]
LOCAL_AND_GLOBAL = LayerPattern((Layer(LOCAL, 5), Layer(YARNED)))

# name: the class of transformers, its settings, and what of SHAPE differs.
MODELS = {
  "olmo2": ("Olmo2", {"head_dim": 8}, {"head_dim": 8, "norm_placement": "post", "qk_norm": QKNorm()}),
  "olmo3": (
    "Olmo3",
    {"head_dim": 8, "rope_parameters": BY_KIND, "layer_types": KINDS, "sliding_window": 5},
    {"head_dim": 8, "norm_placement": "post", "qk_norm": QKNorm(), "positions": LOCAL_AND_GLOBAL},
  ),
  "phi3": (
    "Phi3",
    {"hidden_size": 48, "sliding_window": 5},
    {"d_model": 48, "positions": LayerPattern((Layer(RoPE(THETA), 5),))},
  ),
  "phi3, part of a head": (
    "Phi3",
    {
      **{"hidden_size": 48, "sliding_window": None},
      "rope_parameters": {"rope_theta": THETA, "rope_type": "default", "partial_rotary_factor": 0.67},
    },
    {"d_model": 48, "positions": RoPE(THETA, rotary_dim=8)},
  ),
  "phi3, longrope": (
    "Phi3",
    {
      **{"hidden_size": 48, "original_max_position_embeddings": LONG},
      "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.67},
    },
    {"d_model": 48, "positions": RoPE(THETA, LongRoPE((*SHORT_FACTOR,), (*LONG_FACTOR,), LONG, 2.0), rotary_dim=8)},
  ),
  "gemma2": (
    "Gemma2",
    {"sliding_window": 5, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 12.0},
    {
      **{**GEMMA, "attention_scale": 20**-0.5, "attention_softcap": 1.5, "logits_softcap": 12.0},
      "positions": ALTERNATING,
    },
  ),
  "gemma3_text": (
    "Gemma3",
    {"rope_parameters": BY_KIND, "layer_types": KINDS, "sliding_window": 5, "query_pre_attn_scalar": 12},
    {**GEMMA, "qk_norm": QKNorm("head"), "positions": LOCAL_AND_GLOBAL},
  ),
  "granite": (
    "Granite",
    {
      **{"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 4.0},
    },
    {
      **{"attention_scale": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_divisor": 4.0},
    },
  ),
}
BY_DEFAULT = ("olmo3", "phi3, longrope", "gemma2", "gemma3_text", "granite")


def first(names):
  """One of each family by default, the others as slow tests."""
  return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def stock(name):
  """A random model of the class, and what it should be here."""
  family, settings, changes = MODELS[name]
  kind = kind_of(name)
  tied = FAMILIES[kind].tie_embeddings
  settings = {"tie_word_embeddings": tied, **settings}
  if family == "Gemma3":
    config = "Gemma3Text"
    model = hugging_face_model(family, config=config, **settings)
  else:
    model = hugging_face_model(family, **settings)
  if FAMILIES[kind].norm_offset:
    with torch.no_grad():
      for weight_name, weight in model.named_parameters():
        weight.sub_(1.0 if "norm" in weight_name else 0.0)
  return model, shaped(tie_embeddings=tied, **changes)


def kind_of(name):
  return name.split(",")[0]


def load_stock(directory):
  model, unused = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype="auto", attn_implementation="eager", output_loading_info=True
  )
  assert not unused["missing_keys"] and not unused["unexpected_keys"] and not unused["mismatched_keys"]
  return model.eval()


@functools.partial(jax.jit, static_argnames="model")
def logits(params, model, tokens_BT=TOKENS_BT, beta=1.0):
  states_BTD = hidden_states(params, model, tokens_BT, logit_scale=beta).states_BTD
  return unembed(params, states_BTD, softcap=model.logits_softcap)


def assert_same_logits(found, expected, atol=1e-4):
  assert 1 < np.abs(expected).max() < 100
  np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("name", first(BY_DEFAULT))
def test_they_come_in_and_go_out_with_their_logits(name, tmp_path):
  model, expected = stock(name)
  import_model(write_folder(model, tmp_path / "source"), tmp_path / "imported")
  loaded = drope_jax.load(tmp_path / "imported")
  assert (loaded.model, loaded.context) == (expected, ORIGINAL_CONTEXT)
  logits_BTV = logits_of(model)  # three times the context
  assert_same_logits(logits(loaded.params, loaded.model), logits_BTV)
  if "longrope" in name:
    assert_same_logits(logits(loaded.params, loaded.model, SHORT), logits_of(model, SHORT))
  kind = kind_of(name)
  assert export_model(tmp_path / "imported", tmp_path / "exported", format=kind) == kind
  assert_same_logits(logits_of(load_stock(tmp_path / "exported")), logits_BTV, atol=1e-5)
  import_model(tmp_path / "exported", tmp_path / "again")
  again = drope_jax.load(tmp_path / "again")
  assert (again.model, again.context) == (loaded.model, loaded.context)
  assert_same_params(again.params, loaded.params)


CYCLES = {  # layers with a window before one without, where the config is silent
  "olmo3": (transformers.Olmo3Config, 4),
  "gemma2": (transformers.Gemma2Config, 2),
  "gemma3_text": (transformers.Gemma3TextConfig, 6),
}


@pytest.mark.parametrize("kind", CYCLES)
def test_a_config_that_is_silent_means_the_defaults_of_the_class(kind):
  make, cycle = CYCLES[kind]
  said = make(num_hidden_layers=12, vocab_size=300).to_dict()
  spoken = read_config(said, "config.json").model
  kept = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
  silent = {key: said[key] for key in (*kept, "max_position_embeddings")}
  assert read_config(silent, "config.json").model == spoken
  assert len(spoken.positions.layers) == cycle
  assert [layer.window for layer in spoken.positions.layers] == [4096] * (cycle - 1) + [None]


TRANSITIONS = {"dropped": Drop(), "in part": PartialDrop(fastest=2)}
C = 0.4
BETA = 1 + C * math.log(3)  # at three times the context


@pytest.mark.parametrize("name", first(("gemma3_text",)))
@pytest.mark.parametrize("transition", ["dropped", pytest.param("in part", marks=pytest.mark.slow)])
def test_what_a_drop_leaves_goes_out_as_the_same_class(name, transition, tmp_path):
  whole = shaped(**MODELS[name][2], tie_embeddings=FAMILIES[kind_of(name)].tie_embeddings)
  model = TRANSITIONS[transition].apply(whole, ORIGINAL_CONTEXT)
  params = write_checkpoint(model, tmp_path / "run")
  longer = {} if transition == "in part" else {"target_length": 3 * ORIGINAL_CONTEXT, "c": C}
  export_model(tmp_path / "run", tmp_path / "exported", format=kind_of(name), **longer)
  expected = logits(params, model, beta=BETA if longer else 1.0)
  assert np.abs(expected - logits(params, whole)).max() > 0.1
  stock = load_stock(tmp_path / "exported")
  assert_same_logits(logits_of(stock), expected)
  assert_same_logits(
    logits_of(stock, SHORT), expected[:, :LONG] if transition == "dropped" else logits(params, model, SHORT, 1.0)
  )


@pytest.mark.parametrize("name", MODELS)
def test_gguf_refuses_what_it_does_not_write(name):
  model = Drop().apply(shaped(**MODELS[name][2]), ORIGINAL_CONTEXT)
  if name.startswith("phi3") and model.positions is None:  # no more than a Llama without its rotation
    assert architecture_of(model) == "llama"
    model = shaped(**MODELS[name][2])
    if name == "phi3, part of a head":
      assert rotation_of(model)[1].tolist()[-2:] == [np.float32(NEUTRAL_FACTOR)] * 2
      return
  with pytest.raises(ConfigError, match=r"ModelConfig\.(\w+) (is|has) .*(format 'gguf'|llama.cpp)"):
    rotation_of(model)


@pytest.mark.parametrize("name", MODELS)
def test_the_class_is_chosen_by_what_the_model_has(name):
  kind = kind_of(name)
  model = shaped(**MODELS[name][2], tie_embeddings=FAMILIES[kind].tie_embeddings)
  mistral = name == "phi3"  # a window in every layer is all that it adds to Llama
  partial = name == "phi3, part of a head"  # which Llama can say too, unless it scales the logits of that part
  assert choose(None, model) == ("mistral" if mistral else "llama" if partial else kind)
  assert choose(kind, model) == kind
