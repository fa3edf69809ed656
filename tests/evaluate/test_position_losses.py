import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import _token_losses, _windows, position_losses, trace_losses
from drope_jax.evaluate.tasks.perplexity import blocks
from drope_jax.model import hidden_states, unembed
from drope_jax.parameters import count_parameters, map_specs
from drope_jax.positions import RoPE
from drope_jax.scalings import NTK, DynamicYaRN, YaRN
from experiments.configs import recalibrate

LENGTH = 20
CONFIG = ModelConfig(vocab_size=31, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24)
RNG = np.random.default_rng(0)
PARAMS = map_specs(lambda spec: jnp.asarray(RNG.normal(not spec.decay, 0.5, spec.shape), jnp.float32), CONFIG)
DOCUMENTS = [np.random.default_rng(i).integers(0, 31, LENGTH + 1 + i) for i in range(3)]


def plain(tokens, config=CONFIG, **inputs) -> np.ndarray:
  """Losses (T,) of predicting tokens[1:], from the logits of the whole sequence."""
  x_BTD, *_ = jax.jit(hidden_states, static_argnums=1)(PARAMS, config, jnp.asarray(tokens[:-1])[None], **inputs)
  log_p_TV = jax.nn.log_softmax(unembed(PARAMS, x_BTD)[0])
  return -np.asarray(log_p_TV)[np.arange(len(tokens) - 1), tokens[1:]]


def test_losses_are_those_of_the_model_and_the_rest_of_a_document_is_not_read():
  nll_NT = position_losses(PARAMS, Inference(CONFIG), DOCUMENTS, length=LENGTH)
  assert nll_NT.shape == (3, LENGTH) and nll_NT.dtype == np.float32
  expected = [plain(document[: LENGTH + 1]) for document in DOCUMENTS]
  np.testing.assert_allclose(nll_NT, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_batch_size_and_padding_do_not_change_losses(batch_size):
  nll_NT = position_losses(PARAMS, Inference(CONFIG), DOCUMENTS, length=LENGTH, batch_size=batch_size)
  expected = position_losses(PARAMS, Inference(CONFIG), DOCUMENTS, length=LENGTH)
  np.testing.assert_allclose(nll_NT, expected, rtol=1e-5, atol=1e-6)


def test_the_logit_scale_reaches_the_model():
  nll_NT = position_losses(PARAMS, Inference(CONFIG, logit_scale=1.5), DOCUMENTS, length=LENGTH)
  expected = plain(DOCUMENTS[0], logit_scale=1.5)
  np.testing.assert_allclose(nll_NT[0], expected, rtol=1e-4, atol=1e-5)
  assert not np.allclose(expected, plain(DOCUMENTS[0]), atol=1e-2)


def test_a_grid_of_logit_scales_shares_one_program():
  position_losses(PARAMS, Inference(CONFIG, logit_scale=1.5), DOCUMENTS, length=LENGTH)
  programs = _token_losses._cache_size()
  position_losses(PARAMS, Inference(CONFIG, logit_scale=1.6), DOCUMENTS, length=LENGTH)
  assert _token_losses._cache_size() == programs


def test_static_scalings_share_one_program_and_are_each_themselves():
  position_losses(PARAMS, Inference(CONFIG), DOCUMENTS, length=LENGTH)
  programs = _token_losses._cache_size()
  for rope in (RoPE(scaling=YaRN(4.0, 5)), RoPE(scaling=NTK(3.0)), RoPE(theta=50.0)):
    config = dataclasses.replace(CONFIG, positions=rope)
    nll_NT = position_losses(PARAMS, Inference(config), DOCUMENTS, length=LENGTH)
    np.testing.assert_allclose(nll_NT[0], plain(DOCUMENTS[0], config), rtol=1e-4, atol=1e-5)
    assert not np.allclose(nll_NT[0], plain(DOCUMENTS[0]), atol=1e-2)
  assert _token_losses._cache_size() == programs


def test_a_cropped_model_sees_only_its_window():
  crop = 8
  losses = position_losses(PARAMS, Inference(CONFIG, crop=crop), DOCUMENTS[:1], length=LENGTH)[0]
  document = DOCUMENTS[0]
  expected = np.concatenate([plain(document[:9]), *(plain(document[i : i + 9])[4:] for i in (4, 8, 12))])
  np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)
  whole = position_losses(PARAMS, Inference(CONFIG), DOCUMENTS[:1], length=LENGTH)[0]
  np.testing.assert_allclose(losses[:crop], whole[:crop], rtol=1e-4, atol=1e-5)
  assert np.abs(losses[crop:] - whole[crop:]).min() > 0


@pytest.mark.parametrize(("length", "width"), [(20, 8), (21, 8), (8, 8), (5, 8), (30, 7), (5, 1), (64, 2)])
def test_windows_score_every_position_once_with_half_a_window_of_context(length, width):
  windows = _windows(length, width)
  scored = [position for _, stop, first in windows for position in range(first, stop)]
  assert scored == list(range(length))
  for start, stop, first in windows:
    assert stop - start == min(width, length)
    assert start == 0 or first - start >= width // 2


def test_blocks_make_up_the_length():
  assert blocks(5, 2) == [(0, 2), (2, 4), (4, 5)] and blocks(4, 2) == [(0, 2), (2, 4)]
  assert blocks(3, 1) == [(0, 1), (1, 2), (2, 3)] and blocks(5, 99) == [(0, 5)]


def test_progress_moves_with_every_batch_of_every_window():
  said = []
  position_losses(PARAMS, Inference(CONFIG, crop=10), DOCUMENTS, length=LENGTH, batch_size=2, progress=said.append)
  assert said == pytest.approx([2 / 9, 1 / 3, 5 / 9, 2 / 3, 8 / 9, 1.0])


def test_memory_is_linear_in_the_length():
  compute = ComputeConfig(attention="blockwise", loss_chunk=128)

  def temporary_bytes(length: int) -> int:
    tokens_BS = jax.ShapeDtypeStruct((1, length + 1), jnp.int32)
    lowered = _token_losses.lower(PARAMS, tokens_BS, 1.0, None, CONFIG, compute, length)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(8192) < 2.5 * temporary_bytes(4096)  # scores of T x T would make it 4


def test_sixteen_thousand_tokens_of_smollm2_take_less_than_4_gib():
  """What the compiler says: weights and everything else that is in memory at one time (on a CPU, in float32)."""
  model = recalibrate.BASES["smollm2_135m"].model
  params = map_specs(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), model)
  program = trace_losses(params, Inference(model), 1, 16_384, ComputeConfig(dtype="float32")).lower().compile()
  memory = program.memory_analysis()
  assert memory.argument_size_in_bytes > 4 * count_parameters(model)
  assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 2**31  # half: it leaves room for JAX itself


@pytest.mark.parametrize(
  ("documents", "message"), [([], "documents is empty"), ([np.zeros(20, int)], r"documents\[0\] has 20 .* needs 21")]
)
def test_bad_documents_are_named(documents, message):
  with pytest.raises(ValueError, match=message):
    position_losses(PARAMS, Inference(CONFIG), documents, length=LENGTH)


def test_dynamic_scaling_takes_the_length_of_the_sequence():
  def losses(scaling):
    config = dataclasses.replace(CONFIG, positions=RoPE(scaling=scaling))
    return position_losses(PARAMS, Inference(config), DOCUMENTS, length=LENGTH)

  np.testing.assert_allclose(losses(DynamicYaRN(5)), losses(YaRN(4.0, 5)), rtol=1e-4, atol=1e-5)
