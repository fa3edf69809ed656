"""Which files of a folder hold the weights, under which names, and what is no file of weights at all."""

import json

import numpy as np
import pytest
import safetensors.torch
from support.pretrained import (
  assert_same_params,
  error_of,
  hugging_face_model,
  logits_of,
  params_of,
  torch,
  transformers,
  write_folder,
  write_gguf,
)

from drope_jax.errors import ConfigError
from drope_jax.interop.importing import open_source

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"


def halved(weights):
  return {name: weight * 0.5 for name, weight in weights.items()}


def test_a_single_file_counts_before_an_index(tmp_path, caplog):
  """As for transformers, whatever the shards hold."""
  model = hugging_face_model("Llama", tie_word_embeddings=False)
  write_folder(model, tmp_path / "source", max_shard_size="30KB")
  assert (tmp_path / "source/model.safetensors.index.json").exists()
  halves = halved(model.state_dict())
  safetensors.torch.save_file(halves, tmp_path / "source/model.safetensors", {"format": "pt"})
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source", attn_implementation="eager")
  assert_same_params(params_of(tmp_path / "source"), params_of(write_folder(theirs, tmp_path / "theirs")))
  assert "model.safetensors: read" in caplog.text and "model.safetensors.index.json" in caplog.text


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_weights_are_found_under_either_name(kept, tmp_path):
  model = hugging_face_model("Llama", tie_word_embeddings=True)
  write_folder(model, tmp_path / "source")
  expected = params_of(tmp_path / "source")
  weights = {n: w.clone() for n, w in model.state_dict().items() if "embed_tokens" not in n and "lm_head" not in n}
  weights[kept] = model.state_dict()["lm_head.weight"].clone()
  safetensors.torch.save_file(weights, tmp_path / "source/model.safetensors", {"format": "pt"})
  assert_same_params(params_of(tmp_path / "source"), expected)
  stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source", attn_implementation="eager").eval()
  np.testing.assert_array_equal(logits_of(stock), logits_of(model))


def test_rows_beyond_the_vocabulary_are_refused_by_name(tmp_path, capsys):
  """As by transformers, which would not load them either."""
  model = hugging_face_model("Llama", tie_word_embeddings=False)
  write_folder(model, tmp_path / "source")
  path = tmp_path / "source/model.safetensors"
  weights = safetensors.torch.load_file(path)
  for name in ("model.embed_tokens.weight", "lm_head.weight"):
    longer = {**weights, name: torch.cat([weights[name], torch.zeros(4, 32)])}
    safetensors.torch.save_file(longer, path, {"format": "pt"})
    capsys.readouterr()
    status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
    assert status == 2 and f"{name} is of shape (304, 32); by the config it should be (300, 32)" in error
  tied = hugging_face_model("Llama", tie_word_embeddings=True)
  write_folder(tied, tmp_path / "tied")
  weights = safetensors.torch.load_file(tmp_path / "tied/model.safetensors")
  head = torch.cat([weights["model.embed_tokens.weight"], torch.zeros(4, 32)])
  safetensors.torch.save_file({**weights, "lm_head.weight": head}, tmp_path / "tied/model.safetensors")
  capsys.readouterr()
  assert "lm_head.weight" in error_of(capsys, "import", tmp_path / "tied", tmp_path / "imported")[1]


@pytest.mark.parametrize(
  "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_pointer_of_git_lfs_is_named(name, tmp_path, capsys):
  write_folder(hugging_face_model("Llama", tie_word_embeddings=True), tmp_path / "source")
  (tmp_path / "source" / name).write_text(POINTER)
  capsys.readouterr()
  status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
  assert status == 1 and name in error and "git lfs pull" in error
  assert not (tmp_path / "imported").exists()


def test_a_pointer_in_place_of_a_shard_or_a_gguf_file_is_named(tmp_path, capsys):
  pytest.importorskip("gguf")
  model = hugging_face_model("Llama", tie_word_embeddings=False)
  write_folder(model, tmp_path / "source", max_shard_size="30KB")
  shard = sorted((tmp_path / "source").glob("model-*.safetensors"))[1]
  gguf = write_gguf(model, tmp_path / "model.gguf")
  for path, source in ((shard, tmp_path / "source"), (gguf, gguf)):
    path.write_text(POINTER)
    capsys.readouterr()
    status, error = error_of(capsys, "import", source, tmp_path / "imported")
    assert status == 1 and path.name in error and "git lfs pull" in error


@pytest.mark.parametrize("weight_map", [None, 3, [], {"model.norm.weight": 5}, {}])
def test_an_index_that_is_none_is_named(weight_map, tmp_path, capsys):
  write_folder(hugging_face_model("Llama", tie_word_embeddings=True), tmp_path / "source")
  (tmp_path / "source/model.safetensors").unlink()
  (tmp_path / "source/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  capsys.readouterr()
  status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
  assert status == 1 and "model.safetensors.index.json" in error


def test_weights_of_another_name_are_refused(tmp_path):
  """A key that transformers reads: the files of weights under a name of their own."""
  write_folder(hugging_face_model("Llama", tie_word_embeddings=True), tmp_path)
  config = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
  with pytest.raises(ConfigError, match=r"transformers_weights is 'other\.safetensors'"):
    open_source(tmp_path)
