"""What an import refuses, in one line that names file and key, before anything is written."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from support.pretrained import (
  SHAPE,
  THETA,
  TOKENS_BT,
  assert_same_params,
  error_of,
  hugging_face_model,
  logits_of,
  params_of,
  shaped,
  torch,
  transformers,
  truncate,
  write_folder,
)
from support.tiny_run import contents

from drope_jax.errors import ConfigError
from drope_jax.interop.__main__ import main
from drope_jax.interop.hf_config import read_config
from drope_jax.interop.importing import open_source
from drope_jax.model import Decoder

gguf = pytest.importorskip("gguf")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_folder(folder, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(folder, tmp_path / "source")


CHANGED_KEYS = {
  "hidden_act": ("gelu", "allowed: silu"),
  "attention_bias": (True, "the array model.layers.0.self_attn.q_proj.bias is missing"),
  "mlp_bias": (True, "allowed: False"),
  "partial_rotary_factor": (0.5, "allowed: 1.0"),
  "quantization_config": ({"bits": 4}, "allowed: None"),
  "num_local_experts": (8, "allowed: None"),
  "model_type": ("mixtral", "allowed: smollm3, llama, mistral"),
  "architectures": (["LlamaForSequenceClassification"], "allowed with llama: LlamaForCausalLM"),
  "hidden_size": (None, "must be an integer"),
  "rms_norm_eps": (-1.0, "must be positive"),
  "num_key_value_heads": (3, "must be divisible"),
  "intermediate_size": (41, "should be (41, 32) (hidden_size 32, intermediate_size 41)"),
  "num_hidden_layers": (3, "the array model.layers.2.input_layernorm.weight is missing"),
  "vocab_size": (20, "should be (20, 32) (vocab_size 20, hidden_size 32)"),
}
WRONG_TYPES = [
  *(
    (key, value)
    for key in ("num_attention_heads", "num_hidden_layers", "max_position_embeddings")
    for value in (0, None)
  ),
  *((key, "2") for key in ("num_key_value_heads", "head_dim", "vocab_size")),
  *((key, 0) for key in ("num_key_value_heads", "head_dim")),
  *((key, "x") for key in ("rms_norm_eps", "initializer_range")),
  ("rms_norm_eps", float("nan")),
  *((key, []) for key in ("rms_norm_eps", "vocab_size")),
  *((key, None) for key in ("rms_norm_eps", "tie_word_embeddings")),
  *((key, 1) for key in ("tie_word_embeddings", "attention_bias")),
]
WRONG_WINDOWS = [
  ("use_sliding_window", "yes"),
  ("sliding_window", 0),
  ("sliding_window", "8"),
  ("max_window_layers", None),
  ("layer_types", "full_attention"),
  ("layer_types", ["full_attention"]),
  ("layer_types", ["full_attention", "linear_attention"]),
]
CHANGED_ROPE = {
  "rope_theta": ("a", "rope_parameters.rope_theta is 'a'; it must be a number"),
  "beta_fast": (0.5, "rope_parameters.beta_fast is 0.5; it must exceed beta_slow"),
  "beta_slow": ("x", "rope_parameters.beta_slow is 'x'; it must be a number"),
  "attention_factor": ([], "rope_parameters.attention_factor is []; it must be a number"),
  "original_max_position_embeddings": (
    "8",
    "original_max_position_embeddings is '8'; it must be an integer of at least",
  ),
  "rope_type": ("axial", "rope_type is 'axial'; allowed: default, linear"),
  "factor": (0.5, "rope_parameters.factor is 0.5; it must be a number of at least 1"),
  "mscale": ("x", "mscale is 'x'; it must be a number"),
  "truncate": (False, "truncate is False"),
  "partial_rotary_factor": (0.5, "partial_rotary_factor is 0.5"),
  "full_attention": ({"rope_type": "default"}, "differs by kind of layer"),
}


@pytest.mark.parametrize("key", CHANGED_KEYS)
def test_a_config_that_is_not_supported_names_its_key(key, own_folder, tmp_path, capsys):
  value, message = CHANGED_KEYS[key]
  config = json.loads((own_folder / "config.json").read_text())
  (own_folder / "config.json").write_text(json.dumps({**config, key: value}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and message in error and str(own_folder) in error
  if "the array" not in message:
    assert key in error
  assert not (tmp_path / "imported").exists()


SIZES = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim")


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_the_arrays_contradict_is_refused_before_anything_is_allocated(key, own_folder, tmp_path, capsys):
  config = json.loads((own_folder / "config.json").read_text())
  (own_folder / "config.json").write_text(json.dumps({**config, key: 10**9}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and str(own_folder) in error and "000000000" in error
  assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("key", CHANGED_ROPE)
def test_a_rotation_that_is_not_supported_names_its_key(key, own_folder, tmp_path, capsys):
  value, message = CHANGED_ROPE[key]
  config = json.loads((own_folder / "config.json").read_text())
  yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": THETA, key: value}
  (own_folder / "config.json").write_text(json.dumps({**config, "rope_parameters": yarn}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and message in error and str(own_folder) in error


def config_error(changes, where="config.json"):
  """What is said of a config of a tiny Llama with these changes; a value of `...` is a key that is missing."""
  config = hugging_face_model("Llama").config.to_dict() | changes
  with pytest.raises(ConfigError) as caught:
    read_config({key: value for key, value in config.items() if value is not ...}, where)
  return str(caught.value)


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_a_value_of_another_type_names_its_key(key, value):
  assert config_error({key: value}).startswith(f"config.json: {key} is {value!r}; it must be ")


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_size_is_named(key):
  assert config_error({key: ...}) == f"config.json: {key} is missing; it must be an integer of at least 1"


def test_other_kinds_of_values_name_their_key():
  assert config_error({"model_type": []}).startswith("config.json: model_type is []; allowed: smollm3")
  assert config_error({"rope_parameters": {"rope_type": []}}).startswith("config.json: rope_parameters.rope_type is []")
  heads = config_error({"num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": None})
  assert heads == "config.json: num_attention_heads is 64; it must be at most hidden_size (32)"


@pytest.mark.parametrize(("key", "value"), WRONG_WINDOWS)
def test_windows_of_another_type_name_their_key(key, value):
  windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None, key: value}
  qwen2 = {"model_type": "qwen2", "architectures": None, **windows}
  assert config_error(qwen2).startswith(f"config.json: {key} ")


@pytest.mark.parametrize(
  ("key", "value"), [("no_rope_layer_interval", 0), ("no_rope_layers", [1]), ("no_rope_layers", [1, 2])]
)
def test_layers_without_rope_of_another_type_name_their_key(key, value):
  assert config_error({"model_type": "smollm3", "architectures": None, key: value}).startswith(f"config.json: {key} ")


@pytest.mark.parametrize("theta", ["a", None, 0.5])
def test_a_theta_beside_the_rotation_is_named(theta):
  assert config_error({"rope_parameters": None, "rope_theta": theta}).startswith(
    f"config.json: rope_theta is {theta!r}"
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"num_experts": 8, "num_experts_per_tok": 1},
    {"num_experts": ..., "num_experts_per_tok": 1},
    {"num_experts": 1, "num_experts_per_tok": ...},
    {"num_experts": 1, "num_experts_per_tok": 1, "clip_qkv": 8.0},
  ],
)
def test_a_mixture_of_experts_is_refused(changes):
  error = config_error({"model_type": "olmoe", "architectures": None, **changes})
  assert error.startswith(("config.json: num_experts", "config.json: clip_qkv is 8.0"))


def test_keys_that_a_class_does_not_read_change_nothing(own_folder):
  before = open_source(own_folder)[1]
  config = json.loads((own_folder / "config.json").read_text())
  windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
  windows["layer_types"] = ["full_attention", "sliding_attention"]
  (own_folder / "config.json").write_text(json.dumps({**config, **windows}))
  assert open_source(own_folder)[1] == before
  model = transformers.AutoModelForCausalLM.from_pretrained(own_folder, attn_implementation="eager").eval()
  loaded = Decoder(before.model).apply({"params": params_of(own_folder)}, TOKENS_BT)
  np.testing.assert_allclose(loaded, logits_of(model), atol=1e-4)  # nor there


def test_biases_are_read_where_that_of_the_output_is_zero(tmp_path, capsys):
  model = hugging_face_model("Llama", attention_bias=True, tie_word_embeddings=True)
  write_folder(model, tmp_path / "source")
  capsys.readouterr()  # transformers tells how far it is
  status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
  assert status == 2 and "layers.0.self_attn.o_proj.bias is not zero, as attention_bias is true" in error
  with torch.no_grad():
    for layer in model.model.layers:
      layer.self_attn.o_proj.bias.zero_()
  write_folder(model, tmp_path / "source")
  _, pretrained = open_source(tmp_path / "source")
  assert pretrained.model == shaped(qkv_bias=True)
  logits_BTV = Decoder(pretrained.model).apply({"params": params_of(tmp_path / "source")}, TOKENS_BT)
  np.testing.assert_allclose(logits_BTV, logits_of(model), atol=1e-4)


def test_a_rotation_that_is_no_object(own_folder, tmp_path, capsys):
  config = json.loads((own_folder / "config.json").read_text())
  (own_folder / "config.json").write_text(json.dumps({**config, "rope_scaling": "linear"}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and "rope_scaling is 'linear'; it must be an object" in error


def test_pickles_are_refused_with_the_command_that_converts_them(llama, own_folder, tmp_path, capsys):
  torch.save(llama.state_dict(), own_folder / "pytorch_model.bin")
  (own_folder / "model.safetensors").unlink()
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and "pickle" in error
  code = re.search(r'python -c "(.*)"', error).group(1)
  exec(code, {})
  assert_same_params(params_of(own_folder.with_name("source-safetensors")), params_of_state(llama, tmp_path))


def params_of_state(model, directory):
  return params_of(write_folder(model, directory / "again"))


DAMAGE = {
  "no config": (lambda d: (d / "config.json").unlink(), "config.json: there is no such file"),
  "config is not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not readable"),
  "no weights": (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
  "weights cut off": (lambda d: truncate(d / "model.safetensors", 9000), "not a readable safetensors file"),
  "weights of zeros": (lambda d: (d / "model.safetensors").write_bytes(bytes(99)), "not a readable safetensors file"),
  "a shard is missing": (
    lambda d: (
      (d / "model.safetensors")
      .rename(d / "model.safetensors.index.json")
      .write_text('{"weight_map": {"a": "gone.safetensors"}}')
    ),
    "gone.safetensors, which is not beside it",
  ),
  "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: there is no such file; name one"),
  "a tokenizer that is none": (lambda d: (d / "tokenizer.json").write_text("{}"), "not a readable tokenizer.json"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_folder_that_is_damaged(how, own_folder, tmp_path, capsys):
  damage, message = DAMAGE[how]
  damage(own_folder)
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 1 and message in error and str(own_folder) in error
  assert not [path for path in tmp_path.iterdir() if path != own_folder]  # neither DIR nor a draft of it


def test_arrays_that_have_no_place(llama, own_folder, tmp_path, capsys):
  from safetensors.torch import load_file
  from safetensors.torch import save_file as save

  path = own_folder / "model.safetensors"
  weights = load_file(path)
  save({**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}, path)
  assert "self_attn.q_proj.bias has no place" in error_of(capsys, "import", own_folder, tmp_path / "imported")[1]
  embedding = weights["model.embed_tokens.weight"]
  save({**weights, "lm_head.weight": embedding + 1}, path)
  assert "lm_head.weight is not the embedding" in error_of(capsys, "import", own_folder, tmp_path / "imported")[1]
  save({**weights, "lm_head.weight": embedding.clone()}, path)
  assert open_source(own_folder)[1].model == SHAPE
  save({**weights, "model.norm.weight": weights["model.norm.weight"].to(torch.float64)}, path)
  assert "dtype F64; allowed: F32, F16, BF16" in error_of(capsys, "import", own_folder, tmp_path / "imported")[1]


@pytest.mark.parametrize("given", ["source", "directory", "tokenizer"])
def test_a_url_is_refused(given, folder, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  named = {"source": folder, "directory": "imported", "tokenizer": folder, given: "gs://bucket/x"}
  arguments = [named["source"], named["directory"], f"--tokenizer={named['tokenizer']}"]
  status, error = error_of(capsys, "import", *arguments)
  assert status == 2 and "gs://bucket/x: a URL" in error
  assert not list(tmp_path.iterdir())


def test_the_command_loads_to_a_mesh_or_to_the_host(folder, tmp_path, monkeypatch, capsys):
  meshes = []
  monkeypatch.setattr("drope_jax.interop.__main__.import_model", lambda *_, mesh, **__: meshes.append(mesh))
  for more in ((), ("--mesh=fsdp",), ("--mesh=fsdp=1,tensor=1",)):
    assert main(["import", str(folder), str(tmp_path / "imported"), *more]) == 0
  assert [list(mesh.devices.flat) for mesh in meshes] == [jax.devices("cpu")[:1], jax.devices(), jax.devices()]
  assert error_of(capsys, "import", folder, tmp_path / "imported", "--mesh=rows=4")[0] == 2
  assert error_of(capsys, "import", folder, tmp_path / "imported", "--mesh=tensor=4096")[0] == 2


def test_nothing_is_overwritten(folder, tmp_path, capsys):
  (tmp_path / "note").write_text("mine")
  status, error = error_of(capsys, "import", folder, tmp_path)
  assert status == 1 and f"{tmp_path}: holds something already" in error
  assert contents(tmp_path) == {"note": b"mine"}


@pytest.mark.parametrize("source", ["missing", "file.txt"])
def test_a_source_that_is_none(source, tmp_path, capsys):
  (tmp_path / "file.txt").write_text("")
  status, error = error_of(capsys, "import", tmp_path / source, tmp_path / "imported")
  assert status == 2 and "neither a folder of a Hugging Face model nor a .gguf file" in error


def test_a_folder_of_a_gguf_file_names_the_file(tmp_path, capsys):
  (tmp_path / "source").mkdir()
  (tmp_path / "source/model.gguf").write_bytes(b"GGUF")
  status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
  assert status == 1 and str(tmp_path / "source/model.gguf") in error


def test_a_checkpoint_of_ours_is_no_source_and_no_base(tmp_path, capsys):
  (tmp_path / "run/checkpoints").mkdir(parents=True)
  assert "a checkpoint of drope_jax already" in error_of(capsys, "import", tmp_path / "run", tmp_path / "imported")[1]
  (tmp_path / "adapter").mkdir()
  (tmp_path / "adapter/adapter_config.json").write_text("{}")
  more = f"--base={tmp_path / 'run'}"
  status, error = error_of(capsys, "import", tmp_path / "adapter", tmp_path / "imported", more)
  assert status == 2 and "base must be the Hugging Face folder" in error
