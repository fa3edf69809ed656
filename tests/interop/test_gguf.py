"""Importing GGUF files: their weights in every type that is read, their tokenizers, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from support.pretrained import (
  SHAPE,
  THETA,
  assert_same_params,
  error_of,
  hugging_face_model,
  params_of,
  shaped,
  transformers,
  truncate,
  write_folder,
  write_gguf,
  write_tokenizer,
)

from drope_jax.config import QKNorm
from drope_jax.data.tokenizers import load_tokenizer, train_bpe
from drope_jax.errors import ConfigError
from drope_jax.interop.__main__ import main
from drope_jax.interop.gguf_tokenizer import CUTS
from drope_jax.interop.importing import import_model, open_source
from drope_jax.positions import RoPE
from drope_jax.scalings import PI, YaRN

gguf = pytest.importorskip("gguf")

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
  ("family", "changes", "expected"),
  [
    ("Llama", {"tie_word_embeddings": True}, {}),
    ("Llama", {"rope": {"rope_type": "linear", "factor": 4.0}}, {"positions": RoPE(THETA, PI(4.0))}),
    ("Llama", {"rope": YARN}, {"positions": RoPE(THETA, YaRN(4.0, 16))}),
    ("Qwen2", {"head_dim": 8}, {"qkv_bias": True, "head_dim": 8}),
    ("Qwen3", {}, {"qk_norm": QKNorm("head")}),
  ],
  ids=["llama", "linear", "yarn", "qwen2", "qwen3"],
)
def test_gguf_has_the_weights_of_the_folder(family, changes, expected, tmp_path):
  model = hugging_face_model(family, **changes)
  folder = write_folder(model, tmp_path / "folder")
  scaling = {}
  if "rope" in changes:
    scaling = {"llama.rope.scaling.type": changes["rope"]["rope_type"], "llama.rope.scaling.factor": 4.0}
    scaling["llama.rope.scaling.original_context_length"] = 16  # which llama.cpp writes for every kind
  path = write_gguf(model, tmp_path / "model.gguf", metadata=scaling)
  assert open_source(path)[1] == open_source(folder)[1]
  assert open_source(path)[1].model == shaped(**expected, tie_embeddings=changes.get("tie_word_embeddings", False))
  assert_same_params(params_of(path), params_of(folder))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_gguf_of_other_types(kind, tmp_path):
  model = hugging_face_model("Llama")
  path = write_gguf(model, tmp_path / "model.gguf", types={"attn_q": kind, "ffn_up": kind, "token_embd": kind})
  steps = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q5_0": 1 / 16, "Q5_1": 1 / 31, "Q4_0": 1 / 8, "Q4_1": 1 / 15}
  # Of the largest of a block.
  params, exact = params_of(path), params_of(write_folder(model, tmp_path / "folder"))
  assert_same_params(params, exact, atol=steps[kind] * np.abs(exact["embedding"]).max())
  assert np.abs(params["layers"]["q"] - exact["layers"]["q"]).max() > 0


def _q6_k(blocks):
  """The 256 weights of each block of 210 bytes, one by one as the format says."""
  out = []
  for block in blocks.reshape(-1, 210):
    low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
    scale = float(block[208:210].view(np.float16)[0])
    for half in range(2):
      for i in range(128):
        byte = int(low[64 * half + i % 64])
        bits = (int(high[32 * half + i % 32]) >> (2 * (i // 32))) & 3
        value = (byte >> 4 if i >= 64 else byte & 15) | bits << 4
        out.append(scale * int(scales[8 * half + i // 16]) * (value - 32))
  return np.array(out, np.float32)


def _q4_k(blocks):
  """Likewise, 144 bytes a block: eight groups of 32 with 6-bit scales and minima."""
  out = []
  for block in blocks.reshape(-1, 144):
    d, dmin = (float(x) for x in block[:4].view(np.float16))
    packed, values = block[4:16].astype(int), block[16:]
    for group in range(8):
      if group < 4:
        scale, minimum = packed[group] & 63, packed[group + 4] & 63
      else:
        scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
        minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
      nibbles = values[32 * (group // 2) : 32 * (group // 2) + 32].astype(int)
      out += [d * scale * (n >> 4 if group % 2 else n & 15) - dmin * minimum for n in nibbles]
  return np.array(out, np.float32)


@pytest.mark.parametrize(("kind", "size", "decode"), [("Q4_K", 144, _q4_k), ("Q6_K", 210, _q6_k)])
def test_gguf_of_the_k_types(kind, size, decode, tmp_path):
  """Random bytes are such weights too; the package that reads them cannot write them."""
  model = hugging_face_model("Llama", hidden_size=256)
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (SHAPE.d_ff, size), dtype=np.uint8)
  for at in (slice(0, 2), slice(2, 4)) if kind == "Q4_K" else (slice(208, 210),):
    blocks[:, at] = rng.uniform(0.001, 0.01, (SHAPE.d_ff, 1)).astype(np.float16).view(np.uint8)
  path = write_gguf(model, tmp_path / "model.gguf", raw={"blk.1.ffn_up.weight": (blocks, kind)})
  up = params_of(path)["layers"]["up"][1]
  np.testing.assert_allclose(up.T.ravel(), decode(blocks), rtol=1e-5, atol=1e-6)


def test_gguf_has_its_tokenizer(llama, tmp_path):
  write_tokenizer(tmp_path)
  theirs = json.loads((tmp_path / "tokenizer.json").read_text())
  vocab = sorted(theirs["model"]["vocab"], key=theirs["model"]["vocab"].get)
  merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in theirs["model"]["merges"]]
  said = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": vocab,
    "tokenizer.ggml.merges": merges,
    "tokenizer.ggml.token_type": [3] + [1] * (len(vocab) - 1),
    "tokenizer.ggml.eos_token_id": 0,
  }
  path = write_gguf(llama, tmp_path / "model.gguf", metadata=said)
  import_model(path, tmp_path / "imported")
  ours, original = load_tokenizer(tmp_path / "imported"), load_tokenizer(tmp_path)
  text = "x\n    10 tokens of 1024<|endoftext|>"
  assert ours.encode(text) == original.encode(text)
  assert ours.decode([0, *ours.encode(text)]) == text and (ours.eos_id, ours.bos_id) == (0, None)
  digits = [ours.decode([token]) for token in ours.encode("1024")]
  assert digits == ["1", "0", "2", "4"]


def test_the_qwen2_tokenizer_of_a_gguf_cuts_as_transformers_does(llama, tmp_path):
  path = write_gguf(
    llama, tmp_path / "model.gguf", metadata={"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "?"}
  )
  theirs = transformers.Qwen2Tokenizer(vocab={"a": 0}, merges=[])._tokenizer.pre_tokenizer
  text = "I'VE 1024 cats,\n\n   x_1 = ümläut  \tend  "
  assert tokenizers.pre_tokenizers.Sequence(CUTS["qwen2"]).pre_tokenize_str(text) == theirs.pre_tokenize_str(text)
  with pytest.raises(ConfigError, match=r"tokenizer.ggml.pre is '\?'; allowed: smollm, qwen2, llama-bpe"):
    import_model(path, tmp_path / "imported")


def test_a_tokenizer_can_be_named(llama, folder, tmp_path):
  path = write_gguf(llama, tmp_path / "model.gguf")
  assert main(["import", str(path), str(tmp_path / "imported"), f"--tokenizer={folder / 'tokenizer.json'}"]) == 0
  assert load_tokenizer(tmp_path / "imported").encode("words") == load_tokenizer(folder).encode("words")


def test_a_tokenizer_of_another_name_is_the_one_that_is_read(llama, folder, tmp_path):
  """Beside it lies one that is called as usual."""
  path = write_gguf(llama, tmp_path / "model.gguf")
  train_bpe(["others are here"], SHAPE.vocab_size, tmp_path)
  shutil.copy(folder / "tokenizer.json", tmp_path / "mine.json")
  import_model(path, tmp_path / "imported", tokenizer=tmp_path / "mine.json")
  assert (tmp_path / "imported/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("size", [0, 3, 40, 2000, -5000])
def test_a_gguf_file_that_is_cut_off(size, llama, tmp_path, capsys):
  path = write_gguf(llama, tmp_path / "model.gguf")
  truncate(path, size)
  status, error = error_of(capsys, "import", path, tmp_path / "imported")
  assert status == 2 and "not a readable GGUF file" in error and str(path) in error


GGUF_CHANGES = {
  "architecture": ({"general.architecture": "mamba"}, (), {}, "general.architecture is 'mamba'; allowed: llama"),
  "experts": ({"llama.expert_count": 8}, (), {}, "llama.expert_count is 8; that is not supported"),
  "scaling": ({"llama.rope.scaling.type": "longrope"}, (), {}, "rope.scaling.type is 'longrope'; allowed: none"),
  "half rotation": ({"llama.rope.dimension_count": 6}, (), {}, "llama.rope.dimension_count is 6"),
  "no length": ({}, ("llama.context_length",), {}, "llama.context_length is missing; it must be an integer"),
  "no embedding": ({}, ("token_embd.weight",), {}, "the array token_embd.weight is missing"),
  "too many layers": ({"llama.block_count": 10**9}, (), {}, "llama.block_count is 1000000000; there are"),
  "no layers": ({"llama.block_count": "two"}, (), {}, "llama.block_count is 'two'; it must be an integer"),
  "no heads": ({"llama.attention.head_count": 0}, (), {}, "llama.attention.head_count is 0; it must be an integer of"),
  "heads by layer": ({"llama.attention.head_count_kv": [2, 4]}, (), {}, "llama.attention.head_count_kv is [2, 4]; it"),
  "three groups": ({"llama.attention.head_count_kv": 3}, (), {}, "by llama.attention.head_count_kv (3)"),
  "no factor": (
    {"llama.rope.scaling.type": "yarn"},
    (),
    {},
    "llama.rope.scaling.factor is missing; it must be a number",
  ),
  "theta": ({"llama.rope.freq_base": 1.0}, (), {}, "llama.rope.freq_base is 1.0; it must exceed 1"),
  "no norm": ({}, ("output_norm.weight",), {}, "the array output_norm.weight is missing"),
  "unknown array": ({}, (), {"extra": (np.ones(6, np.float32), "F32")}, "extra has no place"),
  "type": ({}, (), {"blk.0.ffn_up.weight": (np.zeros((40, 32), np.int8), "I8")}, "is of type I8; allowed: F32, F16"),
  "tokenizer": ({"tokenizer.ggml.model": "llama"}, (), {}, "tokenizer.ggml.model is 'llama'; allowed: gpt2"),
}


@pytest.mark.parametrize("change", GGUF_CHANGES)
def test_a_gguf_file_that_is_not_supported_names_its_key(change, llama, tmp_path, capsys):
  metadata, without, raw, message = GGUF_CHANGES[change]
  path = write_gguf(llama, tmp_path / "model.gguf", metadata=metadata, without=without, raw=raw)
  status, error = error_of(capsys, "import", path, tmp_path / "imported")
  assert status == 2 and message in error and str(path) in error
  assert not (tmp_path / "imported").exists()
