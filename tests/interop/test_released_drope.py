"""The released DroPE models: their configs, and logits of what their code computes, made here of transformers' parts.

That code has Llama's or Qwen2's classes without their rotation, normalises queries and keys over their full width where
`attention_type` says so, and replaces the factor on q.k, 1/sqrt(h), by `softmax_scale` where the config has it.
"""

import json
from collections import OrderedDict

import jax
import numpy as np
import pytest
from safetensors.torch import save_file
from support.pretrained import (
  SHAPE,
  TOKENS_BT,
  error_of,
  hugging_face_model,
  logits_of,
  shaped,
  torch,
  transformers,
  write_tokenizer,
)

import drope_jax
from drope_jax.config import QKNorm
from drope_jax.interop.exporting import export_model
from drope_jax.interop.importing import import_model
from drope_jax.model import Decoder

NORMS = {
  None: None,
  "nope": None,
  "qk_norm_nope": QKNorm("full"),
  "q_norm_nope": QKNorm("full", keys=False),
  "k_norm_nope": QKNorm("full", queries=False),
}
FAR = np.tile(TOKENS_BT, (1, 3))  # nine times the context


class NoRotation(torch.nn.Module):
  def forward(self, x, position_ids):
    angles = torch.zeros(*position_ids.shape, SHAPE.head_dim)
    return angles.cos(), angles.sin()


def released(family, attention_type, scale, directory):
  """A random model of this kind and its folder, as its authors' code saves it."""
  settings = {"head_dim": SHAPE.head_dim, "tie_word_embeddings": True}
  model = hugging_face_model(family, **settings)
  model.model.rotary_emb = NoRotation()
  kind = attention_type or "nope"
  for layer in model.model.layers:
    attention = layer.self_attn
    if scale is not None:
      attention.scaling = scale
    for part in ("q", "k"):
      if part in kind.split("_norm")[0] and kind != "nope":
        projection = getattr(attention, f"{part}_proj")
        norm = torch.nn.RMSNorm(projection.out_features, model.config.rms_norm_eps)
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        both = OrderedDict(projection=projection, norm=norm)
        setattr(attention, f"{part}_proj", torch.nn.Sequential(both))
  named = {}
  for name, weight in model.state_dict().items():
    name = name.replace("_proj.projection.", "_proj.").replace("q_proj.norm.", "q_norm.")
    named[name.replace("k_proj.norm.", "k_norm.")] = weight.clone()
  del named["lm_head.weight"]
  directory.mkdir()
  save_file(named, directory / "model.safetensors", {"format": "pt"})
  config = model.config.to_dict()
  config |= {"model_type": f"{config['model_type']}_drope", "architectures": [f"DroPE{family}ForCausalLM"]}
  config |= {"auto_map": {"AutoConfig": "drope.DroPEConfig", "AutoModelForCausalLM": "drope.DroPEModel"}}
  config |= {} if attention_type is None else {"attention_type": attention_type}
  config |= {} if scale is None else {"softmax_scale": scale}
  (directory / "config.json").write_text(json.dumps(config))
  write_tokenizer(directory)
  return model.eval()


@pytest.mark.parametrize("scale", [None, 0.45], ids=["usual", "scaled"])
@pytest.mark.parametrize("attention_type", NORMS)
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_they_are_imported_with_their_logits(family, attention_type, scale, tmp_path, caplog):
  """`softmax_scale` is absolute: it becomes part of the weights, which is said."""
  model = released(family, attention_type, scale, tmp_path / "source")
  import_model(tmp_path / "source", tmp_path / "imported")
  loaded = drope_jax.load(tmp_path / "imported")
  assert loaded.model == shaped(positions=None, qk_norm=NORMS[attention_type], qkv_bias=family == "Qwen2")
  logits_BTV = jax.jit(Decoder(loaded.model).apply)({"params": loaded.params}, FAR)
  expected_BTV = logits_of(model, FAR)
  assert 1 < np.abs(expected_BTV).max() < 100
  np.testing.assert_allclose(logits_BTV, expected_BTV, atol=1e-4)
  beta = None if scale is None else scale * SHAPE.head_dim**0.5
  assert (f"beta {beta:.6g}" in caplog.text) if beta else "beta" not in caplog.text


def test_an_import_goes_out_to_stock_transformers(tmp_path):
  model = released("Llama", "nope", None, tmp_path / "source")
  import_model(tmp_path / "source", tmp_path / "imported")
  assert export_model(tmp_path / "imported", tmp_path / "exported") == "smollm3"
  stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", attn_implementation="eager").eval()
  np.testing.assert_allclose(logits_of(stock, FAR), logits_of(model, FAR), atol=1e-4)


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("attention_type", "pope", "attention_type is 'pope'; allowed: nope, qk_norm_nope"),
    ("softmax_scale", 0, "softmax_scale is 0.0; allowed: a positive number"),
    ("softmax_scale", "x", "softmax_scale is 'x'; it must be a number"),
  ],
)
def test_what_is_not_known_is_refused_by_name(key, value, said, tmp_path, capsys):
  released("Llama", "nope", None, tmp_path / "source")
  path = tmp_path / "source/config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
  capsys.readouterr()
  status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
  assert status == 2 and said in error
