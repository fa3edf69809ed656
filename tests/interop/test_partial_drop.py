"""A partial drop goes out to stock transformers and comes back exactly; what no class has is refused in one line."""

import dataclasses

import jax
import numpy as np
import pytest
from support.checkpoints import write_checkpoint
from support.pretrained import ORIGINAL_CONTEXT, THETA, TOKENS_BT, logits_of, shaped, transformers

import drope_jax
from drope_jax.config import QKNorm
from drope_jax.interop.__main__ import main
from drope_jax.interop.exporting import export_model
from drope_jax.interop.families import FAMILIES, Family
from drope_jax.interop.importing import import_model
from drope_jax.model import Decoder
from drope_jax.positions import ALiBi, Embedding, Layer, LayerPattern, RoPE
from drope_jax.rotation import Frequencies
from drope_jax.scalings import Scaling, YaRN
from drope_jax.transitions import PartialDrop

KEPT = RoPE(THETA, pairs=2)
PARTIAL = {
  # name: changes, format
  "llama": ({"positions": KEPT}, None),
  "smollm3": ({"positions": LayerPattern((Layer(KEPT), Layer(None)))}, None),
  "mistral": ({"positions": LayerPattern((Layer(KEPT, 5),))}, None),
  "qwen2": ({"positions": KEPT, "qkv_bias": True}, None),
  "qwen3": ({"positions": KEPT, "qk_norm": QKNorm("head")}, None),
  "olmoe": ({"positions": KEPT, "qk_norm": QKNorm("full"), "head_dim": 8}, None),
  "granite": ({"positions": KEPT}, "granite"),
}


def stock(directory):
  model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation="eager")
  return model.eval()


@pytest.mark.parametrize("name", PARTIAL)
def test_transformers_computes_it_at_and_beyond_the_context(name, tmp_path):
  changes, format = PARTIAL[name]
  model = shaped(**changes)
  params = write_checkpoint(model, tmp_path / "run")
  assert export_model(tmp_path / "run", tmp_path / "exported", format=format) == name
  theirs = stock(tmp_path / "exported")
  whole = dataclasses.replace(model, positions=RoPE(THETA) if name == "llama" else None)
  for length in (ORIGINAL_CONTEXT, 3 * ORIGINAL_CONTEXT):
    tokens_BT = TOKENS_BT[:, :length]
    expected = jax.jit(Decoder(model).apply)({"params": params}, tokens_BT)
    np.testing.assert_allclose(logits_of(theirs, tokens_BT), expected, atol=1e-4)
  other = jax.jit(Decoder(whole).apply)({"params": params}, tokens_BT)
  assert np.abs(other - expected).max() > 0.01
  import_model(tmp_path / "exported", tmp_path / "again")
  again = drope_jax.load(tmp_path / "again")
  assert again.model == model and again.context == ORIGINAL_CONTEXT
  jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_what_a_partial_drop_leaves_goes_out_with_a_scaling_of_the_rest(tmp_path):
  """The transition's own result, and YaRN on the pairs that it keeps."""
  dropped = PartialDrop().apply(shaped(), ORIGINAL_CONTEXT)
  assert isinstance(dropped.positions, RoPE) and dropped.positions.pairs is not None
  scaled = dataclasses.replace(dropped, positions=dropped.positions.rescaled(YaRN(4.0, ORIGINAL_CONTEXT)))
  for name, model in (("dropped", dropped), ("scaled", scaled)):
    params = write_checkpoint(model, tmp_path / name)
    export_model(tmp_path / name, tmp_path / f"{name}-out", target_length=3 * ORIGINAL_CONTEXT)
    expected = jax.jit(Decoder(model).apply)({"params": params}, TOKENS_BT)
    np.testing.assert_allclose(logits_of(stock(tmp_path / f"{name}-out")), expected, atol=1e-4)


@dataclasses.dataclass(unsafe_hash=True)
class Halved(Embedding):
  """A user's own embedding: frequencies of the fastest half."""

  def frequencies(self, head_dim, length=None):
    return Frequencies(np.where(np.arange(head_dim // 2) < head_dim // 4, 1.0, 0.0), 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class Squeezed(Scaling):
  """A user's own scaling."""

  def frequencies(self, theta, head_dim, length=None):
    return Frequencies(theta ** -np.linspace(0, 0.5, head_dim // 2), 1.0)


REFUSED = {
  "a user's embedding": (Halved(), None, "Halved()"),
  "a user's scaling": (RoPE(THETA, Squeezed()), None, "Squeezed()"),
  "a bias": (ALiBi(), None, "adds a bias"),
  "a class without it": (KEPT, "rigid", "rotates 2 pairs of a head; format 'rigid' rotates all or none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_class_has_is_refused_in_one_line(name, tmp_path, capsys, monkeypatch):
  positions, format, said = REFUSED[name]
  monkeypatch.setitem(FAMILIES, "rigid", Family("RigidForCausalLM", stops_pairs=False))
  write_checkpoint(shaped(positions=positions), tmp_path / "run")
  arguments = [] if format is None else [f"--format={format}"]
  assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported"), *arguments]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ModelConfig.positions ") and said in line
  assert not (tmp_path / "exported").exists()
