"""A user adds a family of Llama's shape in one file of his own: its models come in, and go out again."""

import json
import sys

import numpy as np
import pytest
import safetensors.torch
from support.pretrained import (
  ORIGINAL_CONTEXT,
  TOKENS_BT,
  assert_same_params,
  error_of,
  hugging_face_model,
  logits_of,
  shaped,
  torch,
  write_folder,
)

import drope_jax
from drope_jax.config import QKNorm
from drope_jax.errors import ConfigError
from drope_jax.interop import families
from drope_jax.interop.__main__ import main
from drope_jax.model import Decoder

# The whole extension: a class with a norm of each head, no biases, a theta and an epsilon of its own, other names.
OWN = """
from drope_jax.interop.families import Family, register

register(
  "river",
  Family(
    "RiverForCausalLM",
    qk_norm="head",
    bias=False,
    theta=100.0,
    norm_eps=1e-4,
    tie_embeddings=True,
    renamed=((".mlp.", ".feed_forward."), ("self_attn", "attention")),
  ),
)
"""


@pytest.fixture
def family(tmp_path, monkeypatch):
  (tmp_path / "river_family.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))  # forgets it again
  for module in list(sys.modules.values()):
    if getattr(module, "__name__", "").startswith("drope_jax.interop") and hasattr(module, "FAMILIES"):
      monkeypatch.setattr(module, "FAMILIES", families.FAMILIES)
  yield "--import=river_family"
  sys.modules.pop("river_family", None)


def spelled(name):
  return name.replace(".mlp.", ".feed_forward.").replace("self_attn", "attention")


@pytest.fixture
def source(tmp_path):
  """A Qwen3 under the names and with the config of the user's class; keys that have its defaults are left out."""
  model = hugging_face_model("Qwen3", tie_word_embeddings=True, rms_norm_eps=1e-4)
  write_folder(model, tmp_path / "source")
  path = tmp_path / "source/model.safetensors"
  weights = safetensors.torch.load_file(path)
  safetensors.torch.save_file({spelled(name): weight for name, weight in weights.items()}, path, {"format": "pt"})
  said = json.loads((tmp_path / "source/config.json").read_text())
  config = {**said, "model_type": "river", "architectures": ["RiverForCausalLM"]}
  for key in ("rope_parameters", "rms_norm_eps", "tie_word_embeddings"):
    del config[key]
  (tmp_path / "source/config.json").write_text(json.dumps(config))
  return model, tmp_path / "source"


def test_its_models_come_in_and_go_out(family, source, tmp_path):
  model, folder = source
  assert main([family, "import", str(folder), str(tmp_path / "imported")]) == 0
  loaded = drope_jax.load(tmp_path / "imported")
  assert loaded.model == shaped(qk_norm=QKNorm("head"), norm_eps=1e-4)
  logits_BTV = Decoder(loaded.model).apply({"params": loaded.params}, TOKENS_BT)
  np.testing.assert_allclose(logits_BTV, logits_of(model), atol=1e-4)
  assert main([family, "export", str(tmp_path / "imported"), str(tmp_path / "exported"), "--format=river"]) == 0
  config = json.loads((tmp_path / "exported/config.json").read_text())
  assert (config["model_type"], config["architectures"]) == ("river", ["RiverForCausalLM"])
  assert config["max_position_embeddings"] == ORIGINAL_CONTEXT
  weights = safetensors.torch.load_file(tmp_path / "exported/model.safetensors")
  there = safetensors.torch.load_file(folder / "model.safetensors")
  assert weights.keys() == there.keys()
  assert all(torch.equal(weights[name], there[name]) for name in there)
  assert main([family, "import", str(tmp_path / "exported"), str(tmp_path / "again")]) == 0
  again = drope_jax.load(tmp_path / "again")
  assert again.model == loaded.model
  assert_same_params(again.params, loaded.params)


def test_without_the_users_file_the_type_is_unknown(source, tmp_path, capsys):
  capsys.readouterr()
  status, error = error_of(capsys, "import", source[1], tmp_path / "imported")
  assert status == 2 and "model_type is 'river'; allowed: smollm3" in error


def test_a_family_that_is_there_is_not_replaced(family):
  families.register("own", families.Family("OwnForCausalLM"))
  families.register("own", families.Family("OwnForCausalLM"))  # the same again is no harm
  with pytest.raises(ConfigError, match="the family 'llama' is there already"):
    families.register("llama", families.Family("OtherForCausalLM"))
