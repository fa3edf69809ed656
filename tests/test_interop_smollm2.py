"""A real model: SmolLM2-135M from its wheel, beside transformers, which reads the same file by its own loader."""

import os
import pydoc_data.topics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained import torch, transformers

import drope_jax
from drope_jax.config import ComputeConfig
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.interop.importing import import_model
from drope_jax.model import Decoder
from experiments.fetch_smollm2 import DIRECTORY, GGUF

FILE = Path(os.environ.get("DROPE_JAX_SMOLLM2", DIRECTORY / Path(GGUF).name))
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not FILE.exists(), reason="no SmolLM2: run `python -m experiments.fetch_smollm2`, or set DROPE_JAX_SMOLLM2 to it"
  ),
]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("smollm2") / "imported"
  import_model(FILE, directory)
  return directory


@pytest.fixture(scope="module")
def imported(directory):
  return drope_jax.load(directory)


@pytest.fixture(scope="module")
def tokenizer(directory):
  return load_tokenizer(directory)


@pytest.fixture(scope="module")
def reference():
  model = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32)
  return model.eval()


@pytest.fixture(scope="module")
def english(tokenizer):
  """1,500 tokens of Python's own documentation."""
  text = "\n".join(pydoc_data.topics.topics[name] for name in ("execmodel", "exceptions", "types"))
  return np.array([tokenizer.encode(text)[:1500]])


@pytest.fixture(scope="module")
def logits_BTV(imported, english):
  return jax.jit(Decoder(imported.model).apply)({"params": imported.params}, jnp.asarray(english))


def losses(logits_BTV, tokens_BT):
  log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits_BTV)[:, :-1], axis=-1))
  return -np.take_along_axis(log_probs, tokens_BT[:, 1:, None], axis=-1)[..., 0]


def test_the_tokenizer_cuts_numbers_into_digits(tokenizer):
  """What the conversion in transformers misses, see shared knowledge of the "smollm" pre-tokenizer of llama.cpp."""
  ids = tokenizer.encode("x\n    10 apples")
  assert [tokenizer.decode([i]) for i in ids] == ["x", "\n   ", " ", "1", "0", " apples"] or ids == [
    104,
    472,
    216,
    33,
    32,
    13855,
  ]
  assert tokenizer.decode(ids) == "x\n    10 apples"


def test_losses_of_english(logits_BTV, reference, english):
  with torch.no_grad():
    expected = losses(reference(torch.from_numpy(english)).logits.numpy(), english)
  ours = losses(logits_BTV, english)
  assert ours.shape == (1, 1499) and 1 < ours.mean() < 4
  np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_greedy_text(imported, tokenizer, reference):
  prompt = tokenizer.encode(PROMPT)
  ours = drope_jax.generate(imported.params, imported.model, [prompt], max_new_tokens=32)[0]
  asked = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
  theirs = reference.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **asked)
  assert ours == theirs[0, len(prompt) :].tolist()
  assert "Paris" in tokenizer.decode(ours)


def test_bfloat16_is_near(imported, logits_BTV, english, record_property):
  decoder = Decoder(imported.model, ComputeConfig(dtype="bfloat16"))
  halved_BTV = jax.jit(decoder.apply)({"params": imported.params}, jnp.asarray(english))
  exact, halved = (jax.nn.log_softmax(logits, axis=-1) for logits in (logits_BTV, halved_BTV))
  kl_BT = np.asarray((jnp.exp(exact) * (exact - halved)).sum(-1))
  record_property("kl_to_float32", float(kl_BT.mean()))
  print(f"KL of bfloat16 to float32, nats a token: mean {kl_BT.mean():.2e}, largest {kl_BT.max():.2e}")
  assert 0 < kl_BT.mean() < 0.01
