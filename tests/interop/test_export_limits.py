"""An export for N tokens works at N: the limits of the model that it was made of do not stay in its files."""

import json

import pytest
from support.checkpoints import write_checkpoint
from support.pretrained import hugging_face_model, shaped, torch, transformers, write_folder
from support.tokenizer_files import byte_level, write

from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.interop.exporting import _warn_of_length, export_model
from drope_jax.interop.importing import import_model
from drope_jax.positions import RoPE
from drope_jax.scalings import PI

LENGTH = 96


def folder_with_limits(directory):
  model = hugging_face_model("Llama", tie_word_embeddings=True)
  write_folder(model, directory)
  roles = json.loads((directory / "tokenizer_config.json").read_text())
  limited = {**roles, "model_max_length": 16, "max_len": 16}
  (directory / "tokenizer_config.json").write_text(json.dumps(limited))
  generation = {"max_length": 20, "eos_token_id": [0, 5], "temperature": 0.7, "do_sample": False}
  (directory / "generation_config.json").write_text(json.dumps(generation))
  return directory


@pytest.mark.parametrize("format", ["llama", "smollm3"])
def test_stock_generate_works_at_the_length_of_the_export(format, tmp_path):
  import_model(folder_with_limits(tmp_path / "source"), tmp_path / "imported")
  export_model(tmp_path / "imported", tmp_path / "exported", format=format, target_length=LENGTH)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
  assert model.config.max_position_embeddings == tokenizer.model_max_length == LENGTH
  ids = tokenizer("token" * 40, truncation=True, return_tensors="pt")["input_ids"]
  assert ids.shape[1] > 30 and ids.shape[1] == len(tokenizer("token" * 40)["input_ids"])
  text = model.generate(ids, eos_token_id=None)
  assert text.shape[1] == LENGTH  # as far as its own max_length goes
  assert model.generation_config.eos_token_id == [0, 5] and model.config.eos_token_id == [0, 5]
  assert model.generation_config.temperature == 0.7


@pytest.mark.parametrize(
  ("positions", "length", "c", "said"),
  [
    (RoPE(), LENGTH, None, "target_length is 96"),
    (RoPE(), None, None, ""),
    (RoPE(scaling=PI(6.0)), LENGTH, None, ""),
    (RoPE(pairs=2), LENGTH, None, ""),
    (None, LENGTH, None, "beta is 1"),
    (None, None, None, ""),
    (None, LENGTH, 0.1, ""),
  ],
)
def test_a_length_for_which_nothing_was_done_is_announced(positions, length, c, said, caplog):
  _warn_of_length(shaped(positions=positions), 16, length or 16, c)
  assert [said in record.getMessage() for record in caplog.records] == [True] * bool(said)


def test_a_source_without_limits_gets_none(tmp_path):
  write_checkpoint(shaped(positions=None), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "exported", target_length=LENGTH)
  assert not (tmp_path / "exported/generation_config.json").exists()
  assert "model_max_length" not in json.loads((tmp_path / "exported/tokenizer_config.json").read_text())


def test_roles_and_truncation_go_out_as_they_came_in(tmp_path):
  """No BOS stays no BOS, although `<s>` is a word; several EOS of the model's config stay several."""
  model = hugging_face_model("Llama", tie_word_embeddings=True, bos_token_id=None, eos_token_id=[260, 258])
  model.save_pretrained(tmp_path / "source")
  (tmp_path / "source/generation_config.json").unlink()
  tokenizer = byte_level()
  tokenizer.enable_truncation(8)
  write(tokenizer, tmp_path / "source", tokenizer_config={"bos_token": None, "eos_token": "<|endoftext|>"})
  import_model(tmp_path / "source", tmp_path / "imported")
  export_model(tmp_path / "imported", tmp_path / "exported")
  ours = load_tokenizer(tmp_path / "imported")
  assert ours.bos_id is None and ours.eos_ids == (258, 260)
  config = json.loads((tmp_path / "exported/config.json").read_text())
  assert config["bos_token_id"] is None and config["eos_token_id"] == [258, 260]
  for directory in ("imported", "exported"):
    assert json.loads((tmp_path / directory / "tokenizer.json").read_text())["truncation"] is None
  stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
  assert stock.generation_config.eos_token_id == [258, 260]
  assert transformers.AutoTokenizer.from_pretrained(tmp_path / "exported").bos_token_id is None
  assert torch.is_tensor(stock.lm_head.weight)
