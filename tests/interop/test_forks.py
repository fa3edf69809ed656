"""Llamas that come with code of their own: what is plain Llama is read as one, and the code is never run."""

import json

import numpy as np
import pytest
from support.pretrained import (
  ORIGINAL_CONTEXT,
  error_of,
  hugging_face_model,
  shaped,
  write_folder,
)

from drope_jax.errors import ConfigError
from drope_jax.interop.importing import open_source, read_params
from drope_jax.positions import RoPE
from drope_jax.scalings import YaRN

CODE = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoModelForCausalLM": "modeling_llama_yarn.LlamaForCausalLM"}


@pytest.fixture(scope="module")
def yarn():
  """As Yarn-Llama-2 is: its own code computes what transformers' YaRN does."""
  rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
  return hugging_face_model("Llama", rope, tie_word_embeddings=False)


@pytest.fixture
def fork(yarn, tmp_path):
  """Writes it with these keys, and code that would fail the test if it ran."""

  def write(**changes):
    folder = write_folder(yarn, tmp_path / "fork")
    for name in ("configuration_llama", "modeling_llama_yarn"):
      (folder / f"{name}.py").write_text("raise AssertionError('this code was run')\n")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": CODE} | changes
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": {**scaling, "finetuned": True}}
    config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")
    (folder / "config.json").write_text(json.dumps(config))
    return folder

  return write


@pytest.mark.parametrize("model_type", ["llama", "yarn_llama"])
def test_a_plain_llama_is_read_and_one_line_says_so(fork, yarn, model_type, caplog):
  architecture = "LlamaForCausalLM" if model_type == "llama" else "YarnLlamaForCausalLM"
  folder = fork(model_type=model_type, architectures=[architecture])
  source, description = open_source(folder)
  assert description.model == shaped(positions=RoPE(100.0, YaRN(4.0, ORIGINAL_CONTEXT)), tie_embeddings=False)
  up = read_params(source, description.model)["layers"]["up"]
  np.testing.assert_array_equal(up[1], yarn.model.layers[1].mlp.up_proj.weight.detach().T)
  (line,) = [record.getMessage() for record in caplog.records if "auto_map" in record.getMessage()]
  assert "code that is not run; keys and arrays are those of LlamaForCausalLM" in line


def test_a_type_with_keys_of_its_own_is_refused(fork, tmp_path, capsys):
  folder = fork(model_type="yarn_llama", architectures=["YarnLlamaForCausalLM"], num_memory_tokens=4)
  capsys.readouterr()
  status, error = error_of(capsys, "import", folder, tmp_path / "imported")
  assert status == 2 and "model_type is 'yarn_llama'" in error and "as it has num_memory_tokens" in error


def test_arrays_of_its_own_are_refused(fork):
  folder = fork(model_type="yarn_llama", architectures=["YarnLlamaForCausalLM"], num_hidden_layers=1)
  with pytest.raises(ConfigError, match=r"the array model.layers.1.input_layernorm.weight has no place"):
    open_source(folder)
