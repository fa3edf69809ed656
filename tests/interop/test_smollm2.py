"""A real model: SmolLM2-135M from its wheel, beside transformers, which reads the same file by its own loader."""

import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.pretrained import torch, transformers
from support.smollm2 import GGUF, needs_smollm2
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import drope_jax
from drope_jax import checkpoint
from drope_jax.config import ComputeConfig
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.interop.exporting import export_model
from drope_jax.interop.importing import import_model
from drope_jax.model import Decoder

pytestmark = [pytest.mark.slow, needs_smollm2]
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("smollm2") / "imported"
  import_model(GGUF, directory)
  return directory


@pytest.fixture(scope="module")
def imported(directory):
  return drope_jax.load(directory)


@pytest.fixture(scope="module")
def tokenizer(directory):
  return load_tokenizer(directory)


@pytest.fixture(scope="module")
def reference():
  """By the GGUF loader of transformers; from_pretrained would call it too, but wants the package accelerate for it."""
  config = transformers.AutoConfig.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
  model = transformers.LlamaForCausalLM(config).eval()
  tensors = load_gguf_checkpoint(str(GGUF), return_tensors=True, model_to_load=model)["tensors"]
  left_out = model.load_state_dict(tensors, strict=False)
  assert left_out.missing_keys == ["lm_head.weight"] and not left_out.unexpected_keys  # tied to the embedding
  return model


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
  """As SmolLM's does; the conversion in transformers forgets to."""
  assert tokenizer.encode("x\n    10 apples") == [104, 2367, 33, 32, 13855]


def test_losses_of_english(logits_BTV, reference, english):
  with torch.no_grad():
    expected = losses(reference(torch.from_numpy(english)).logits.numpy(), english)
  ours = losses(logits_BTV, english)
  assert ours.shape == (1, 1499) and 1 < ours.mean() < 4
  np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_greedy_text(imported, tokenizer, reference):
  prompt = tokenizer.encode(PROMPT)
  ours = drope_jax.generate(imported.params, imported.model, [prompt], max_new_tokens=32)[0]
  reference.generation_config.eos_token_id = None  # on it goes, as ours does
  asked = {"max_new_tokens": 32, "do_sample": False}
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


def test_back_out_it_is_exactly_what_it_was(directory, reference, english, tmp_path):
  export_model(directory, tmp_path / "exported")
  exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
  theirs, ours = reference.state_dict(), exported.state_dict()
  assert theirs.keys() == ours.keys()
  assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
  tokens_BT = torch.from_numpy(english[:, :256])
  with torch.no_grad():
    assert torch.equal(exported(tokens_BT).logits, reference(tokens_BT).logits)


def test_dropped_and_out(directory, imported, english, tmp_path):
  """Without its embedding, before any recalibration: the class without RoPE computes what ours does, beta included."""
  dropped, beta = drope_jax.drop(imported.model), drope_jax.temperature(2, 0.1)
  origin = checkpoint.open_step(directory).meta["origin"]
  checkpoint.save_weights(tmp_path / "dropped", dropped, imported.params, imported.context, origin)
  load_tokenizer(directory).save(tmp_path / "dropped")
  export_model(tmp_path / "dropped", tmp_path / "exported", target_length=2 * imported.context, c=0.1)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
  assert type(theirs).__name__ == "SmolLM3ForCausalLM" and theirs.config.max_position_embeddings == 16_384
  tokens_BT = english[:, :600]
  with torch.no_grad():
    expected = losses(theirs(torch.from_numpy(tokens_BT)).logits.numpy(), tokens_BT)
  apply = jax.jit(lambda params, tokens: Decoder(dropped).apply({"params": params}, tokens, logit_scale=beta))
  np.testing.assert_allclose(losses(apply(imported.params, jnp.asarray(tokens_BT)), tokens_BT), expected, atol=2e-4)
