"""GGUF files as they are found: Llama 3's scaling as an array, and every type of array that the package decodes."""

import jax
import numpy as np
import pytest
from support.pretrained import (
  SHAPE,
  THETA,
  TOKENS_BT,
  error_of,
  hugging_face_model,
  logits_of,
  params_of,
  shaped,
  write_folder,
  write_gguf,
)

from drope_jax.interop.gguf_file import _decodable
from drope_jax.interop.importing import open_source
from drope_jax.interop.rope_freqs import rope_parameters_of
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR, read_rope
from drope_jax.model import Decoder
from drope_jax.positions import RoPE
from drope_jax.scalings import PI, Llama3

gguf = pytest.importorskip("gguf")
NAME = "rope_freqs.weight"


def stored(factors):
  return {NAME: (np.asarray(factors, np.float32), "F32")}


def factors_of(scaling, theta, head_dim):
  return RoPE(theta).frequencies(head_dim).omega / RoPE(theta, scaling).frequencies(head_dim).omega


RELEASED = {  # theta, head size, scaling
  "Llama 3.1": (500_000.0, 128, Llama3(8.0, 8192)),
  "Llama 3.2": (500_000.0, 64, Llama3(32.0, 8192)),
  "another context": (500_000.0, 64, Llama3(4.0, 2048)),
  "another band": (500_000.0, 128, Llama3(16.0, 8192, 1.0, 8.0)),
  "few pairs": (10_000.0, 16, Llama3(8.0, 64)),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_settings_of_a_scaling_are_found_in_its_factors(name):
  theta, head_dim, scaling = RELEASED[name]
  factors = factors_of(scaling, theta, head_dim).astype(np.float32)
  assert len({*np.round(factors, 4)}) >= 3  # some kept, some divided, some between
  found = rope_parameters_of(factors, theta, "a file")
  assert read_rope({"rope_scaling": found, "rope_theta": theta}, 1e4, 64, head_dim, "x") == RoPE(theta, scaling)


def test_a_scaling_with_nothing_between_its_bands_gives_the_same_frequencies():
  theta, head_dim = 1e6, 8
  factors = np.array([1, 1, 8, 8], np.float32)
  found = read_rope(
    {"rope_scaling": rope_parameters_of(factors, theta, "x"), "rope_theta": theta}, 1e4, 64, head_dim, ""
  )
  np.testing.assert_allclose(factors_of(found.scaling, theta, head_dim), factors, rtol=1e-6)


def test_llama_3_from_gguf_has_the_logits_of_transformers(tmp_path):
  scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
  model = hugging_face_model("Llama", {"rope_type": "llama3", **scaling}, tie_word_embeddings=True)
  factors = factors_of(Llama3(4.0, 32), THETA, SHAPE.head_dim)
  path = write_gguf(model, tmp_path / "model.gguf", raw=stored(factors))
  description = open_source(path)[1]
  assert description.model == shaped(positions=RoPE(THETA, Llama3(4.0, 32)))
  assert description == open_source(write_folder(model, tmp_path / "folder"))[1]
  logits_BTV = jax.jit(Decoder(description.model).apply)({"params": params_of(path)}, TOKENS_BT)
  np.testing.assert_allclose(logits_BTV, logits_of(model), atol=1e-4)


@pytest.mark.parametrize("kept", range(SHAPE.head_dim // 2 + 1))
def test_pairs_that_are_stopped_are_a_partial_drop(kept, llama, tmp_path):
  factors = np.where(np.arange(SHAPE.head_dim // 2) < kept, 1.0, NEUTRAL_FACTOR)
  model = open_source(write_gguf(llama, tmp_path / "model.gguf", raw=stored(factors)))[1].model
  pairs = None if kept == SHAPE.head_dim // 2 else kept
  assert model == shaped(positions=RoPE(THETA, pairs=pairs) if kept else None)


@pytest.mark.parametrize("kept", range(1, SHAPE.head_dim // 2 + 1))
def test_a_scaling_of_the_pairs_that_turn_is_found(kept, llama, tmp_path):
  factors = np.where(np.arange(SHAPE.head_dim // 2) < kept, 4.0, NEUTRAL_FACTOR)
  model = open_source(write_gguf(llama, tmp_path / "model.gguf", raw=stored(factors)))[1].model
  assert model == shaped(positions=RoPE(THETA, PI(4.0), None if kept == SHAPE.head_dim // 2 else kept))


TABLES = {
  "a part of Llama 3's": np.where(np.arange(6) < 4, factors_of(Llama3(4.0, 32), THETA, 12), NEUTRAL_FACTOR),
  "somebody's own": np.array([1.0, 2.0, 1.5, 2.0, 1.0, 8.0]),
}


@pytest.mark.parametrize("name", TABLES)
def test_factors_without_known_settings_are_read_as_they_are(name, llama, tmp_path):
  factors = TABLES[name]
  found = open_source(write_gguf(llama, tmp_path / "model.gguf", raw=stored(factors)))[1].model.positions
  assert found.pairs == (None if name == "somebody's own" else 4) and found.frequencies(12, 1).factor == 1
  expected = RoPE(THETA).frequencies(12).omega / factors * (factors < NEUTRAL_FACTOR)
  for length in (8, 4096):
    np.testing.assert_allclose(found.frequencies(12, length).omega, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("factors", "said"),
  [
    ([1, 2, NEUTRAL_FACTOR, 2, 1, 2], "stops pairs before others that turn"),
    ([1, 1, 0.5, 1, 1, 1], "holds 0.5 to 1"),
    ([1, 1, np.nan, 1, 1, 1], "holds"),
    ([1, 1, 8, 8], "has 4 entries; it must have half the head size (12)"),
  ],
)
def test_other_arrays_are_refused_by_name(factors, said, llama, tmp_path, capsys):
  path = write_gguf(llama, tmp_path / "model.gguf", raw=stored(factors))
  status, error = error_of(capsys, "import", path, tmp_path / "imported")
  assert status == 2 and NAME in error and said in error and str(path) in error


def test_two_scalings_are_refused(llama, tmp_path, capsys):
  said = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
  path = write_gguf(llama, tmp_path / "model.gguf", raw=stored([1, 1, 1, 8, 8, 8]), metadata=said)
  assert "rope.scaling.type" in error_of(capsys, "import", path, tmp_path / "imported")[1]


DECODED = [kind.name for kind in gguf.GGMLQuantizationType if _decodable(kind)]


@pytest.mark.parametrize("kind", DECODED)
def test_every_type_that_the_package_decodes_is_read(kind, tmp_path):
  """Random bytes are weights of any of them; a float of a block's scale may be no number, so its exponent is small."""
  type_ = gguf.GGMLQuantizationType[kind]
  count, size = gguf.GGML_QUANT_SIZES[type_]
  model = hugging_face_model("Llama", hidden_size=256)
  row = 256 // count * size
  raw = np.random.default_rng(0).integers(0, 256, (SHAPE.d_ff, row), dtype=np.uint8) & 0x3B
  path = write_gguf(model, tmp_path / "model.gguf", raw={"blk.1.ffn_up.weight": (raw, kind)})
  expected = gguf.dequantize(raw.view({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8)), type_)
  assert np.isfinite(expected).all() and np.ptp(expected) > 0
  np.testing.assert_array_equal(params_of(path)["layers"]["up"][1].T, expected)


def test_the_types_of_common_files_are_among_them():
  assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "Q8_0", "IQ2_XXS", "IQ4_XS", "IQ4_NL"} <= {*DECODED}
