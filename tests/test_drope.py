import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax.config import ModelConfig, QKNorm
from drope_jax.drope import best_betas, fit_temperature, insert_qk_norm, temperature
from drope_jax.errors import ConfigError
from drope_jax.model import Decoder
from drope_jax.parameters import map_specs, parameter_specs
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import YaRN
from drope_jax.transitions import drop

TOKENS_BT = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 12)))


def tiny(**changes) -> ModelConfig:
  sizes = {
    "vocab_size": 31,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "d_ff": 24,
  }
  return ModelConfig(**sizes, **changes)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params):
  return Decoder(config).apply({"params": params}, TOKENS_BT)


def make_params(config):
  rng = np.random.default_rng(0)
  return map_specs(lambda spec: jnp.asarray(rng.normal(not spec.decay, 0.3, spec.shape), jnp.float32), config)


# --- drop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [RoPE(), RoPE(scaling=YaRN(2.0, 8)), ALiBi(), rnope_swa(3)])
def test_dropping_changes_the_function_but_not_the_parameters(positions):
  config = tiny(positions=positions)
  dropped = drop(config)
  assert parameter_specs(dropped).keys() == parameter_specs(config).keys()
  params = make_params(config)
  assert not np.allclose(logits(config, params), logits(dropped, params), atol=1e-3)


def test_dropping_leaves_every_other_field():
  assert drop(tiny(positions=RoPE(1e6), qkv_bias=True)) == tiny(positions=None, qkv_bias=True)


def test_windows_of_a_pattern_stay():
  layers = drop(tiny(positions=rnope_swa(window=3))).positions.layers
  assert layers == (Layer(None, 3), Layer(None, 3), Layer(None, 3), Layer(None, None))


def test_a_pattern_without_windows_becomes_plain_nope():
  assert drop(tiny(positions=LayerPattern((Layer(RoPE()), Layer(None))))).positions is None


@pytest.mark.parametrize("positions", [None, LayerPattern((Layer(None, 4), Layer(None)))])
def test_there_must_be_something_to_drop(positions):
  with pytest.raises(ConfigError, match=r"ModelConfig.positions is .*no positional embedding to drop"):
    drop(tiny(positions=positions))


# --- QK-norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("qk_norm", "new"),
  [
    (QKNorm(), {"q_norm": (2, 4, 8), "k_norm": (2, 2, 8)}),
    (QKNorm(scope="head"), {"q_norm": (2, 8), "k_norm": (2, 8)}),
    (QKNorm(keys=False), {"q_norm": (2, 4, 8)}),
  ],
)
def test_qk_norm_adds_weights_of_one_and_touches_no_other(qk_norm, new):
  config = tiny(positions=None)
  params = make_params(config)
  normed_config, normed = insert_qk_norm(config, params, qk_norm)
  assert normed_config == tiny(positions=None, qk_norm=qk_norm)
  assert jax.tree.map(jnp.shape, normed) == jax.tree.map(jnp.shape, make_params(normed_config))
  added = {name: normed["layers"][name] for name in normed["layers"].keys() - params["layers"].keys()}
  assert {name: weight.shape for name, weight in added.items()} == new
  assert all((weight == 1).all() and weight.dtype == jnp.float32 for weight in added.values())
  assert all(normed["layers"][name] is weight for name, weight in params["layers"].items())
  assert normed["embedding"] is params["embedding"]
  assert "q_norm" not in params["layers"]  # the given tree is not changed


def test_qk_norm_takes_the_length_out_of_queries_and_keys():
  config = tiny(positions=None)
  params = make_params(config)
  longer = {**params, "layers": {**params["layers"], "q": 3 * params["layers"]["q"], "k": 2 * params["layers"]["k"]}}
  assert not np.allclose(logits(config, params), logits(config, longer), atol=1e-2)
  np.testing.assert_allclose(
    logits(*insert_qk_norm(config, params)), logits(*insert_qk_norm(config, longer)), atol=1e-4
  )
  assert not np.allclose(logits(config, params), logits(*insert_qk_norm(config, params)), atol=1e-2)


def test_a_second_qk_norm_is_refused():
  config = tiny(positions=None, qk_norm=QKNorm())
  with pytest.raises(ConfigError, match=r"ModelConfig.qk_norm is QKNorm.* already"):
    insert_qk_norm(config, make_params(config))


# --- temperature -------------------------------------------------------------------------------


def test_temperature_gives_the_values_of_the_paper():
  assert [round(temperature(s, 0.412), 3) for s in (1, 2, 4, 8)] == [1.0, 1.286, 1.571, 1.857]
  assert [round(temperature(s, 0.103), 3) for s in (2, 4, 8)] == [1.071, 1.143, 1.214]


