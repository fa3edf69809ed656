"""What we export is the same model in transformers 4 and 5: the name and place of rope settings moved between them.

Transformers 4 gets an environment of its own: it alone is installed there, with the huggingface_hub and tokenizers that
it wants; torch and the rest are those of the running environment. The environment lies in the folder that
DROPE_JAX_TEST_CACHE names (~/.cache/drope_jax_tests by default), is made once, and is used again.
"""

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import jax
import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.pretrained import ORIGINAL_CONTEXT, THETA, TOKENS_BT, logits_of, shaped, torch, transformers

from drope_jax.config import QKNorm
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.generation import generate
from drope_jax.interop.exporting import export_model
from drope_jax.model import Decoder
from drope_jax.positions import Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import NTK, PI, DynamicNTK, Llama3, YaRN

pytestmark = pytest.mark.slow
PACKAGES = ("transformers==4.56.*", "huggingface_hub>=0.34,<1.0", "tokenizers>=0.22,<0.23")
SCRIPT = Path(__file__).parents[1] / "support/transformers_4.py"
TOKENS, NEW, TEXT = TOKENS_BT[0].tolist(), 6, "10 words, or 1,024\n tokens"
LENGTH = 4 * ORIGINAL_CONTEXT
HEAD, FULL = QKNorm("head"), QKNorm("full")
PARTIAL = RoPE(THETA, pairs=2)

EXPORTS = {
  # name: changes, format
  "nope": ({"positions": None}, None),
  "nope as llama": ({"positions": None}, "llama"),
  "nope as granite": ({"positions": None}, "granite"),
  "nope, biases": ({"positions": None, "qkv_bias": True}, None),
  "nope, norm of heads": ({"positions": None, "qk_norm": HEAD}, None),
  "nope, full norm": ({"positions": None, "qk_norm": FULL, "head_dim": 8}, None),
  "rope": ({}, None),
  "pi": ({"positions": RoPE(THETA, PI(4.0))}, None),
  "ntk": ({"positions": RoPE(THETA, NTK(4.0))}, None),
  "yarn": ({"positions": RoPE(THETA, YaRN(4.0, ORIGINAL_CONTEXT, 4.0))}, None),
  "dynamic": ({"positions": RoPE(THETA, DynamicNTK(ORIGINAL_CONTEXT, 2.0))}, None),
  "llama3": ({"positions": RoPE(THETA, Llama3(4.0, ORIGINAL_CONTEXT, 0.2, 2.0))}, None),
  "partial": ({"positions": PARTIAL}, None),
  "partial, biases": ({"positions": PARTIAL, "qkv_bias": True}, None),
  "partial, norm of heads": ({"positions": PARTIAL, "qk_norm": HEAD}, None),
  "mixed": ({"positions": LayerPattern((Layer(PARTIAL), Layer(None)))}, None),
  "rnope_swa": ({"positions": rnope_swa(5, THETA), "num_layers": 4}, None),
  "window": ({"positions": LayerPattern((Layer(RoPE(THETA), 5),))}, None),
}

# Its frequencies follow the growing text there; here they are those of the whole length from the first token on.
OTHER_TEXT = ("dynamic",)


@pytest.fixture(scope="module")
def python_4():
  """The interpreter of an environment with transformers 4."""
  cache = Path(os.environ.get("DROPE_JAX_TEST_CACHE", Path.home() / ".cache/drope_jax_tests")).expanduser()
  environment = cache / f"transformers-4.56-python-{sys.version_info.major}.{sys.version_info.minor}"
  python, done = environment / "bin/python", environment / "done"
  if not done.exists():
    venv.create(environment, clear=True, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *PACKAGES]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
      last = (installed.stderr.strip().splitlines() or [""])[-1]
      if "No matching distribution" in last or "connection" in installed.stderr.lower():
        pytest.skip(f"pip cannot fetch transformers 4.56: {last}")
      pytest.fail(f"pip failed: {installed.stderr}")
    done.touch()
  # What is not installed there is taken from here, behind it.
  (own,) = (environment / "lib").glob("python*/site-packages")
  (own / "running_environment.pth").write_text("\n".join(site.getsitepackages()) + "\n")
  return python


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """Each export: its folder, and what our model computes."""
  place, made = tmp_path_factory.mktemp("exports"), {}
  for name, (changes, format) in EXPORTS.items():
    model, run, folder = shaped(**changes), place / f"run-{len(made)}", place / f"export-{len(made)}"
    params = write_checkpoint(model, run)
    export_model(run, folder, format=format, target_length=None if name == "yarn" else LENGTH)
    logits = jax.jit(Decoder(model).apply)({"params": params}, np.array([TOKENS]))[0]
    greedy = generate(params, model, [TOKENS], max_new_tokens=NEW)[0]
    made[name] = folder, np.asarray(logits), greedy, load_tokenizer(run).encode(TEXT)
  return made


@pytest.fixture(scope="module")
def in_version_4(python_4, exported, tmp_path_factory):
  place = tmp_path_factory.mktemp("transformers_4")
  models = {name: str(folder) for name, (folder, *_) in exported.items()}
  asked = {"models": models, "tokens": TOKENS, "new": NEW, "text": TEXT}
  (place / "asked.json").write_text(json.dumps(asked))
  command = [python_4, SCRIPT, place / "asked.json", place / "answered.json"]
  ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
  assert ran.returncode == 0, ran.stderr
  answered = json.loads((place / "answered.json").read_text())
  assert answered["version"].startswith("4.56.")
  return answered["answers"]


@pytest.mark.parametrize("name", EXPORTS)
def test_version_4_computes_the_same(name, exported, in_version_4):
  _, logits, greedy, ids = exported[name]
  theirs = in_version_4[name]
  np.testing.assert_allclose(np.array(theirs["logits"]), logits, atol=1e-4)
  assert theirs["ids"] == ids and (theirs["greedy"] == greedy or name in OTHER_TEXT)


@pytest.mark.parametrize("name", EXPORTS)
def test_version_5_computes_the_same(name, exported):
  folder, logits, greedy, ids = exported[name]
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager").eval()
  assert transformers.__version__.startswith("5.")
  np.testing.assert_allclose(logits_of(model, np.array([TOKENS]))[0], logits, atol=1e-4)
  asked = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
  tokens = torch.tensor([TOKENS])
  text = model.generate(tokens, attention_mask=torch.ones_like(tokens), **asked)
  assert text[0, len(TOKENS) :].tolist() == greedy or name in OTHER_TEXT
  assert transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] == ids
