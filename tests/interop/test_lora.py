"""LoRA adapters in the layout of PEFT: merged on import, as their definition says and as PEFT itself computes."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.pretrained import TOKENS_BT, error_of, hugging_face_model, logits_of, torch, write_folder

import drope_jax
from drope_jax.interop.__main__ import main
from drope_jax.interop.importing import open_source, read_params
from drope_jax.model import Decoder

pytestmark = pytest.mark.usefixtures("compile_once")

RANK, ALPHA = 3, 5.0
MODULES = {  # of the first layer: rows and columns
  "self_attn.q_proj": (48, 32),
  "self_attn.v_proj": (24, 32),
  "mlp.down_proj": (32, 40),
}


def adapters(seed=0):
  """Arrays of an adapter of some modules of a Llama's first layer, under PEFT's names."""
  generator = torch.Generator().manual_seed(seed)
  arrays = {}
  for module, (rows, columns) in MODULES.items():
    start = f"base_model.model.model.layers.0.{module}"
    arrays[f"{start}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.3
    arrays[f"{start}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.3
  return arrays


def write_adapter(directory, arrays, **settings):
  directory.mkdir()
  save_file(arrays, directory / "adapter_model.safetensors", {"format": "pt"})
  config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "org/a-llama", **settings}
  (directory / "adapter_config.json").write_text(json.dumps(config))
  return directory


def merged(llama, arrays, scales, lengths=False):
  """The model with `scales[module] * B A` in its weights, by the definition."""
  model = type(llama)(llama.config).eval()
  model.load_state_dict(llama.state_dict())
  with torch.no_grad():
    for module in MODULES:
      start = f"base_model.model.model.layers.0.{module}"
      weight = model.get_submodule(f"model.layers.0.{module}").weight
      weight += scales(module) * arrays[f"{start}.lora_B.weight"] @ arrays[f"{start}.lora_A.weight"]
      if lengths:
        weight *= (arrays[f"{start}.lora_magnitude_vector"] / weight.norm(dim=1))[:, None]
  return model


def our_logits(params, model):
  return Decoder(model).apply({"params": params}, TOKENS_BT)


KINDS = {
  # settings, and the factor on B A of a module
  "lora": ({}, lambda module: ALPHA / RANK),
  "rank-stabilised": ({"use_rslora": True}, lambda module: ALPHA / math.sqrt(RANK)),
  "an alpha of its own": (
    {"alpha_pattern": {"q_proj": 2.0, r"layers\.0\.mlp\.down_proj": 7.0}},
    lambda module: {"self_attn.q_proj": 2.0, "mlp.down_proj": 7.0}.get(module, ALPHA) / RANK,
  ),
  "dora": ({"use_dora": True}, lambda module: ALPHA / RANK),
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_merged_by_their_definition(kind, llama, folder, tmp_path):
  settings, scales = KINDS[kind]
  arrays = adapters()
  if kind == "dora":
    for module, (rows, _) in MODULES.items():
      arrays[f"base_model.model.model.layers.0.{module}.lora_magnitude_vector"] = torch.linspace(0.5, 2.0, rows)
  source, description = open_source(write_adapter(tmp_path / "adapter", arrays, **settings), folder)
  expected = logits_of(merged(llama, arrays, scales, kind == "dora"))
  np.testing.assert_allclose(our_logits(read_params(source, description.model), description.model), expected, atol=1e-4)
  assert np.abs(expected - logits_of(llama)).max() > 0.1


def test_the_command_takes_the_base_that_is_given_or_named(llama, folder, tmp_path):
  arrays = adapters()
  given = write_adapter(tmp_path / "given", arrays)
  named = write_adapter(tmp_path / "named", arrays, base_model_name_or_path=str(folder))
  assert main(["import", str(given), str(tmp_path / "one"), f"--base={folder}"]) == 0
  assert main(["import", str(named), str(tmp_path / "two")]) == 0
  one, two = (drope_jax.load(tmp_path / name) for name in ("one", "two"))
  np.testing.assert_array_equal(one.params["layers"]["q"], two.params["layers"]["q"])
  expected = logits_of(merged(llama, arrays, KINDS["lora"][1]))
  np.testing.assert_allclose(our_logits(one.params, one.model), expected, atol=1e-4)


def test_arrays_that_were_trained_whole_replace_those_of_the_model(llama, folder, tmp_path):
  weight = llama.model.norm.weight.detach()
  whole = {"base_model.model.model.norm.weight": weight + 1.0}
  source, description = open_source(write_adapter(tmp_path / "adapter", whole), folder)
  np.testing.assert_array_equal(read_params(source, description.model)["final_norm"], weight + 1.0)


def test_an_embedding_has_adapters_too(llama, folder, tmp_path):
  generator = torch.Generator().manual_seed(0)
  first, second = (torch.randn(*size, generator=generator) for size in ((RANK, 300), (32, RANK)))
  start = "base_model.model.model.embed_tokens.lora_embedding"
  source, description = open_source(write_adapter(tmp_path / "a", {f"{start}_A": first, f"{start}_B": second}), folder)
  expected = llama.model.embed_tokens.weight.detach() + ALPHA / RANK * (second @ first).T
  np.testing.assert_allclose(read_params(source, description.model)["embedding"], expected, atol=1e-5)


def lacking(name):
  return {there: array for there, array in adapters().items() if name not in there}


REFUSED = {
  "another kind": (adapters(), {"peft_type": "IA3"}, "peft_type is 'IA3'; allowed: LORA"),
  "another beginning": (adapters(), {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
  "no alpha": (adapters(), {"lora_alpha": None}, "lora_alpha is None; it must be a number"),
  "half of a pair": (lacking("q_proj.lora_B"), {}, "q_proj.lora_B.weight is missing"),
  "another shape": (
    adapters() | {"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": torch.ones(RANK, 41)},
    {},
    "is of shape (3, 41); by the model it should be (3, 40)",
  ),
  "another layer": (
    {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(RANK, 32)},
    {},
    "the array base_model.model.model.layers.7.mlp.up_proj.lora_A.weight has no place",
  ),
  "an array of its own": (
    {"base_model.model.prompt": torch.ones(4)},
    {},
    "the array base_model.model.prompt has no place",
  ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(what, folder, tmp_path, capsys):
  arrays, settings, said = REFUSED[what]
  adapter = write_adapter(tmp_path / "adapter", arrays, **settings)
  capsys.readouterr()
  status, error = error_of(capsys, "import", adapter, tmp_path / "imported", f"--base={folder}")
  assert status == 2 and said in error and not (tmp_path / "imported").exists()


def test_a_base_that_is_not_there_or_not_wanted_is_said(folder, tmp_path, capsys):
  adapter = write_adapter(tmp_path / "adapter", adapters())
  capsys.readouterr()
  status, error = error_of(capsys, "import", adapter, tmp_path / "imported")
  assert status == 2 and "base_model_name_or_path is 'org/a-llama', which is not here; name it with --base" in error
  status, error = error_of(capsys, "import", folder, tmp_path / "imported", f"--base={folder}")
  assert status == 2 and "it is no adapter" in error
  both = shutil.copytree(folder, tmp_path / "both")
  shutil.copy(adapter / "adapter_config.json", both)
  status, error = error_of(capsys, "import", both, tmp_path / "imported")
  assert status == 2 and "holds adapter_config.json and model.safetensors" in error
  (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
  status, error = error_of(capsys, "import", adapter, tmp_path / "imported", f"--base={folder}")
  assert status == 2 and "adapter_model.bin is a pickle" in error


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_peft_itself_writes_and_computes_it(family, settings, tmp_path):
  """Of a fused projection the adapters are too."""
  peft = pytest.importorskip("peft")
  model = hugging_face_model(family, hidden_size=48, tie_word_embeddings=False)
  base = write_folder(model, tmp_path / "base")
  targets = ["q_proj", "k_proj", "o_proj"] if family == "Llama" else ["qkv_proj", "gate_up_proj"]
  config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=targets, **settings)
  adapted = peft.get_peft_model(model, config).eval()
  with torch.no_grad():
    for name, weight in adapted.named_parameters():
      if ".lora_" in name:
        weight.add_(torch.randn_like(weight) * 0.2)
  adapted.save_pretrained(tmp_path / "adapter")
  assert load_file(tmp_path / "adapter/adapter_model.safetensors")
  source, description = open_source(tmp_path / "adapter", base)
  ours = our_logits(read_params(source, description.model), description.model)
  np.testing.assert_allclose(ours, logits_of(adapted), atol=1e-4)