def test_temperature_is_one_within_the_training_context():
  assert temperature(0.25, 0.412) == 1.0


@pytest.mark.parametrize("c", [-10.0, math.nan, math.inf, -math.inf])
def test_a_temperature_that_is_none_is_refused(c):
  with pytest.raises(ConfigError, match=rf"^c is {c}: beta = 1 \+ c ln 4 is .*; it must be positive$"):
    temperature(4, c)


@pytest.mark.parametrize("extension", [0, -1.0, math.nan, math.inf])
def test_an_extension_that_is_none_is_refused(extension):
  with pytest.raises(ConfigError, match=f"^extension is {extension}; it must be positive$"):
    temperature(extension, 0.1)


def test_a_coefficient_may_be_slightly_negative():
  """As a fit gives where sharper attention does not help."""
  assert temperature(4, -0.1) == pytest.approx(0.861, abs=1e-3)


def test_fit_recovers_the_coefficient_of_losses_that_have_one():
  betas = np.arange(0.9, 2.2, 0.01)
  fit = fit_temperature(lambda s, beta: (beta - 1 - 0.3 * math.log(s)) ** 2, [2, 4, 8], betas)
  assert fit.c == pytest.approx(0.3, abs=0.005)
  assert fit.best[4] == pytest.approx(1 + 0.3 * math.log(4), abs=0.01)
  assert fit.on_edge == ()
  assert set(fit.losses) == {2, 4, 8}
  assert set(fit.losses[8]) == set(betas.tolist())
  lowest = min(fit.losses[8], key=fit.losses[8].__getitem__)
  assert fit.best[8] == pytest.approx(lowest, abs=0.005)  # half the spacing of the grid


def test_fit_finds_a_coefficient_whose_betas_are_not_on_the_grid():
  betas = [0.8, 1.0, 1.1, 1.3, 1.4, 1.6, 2.0]
  fit = fit_temperature(lambda s, beta: (beta - 1 - 0.289 * math.log(s)) ** 2, [4, 8], betas)
  assert fit.c == pytest.approx(0.289)
  assert fit.best == pytest.approx({4: 1.40064, 8: 1.60096}, abs=1e-4)


def test_the_best_beta_lies_between_those_of_the_grid_but_not_beyond():
  betas = [1.0, 1.1, 1.4, 1.5]
  inside = [[(beta - best) ** 2 for beta in betas] for best in (1.12, 1.2, 1.4)]
  assert best_betas(inside, betas) == pytest.approx([1.12, 1.2, 1.4])
  ends = [[(beta - best) ** 2 for beta in betas] for best in (0.9, 1.01, 1.49, 1.6)]  # the grid's lowest is at an end
  assert best_betas(ends, betas) == pytest.approx([1.0, 1.01, 1.49, 1.5])
  assert best_betas([[0, 1, 4, 5], [5, 4, 1, 0], [1, 1, 1, 1]], betas) == pytest.approx([1.0, 1.5, 1.0])
  assert best_betas([[2, 1, 1, 2]], betas) == pytest.approx([1.25])  # level on 1.1 and 1.4


def test_fit_is_least_squares_where_no_coefficient_fits_all():
  best = {2: 1.2, 8: 1.0}
  fit = fit_temperature(lambda s, beta: abs(beta - best[s]), [2, 8], [0.8, 1.0, 1.2, 1.4])
  c = np.linalg.lstsq(np.log([[2], [8]]), np.array([0.2, 0.0]))[0][0]
  assert fit.c == pytest.approx(c)


def test_fit_says_which_optima_lie_on_the_edge_of_the_grid():
  best = {2: 0.0, 4: 1.1, 8: 9.0}
  fit = fit_temperature(lambda s, beta: abs(beta - best[s]), [2, 4, 8], [1.2, 1.0, 1.1])
  assert fit.on_edge == (2, 8)


@pytest.mark.parametrize(
  ("loss", "extensions", "betas", "message"),
  [
    (1.0, [1, 2], [1, 1.1, 1.2], "extensions are"),
    (1.0, [], [1, 1.1, 1.2], "extensions are"),
    (1.0, [2], [1, 1.1, 1.1], "at least 3"),
    (math.nan, [2], [1, 1.1, 1.2], "extension 2 and beta 1 is nan"),
  ],
)
def test_fit_refuses_what_it_cannot_fit(loss, extensions, betas, message):
  with pytest.raises(ValueError, match=message):
    fit_temperature(lambda s, beta: loss, extensions, betas)
