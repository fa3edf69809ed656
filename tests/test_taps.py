"""Looking inside a model: what is tapped is what the layers compute, and asking for nothing computes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import POSITION_IDS, assert_close, random_params, random_tokens, tiny

from drope_jax.cache import init_cache
from drope_jax.config import ComputeConfig
from drope_jax.model import TAPS, Taps, hidden_states
from drope_jax.positions import RoPE
from drope_jax.rotation import rotate

ALL = Taps((0, 1), tuple(TAPS))


def seen(config, tokens, taps=ALL, **inputs):
  with jax.disable_jit():
    return hidden_states(random_params(config), config, tokens, taps=taps, **inputs)


@POSITION_IDS
def test_attention_is_the_tapped_weights_times_the_tapped_values(positions):
  config, tokens = tiny(positions=positions), random_tokens(2, 8)
  taps = seen(config, tokens, logit_scale=1.3).taps
  np.testing.assert_allclose(taps["weights"].sum(-1), 1, atol=1e-6)
  assert (np.triu(np.asarray(taps["weights"]), 1) == 0).all()
  values = np.repeat(taps["values"], config.num_heads // config.num_kv_heads, axis=3)
  mixed = np.einsum("LBHTS,LBSHh->LBTHh", taps["weights"], values)
  o = random_params(config)["layers"]["o"]
  assert_close(taps["attention"], np.einsum("LBTHh,LHhD->LBTD", mixed, o))


def test_the_residual_stream_adds_up():
  config, tokens = tiny(), random_tokens(2, 8)
  taps = seen(config, tokens).taps
  assert_close(taps["residual"][0], random_params(config)["embedding"][tokens])
  assert_close(taps["residual"][1], taps["residual"][0] + taps["attention"][0] + taps["mlp"][0])


def test_queries_are_tapped_as_they_meet_the_keys():
  tokens = random_tokens(1, 8)
  plain, rotated = (
    seen(tiny(positions=p), tokens, Taps((0,), ("queries",))).taps["queries"] for p in (None, RoPE(100.0))
  )
  assert_close(rotated[0], rotate(plain[0], RoPE(100.0).rotation(jnp.arange(8)[None], tiny().head_dim)))


@pytest.mark.parametrize("compute", [ComputeConfig(), ComputeConfig(remat="full")])
def test_taps_are_of_the_layers_asked_for_and_change_nothing(compute):
  config, tokens, params = tiny(num_layers=3), random_tokens(2, 8), random_params(tiny(num_layers=3))
  run = jax.jit(hidden_states, static_argnames=("config", "compute", "taps"))
  tapped = run(params, config, tokens, compute=compute, taps=Taps((2, 0), ("weights", "mlp")))
  every = run(params, config, tokens, compute=compute, taps=Taps((0, 1, 2), ("weights", "mlp")))
  assert set(tapped.taps) == {"weights", "mlp"}
  for name, values in tapped.taps.items():
    assert_close(values, every.taps[name][np.array([2, 0])])
  assert_close(tapped.states_BTD, run(params, config, tokens, compute=compute).states_BTD)


def test_without_taps_no_weights_are_computed():
  config = tiny()
  traced = jax.make_jaxpr(
    lambda params, tokens: hidden_states(params, config, tokens, compute=ComputeConfig(attention="blockwise"))
  )(random_params(config), random_tokens(1, 40))
  assert not [v for eqn in traced.eqns for v in eqn.outvars if v.aval.shape[-2:] == (40, 40)]


def test_with_a_cache_the_keys_of_all_slots_are_tapped():
  config, tokens = tiny(), random_tokens(1, 8)
  whole = seen(config, tokens, Taps((1,), ("weights",))).taps["weights"]
  first = seen(config, tokens[:, :5], cache=init_cache(config, 1, 8), taps=Taps((), ()), length=8)
  rest = seen(config, tokens[:, 5:], Taps((1,), ("weights",)), cache=first.cache, length=8)
  assert_close(rest.taps["weights"], whole[:, :, :, 5:])


@pytest.mark.parametrize("taps", [Taps((2,), ("weights",)), Taps((0,), ("wieghts",))])
def test_taps_that_are_not_there_are_refused(taps):
  with pytest.raises(ValueError, match="names are of residual, queries"):
    seen(tiny(), random_tokens(1, 4), taps)


def test_no_layer_has_no_taps():
  assert seen(tiny(), random_tokens(1, 4), Taps((), ("weights",))).taps == {}


def test_taps_are_differentiable():
  config, tokens, params = tiny(), random_tokens(1, 6), random_params(tiny())

  def diagonal(params):
    weights = hidden_states(params, config, tokens, taps=Taps((0,), ("weights",))).taps["weights"]
    return jnp.trace(weights[0, 0, 0])

  gradient = jax.grad(diagonal)(params)["layers"]
  assert np.abs(gradient["q"][0]).max() > 1e-4
  assert (np.asarray(gradient["q"][1]) == 0).all()  # a later layer has no part in it


@pytest.mark.parametrize("scan_layers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_forward_mode_is_the_directional_derivative(scan_layers):
  config, tokens, params = tiny(), random_tokens(1, 6), random_params(tiny())
  compute = ComputeConfig(derivatives="jax", scan_layers=scan_layers)

  def summed(params):
    states = hidden_states(params, config, tokens, compute=compute).states_BTD
    return (states * jnp.cos(jnp.arange(states.size).reshape(states.shape))).sum()

  direction = jax.tree.map(jnp.ones_like, params)
  _, along = jax.jvp(summed, (params,), (direction,))
  gradient = jax.grad(summed)(params)
  expected = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
  np.testing.assert_allclose(along, expected, rtol=1e-4)
  _, linear = jax.linearize(summed, params)
  np.testing.assert_allclose(linear(direction), along, rtol=1e-5)
