"""Exports to GGUF: read back they are what they were made of; what llama.cpp cannot run is refused."""

import json

import jax
import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.pretrained import THETA, shaped
from support.tiny_run import contents, tiny_model
from support.tokenizer_files import WORDS, byte_fallback, byte_level, write

import drope_jax
from drope_jax.config import QKNorm
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.interop.__main__ import main
from drope_jax.interop.exporting import export_model
from drope_jax.interop.gguf_export import only_llama_cpp
from drope_jax.interop.importing import import_model
from drope_jax.positions import Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import PI, DynamicNTK, Llama3, NTKByParts, YaRN

gguf = pytest.importorskip("gguf")
HEAD = QKNorm("head")
SQUARE = {"head_dim": 8, "num_kv_heads": 4}
TEXT = "a tokenizer of 10 words, or 1,024\n  ümläut"

MODELS = {
  # name: changes, architecture
  "rope": ({}, "llama"),
  "untied": ({"tie_embeddings": False}, "llama"),
  "nope": ({"positions": None}, "llama"),
  "nope, biases": ({"positions": None, "qkv_bias": True, "head_dim": 8}, "qwen2"),
  "nope, norm": ({"positions": None, "qk_norm": HEAD}, "qwen3"),
  "biases": ({"qkv_bias": True, "head_dim": 8}, "qwen2"),
  "norm": ({"qk_norm": HEAD}, "qwen3"),
  "pi": ({"positions": RoPE(THETA, PI(4.0)), "qk_norm": HEAD}, "qwen3"),
  "yarn": ({"positions": RoPE(THETA, YaRN(4.0, 16)), "qkv_bias": True, "head_dim": 8}, "qwen2"),
  "llama3": ({"positions": RoPE(THETA, Llama3(4.0, 32))}, "llama"),
  "partial": ({"positions": RoPE(THETA, pairs=2)}, "llama"),
  "partial, biases": ({"positions": RoPE(THETA, pairs=2), "qkv_bias": True}, "llama"),
  "partial, pi": ({"positions": RoPE(THETA, PI(4.0), pairs=2)}, "llama"),
  "full norm": ({"qk_norm": QKNorm("full"), "tie_embeddings": False, **SQUARE}, "olmoe"),
  "mixed": ({"positions": LayerPattern((Layer(RoPE(THETA)), Layer(None)))}, "granite_swa"),
  "window": ({"positions": LayerPattern((Layer(None, 5),))}, "granite_swa"),
  "rnope_swa": ({"positions": rnope_swa(5, THETA), "num_layers": 4, "qkv_bias": True}, "granite_swa"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_as_it_was(name, tmp_path):
  changes, architecture = MODELS[name]
  model = shaped(**changes)
  params = write_checkpoint(model, tmp_path / "run")
  arguments = {"format": "gguf", "dtype": "float32", "target_length": 64}
  assert export_model(tmp_path / "run", tmp_path / "out", **arguments) == architecture
  assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.gguf", "README.md"}
  description = import_model(tmp_path / "out/model.gguf", tmp_path / "again")
  assert description.model == model and description.context == 64
  again = drope_jax.load(tmp_path / "again")
  jax.tree.map(np.testing.assert_array_equal, again.params, params)
  ours, original = load_tokenizer(tmp_path / "again"), load_tokenizer(tmp_path / "run")
  assert ours.encode(TEXT) == original.encode(TEXT)
  assert (ours.eos_id, ours.bos_id) == (original.eos_id, original.bos_id)


@pytest.mark.parametrize(
  ("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8), ("q8_0", 1 / 127), ("q5_0", 1 / 15), ("q4_0", 1 / 7)]
)
def test_matrices_are_of_the_type_asked_for_and_vectors_float32(dtype, error, tmp_path):
  model = shaped(d_ff=64, num_heads=8, head_dim=8)
  params = write_checkpoint(model, tmp_path / "run")
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format=gguf", f"--dtype={dtype}"]) == 0
  tensors = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
  kind = {"float16": "F16", "bfloat16": "BF16"}.get(dtype, dtype.upper())
  assert {name: kind for name in tensors if "norm" not in name} == {n: t for n, t in tensors.items() if "norm" not in n}
  assert {tensors[name] for name in tensors if "norm" in name} == {"F32"}
  import_model(tmp_path / "out/model.gguf", tmp_path / "again")
  again = drope_jax.load(tmp_path / "again").params
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=error * largest), again, params)
  assert f"`llama` ({dtype})" in (tmp_path / "out/README.md").read_text()


def test_rows_that_no_block_divides_are_float16(tmp_path):
  write_checkpoint(shaped(d_ff=40), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "out", format="gguf", dtype="q8_0")
  types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
  assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_down.weight"]) == ("Q8_0", "F16")


@pytest.mark.parametrize("name", ["rope", "biases", "nope", "pi", "yarn", "partial"])
def test_a_rotation_that_transformers_reads_wrongly_is_known(name):
  assert only_llama_cpp(shaped(**MODELS[name][0])) == (name not in ("rope", "biases"))


def test_the_temperature_is_part_of_the_queries(tmp_path):
  params = write_checkpoint(shaped(positions=None), tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "out", format="gguf", dtype="float32", target_length=64, c=0.4)
  import_model(tmp_path / "out/model.gguf", tmp_path / "again")
  again = drope_jax.load(tmp_path / "again").params["layers"]
  np.testing.assert_allclose(again["q"], params["layers"]["q"] * (1 + 0.4 * np.log(4)), rtol=1e-6)
  np.testing.assert_array_equal(again["k"], params["layers"]["k"])
  assert "For llama.cpp; transformers reads it wrongly" in (tmp_path / "out/README.md").read_text()


def metadata(tokenizer_kind, tmp_path, vocab_size, **config):
  write_checkpoint(tiny_model(vocab_size=vocab_size, positions=None), tmp_path / "run", tokenizer=False)
  write(tokenizer_kind, tmp_path / "run", tokenizer_config=config)
  export_model(tmp_path / "run", tmp_path / "out", format="gguf")
  fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
  return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def test_a_tokenizer_with_byte_fallback_has_its_types_and_the_order_of_its_merges(tmp_path):
  tokenizer = byte_fallback()
  said = metadata(tokenizer, tmp_path, 320, eos_token="</s>", bos_token="<s>", chat_template="{{ messages }}")
  tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
  assert said["tokenizer.ggml.model"] == "llama" and said["tokenizer.ggml.add_bos_token"] is True
  assert said["tokenizer.ggml.add_space_prefix"] is True and said["tokenizer.chat_template"] == "{{ messages }}"
  assert types[:4] == [2, 3, 3, 6] and tokens[3] == "<0x00>"
  assert len(tokens) == 320 and types[-1] == 5 and tokens[-1] == "[PAD319]"
  scores = dict(zip(tokens, said["tokenizer.ggml.scores"], strict=True))
  words = [scores[f"▁{word}"] for word in WORDS]
  assert words == sorted(words, reverse=True) and scores["▁wi"] > scores["▁wind"] > scores["w"]


def test_a_tokenizer_without_merges_has_no_cut_that_matters(tmp_path):
  said = metadata(byte_level(), tmp_path, 261, eos_token="<|im_end|>", bos_token=None)
  assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
  assert said["tokenizer.ggml.add_bos_token"] is False and "tokenizer.ggml.bos_token_id" not in said
  assert said["tokenizer.ggml.eos_token_id"] == 260


REFUSED = {
  "a window, norm": ({"positions": LayerPattern((Layer(RoPE(THETA), 5),)), "qk_norm": HEAD}, "has a window of 5"),
  "mixed, norm": (
    {"positions": LayerPattern((Layer(RoPE(THETA)), Layer(None))), "qk_norm": HEAD},
    "rotates some layers",
  ),
  "full norm, few keys": ({"qk_norm": QKNorm("full"), "head_dim": 8}, "ModelConfig.num_kv_heads is 2"),
  "full norm, not square": ({"qk_norm": QKNorm("full")}, "num_heads * head_dim is not d_model (32)"),
  "norm of queries": ({"qk_norm": QKNorm("head", keys=False)}, "normalises both queries and keys"),
  "dynamic": ({"positions": RoPE(THETA, DynamicNTK(16))}, "has no such rotation"),
  "another yarn": ({"positions": RoPE(THETA, YaRN(4.0, 16, 8.0))}, "has no such rotation"),
  "partial, norm": ({"positions": RoPE(THETA, pairs=2), "qk_norm": HEAD}, "architecture 'qwen3' of llama.cpp has no"),
  "by parts, norm": ({"positions": RoPE(THETA, NTKByParts(4.0, 16)), "qk_norm": HEAD}, "architecture 'qwen3'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_run_is_refused_in_one_line(name, tmp_path, capsys):
  changes, said = REFUSED[name]
  write_checkpoint(shaped(**changes), tmp_path / "run")
  before = contents(tmp_path)
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format=gguf"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: no architecture of llama.cpp fits: ModelConfig.") and said in line
  assert contents(tmp_path) == before


def test_a_k_quant_is_refused_with_the_tool_that_makes_it(tmp_path, capsys):
  write_checkpoint(shaped(), tmp_path / "run")
  arguments = [str(tmp_path / "run"), str(tmp_path / "out"), "--format=gguf", "--dtype=Q4_K_M"]
  assert main(["export", *arguments]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "llama-quantize model.gguf smaller.gguf Q4_K_M" in line and not (tmp_path / "out").exists()


def test_a_cut_without_a_name_is_refused(tmp_path, capsys):
  write_checkpoint(shaped(positions=None), tmp_path / "run")
  path = tmp_path / "run/tokenizer.json"
  content = json.loads(path.read_text())
  path.write_text(json.dumps({**content, "pre_tokenizer": {"type": "Whitespace"}}))
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format=gguf"]) == 2
  assert "pre_tokenizer is not known; known: gpt-2, smollm" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
