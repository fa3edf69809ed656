"""Exports to GGUF in a real llama.cpp, by the binaries that node-llama-cpp's packages hold."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.pretrained import ORIGINAL_CONTEXT, THETA, shaped
from support.tokenizer_files import byte_fallback, write

import drope_jax
from drope_jax.config import QKNorm
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.generation import generate
from drope_jax.interop.exporting import export_model
from drope_jax.interop.importing import import_model
from drope_jax.model import Decoder
from drope_jax.positions import Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import YaRN

pytest.importorskip("gguf")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which installs llama.cpp, is not here"),
]
VERSION = "3.22.1"
PACKAGES = (f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/linux-x64@{VERSION}")
SCRIPT = Path(__file__).parents[1] / "support/llama_cpp.mjs"
TOKENS = np.random.default_rng(1).integers(0, 300, 3 * ORIGINAL_CONTEXT).tolist()
NEW = 32
TEXTS = ["a tokenizer of 10 words, or 1,024", "  two\nlines ümläut"]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory):
  """Runs a file: what the script writes."""
  home = tmp_path_factory.mktemp("llama_cpp")
  (home / "package.json").write_text('{"type": "module"}')
  options = ["--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"]
  installed = subprocess.run(["npm", "install", *options, *PACKAGES], cwd=home, capture_output=True, text=True)
  if installed.returncode:
    pytest.skip(f"npm cannot install {PACKAGES[0]}: {installed.stderr.strip().splitlines()[-1]}")
  shutil.copy(SCRIPT, home)

  def run(file, tokens=TOKENS, texts=TEXTS, new=NEW):
    asked = {"file": str(file), "tokens": tokens, "newTokens": new, "texts": texts}
    (home / "asked.json").write_text(json.dumps(asked))
    command = ["node", SCRIPT.name, "asked.json", "answered.json"]
    subprocess.run(command, cwd=home, check=True, capture_output=True, text=True)
    return json.loads((home / "answered.json").read_text())

  return run


MODELS = {
  "rope": {},
  "nope": {"positions": None},
  "partial": {"positions": RoPE(THETA, pairs=2)},
  "yarn": {"positions": RoPE(THETA, YaRN(4.0, ORIGINAL_CONTEXT))},
  "nope, biases": {"positions": None, "qkv_bias": True, "head_dim": 8},
  "norm, untied": {"qk_norm": QKNorm("head"), "tie_embeddings": False},
  "partial, biases": {"positions": RoPE(THETA, pairs=2), "qkv_bias": True},
  "full norm": {"qk_norm": QKNorm("full"), "head_dim": 8, "num_kv_heads": 4},
  "mixed": {"positions": LayerPattern((Layer(RoPE(THETA)), Layer(None)))},
  "rnope_swa": {"positions": rnope_swa(5, THETA), "num_layers": 4},
  "windows, partial": {"positions": LayerPattern((Layer(RoPE(THETA, pairs=2), 5), Layer(None))), "qkv_bias": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_text_beyond_the_context_are_ours(name, llama_cpp, tmp_path):
  model = shaped(**MODELS[name])
  params = write_checkpoint(model, tmp_path / "run")
  export_model(tmp_path / "run", tmp_path / "out", format="gguf", dtype="float32")
  answered = llama_cpp(tmp_path / "out/model.gguf")
  expected = jax.jit(Decoder(model).apply)({"params": params}, np.array([TOKENS]))[0]
  assert 1 < np.abs(expected).max() < 100
  np.testing.assert_allclose(answered["logits"], expected, atol=1e-4)
  assert answered["greedy"] == generate(params, model, [TOKENS], max_new_tokens=NEW)[0]
  tokenizer = load_tokenizer(tmp_path / "run")
  assert answered["texts"] == [tokenizer.encode(text) for text in TEXTS] and answered["eos"] == tokenizer.eos_id


@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.2), ("q8_0", 0.2), ("q5_0", 0.2), ("q4_0", 0.4)])
def test_smaller_types_run_with_about_the_error_of_what_they_store(dtype, share, llama_cpp, tmp_path):
  """It multiplies in them too, so its answers differ from those of the stored weights, by no more than these do."""
  model = shaped(positions=None, d_ff=64, num_heads=8, head_dim=8)
  logits_of = jax.jit(Decoder(model).apply)
  exact = logits_of({"params": write_checkpoint(model, tmp_path / "run")}, np.array([TOKENS]))[0]
  export_model(tmp_path / "run", tmp_path / "out", format="gguf", dtype=dtype)
  import_model(tmp_path / "out/model.gguf", tmp_path / "again")
  stored = logits_of({"params": drope_jax.load(tmp_path / "again").params}, np.array([TOKENS]))[0]
  theirs = np.array(llama_cpp(tmp_path / "out/model.gguf", new=1)["logits"])
  by_storing, by_computing = (float(np.sqrt(((a - stored) ** 2).mean())) for a in (exact, theirs))
  assert 0 < by_computing < 2 * by_storing < share * float(np.abs(exact).max()), (by_computing, by_storing)


def test_a_tokenizer_with_byte_fallback_is_the_same_there(llama_cpp, tmp_path):
  tokenizer = byte_fallback()
  model = shaped(positions=None, vocab_size=tokenizer.get_vocab_size())
  write_checkpoint(model, tmp_path / "run", tokenizer=False)
  write(tokenizer, tmp_path / "run", tokenizer_config={"eos_token": "</s>", "bos_token": "<s>"})
  export_model(tmp_path / "run", tmp_path / "out", format="gguf", target_length=256)
  texts = ["the river", "stone wind stone", "Ж и я 🜁", "rivers"]
  answered = llama_cpp(tmp_path / "out/model.gguf", tokens=[5, 6, 7], texts=texts, new=1)
  ours = load_tokenizer(tmp_path / "run")
  assert answered["texts"] == [ours.encode(text) for text in texts]
  assert (answered["bos"], answered["eos"]) == (ours.bos_id, ours.eos_id)
  import_model(tmp_path / "out/model.gguf", tmp_path / "again")
  again = load_tokenizer(tmp_path / "again")
  assert [again.encode(text) for text in texts] == answered["texts"]
