"""What other families add to a Llama-shaped model: each field by its definition, in every loss and in generation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import assert_close, random_params, random_tokens, tiny
from support.tiny_run import losses as recorded
from support.tiny_run import tiny_corpus, tiny_run, with_model

from drope_jax.config import MeshConfig, QKNorm
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.generation import generate
from drope_jax.loss import summed_token_losses, token_losses
from drope_jax.metrics import flops_per_token
from drope_jax.model import Taps, hidden_states
from drope_jax.parameters import map_specs, parameter_specs
from drope_jax.sharding import make_mesh, named_sharding
from drope_jax.train import train

ALL = dict(
  activation="gelu_tanh",
  attention_scale=0.9,
  attention_softcap=0.6,
  logits_softcap=1.5,
  embedding_multiplier=3.0,
  residual_multiplier=0.7,
  logits_divisor=0.4,
)


def norm(x, weight):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def cap(x, at):
  return at * np.tanh(x / at)


def by_definition(params, config, tokens_T):
  """Logits (T, V) of ALL without positions, in float64; H = 4, K = 2."""
  params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
  x = params["embedding"][tokens_T] * 3.0
  for i in range(config.num_layers):
    w = {name: stack[i] for name, stack in params["layers"].items()}
    y = norm(x, w["attention_norm"]) if "attention_norm" in w else x
    q, k, v = (np.einsum("TD,DHh->HTh", y, w[name]) for name in "qkv")
    logits = cap(0.9 * np.einsum("HTh,HSh->HTS", q, k.repeat(2, 0)), 0.6)
    logits[:, np.triu(np.ones(logits.shape[1:], bool), 1)] = -np.inf
    mix = np.exp(logits - logits.max(-1, keepdims=True))
    mix = mix / mix.sum(-1, keepdims=True)
    out = np.einsum("HTS,HSh,HhD->TD", mix, v.repeat(2, 0), w["o"])
    x = x + 0.7 * (norm(out, w["attention_post_norm"]) if "attention_post_norm" in w else out)
    y = norm(x, w["mlp_norm"]) if "mlp_norm" in w else x
    gate = y @ w["gate"]
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    out = (gelu * (y @ w["up"])) @ w["down"]
    x = x + 0.7 * (norm(out, w["mlp_post_norm"]) if "mlp_post_norm" in w else out)
  return cap(norm(x, params["final_norm"]) @ params["embedding"].T / 0.4, 1.5)


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
def test_a_model_with_all_of_them_is_their_definition(placement):
  config = tiny(positions=None, norm_placement=placement, **ALL)
  params, tokens_BT = random_params(config), random_tokens(1, 8)

  @jax.jit
  def losses(params, tokens_BT):
    x_BTD, *_ = hidden_states(params, config, tokens_BT)
    return token_losses(params, x_BTD, jnp.roll(tokens_BT, -1, 1), softcap=1.5).nll_BT

  nll_BT = losses(params, tokens_BT)
  expected_TV = by_definition(params, config, np.asarray(tokens_BT[0]))
  log_p_TV = expected_TV - np.log(np.exp(expected_TV).sum(-1, keepdims=True))
  assert_close(nll_BT[0], -log_p_TV[np.arange(8), np.roll(tokens_BT[0], -1)])
  assert np.abs(expected_TV).max() > 1  # the cap matters


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
def test_the_placement_says_which_norms_there_are(placement):
  config = tiny(norm_placement=placement, qk_norm=QKNorm())
  names = {name for name in parameter_specs(config)["layers"] if "norm" in name} - {"q_norm", "k_norm"}
  expected = {"pre": ("norm",), "post": ("post_norm",), "both": ("norm", "post_norm")}[placement]
  assert names == {f"{sublayer}_{name}" for sublayer in ("attention", "mlp") for name in expected}
  with jax.set_mesh(mesh := make_mesh(MeshConfig())):
    map_specs(lambda spec: named_sharding(mesh, spec.dimensions), config)  # the table knows them all
  assert flops_per_token(config, 10) == flops_per_token(tiny(), 10)  # norms do not count


def test_taps_are_what_is_added_to_the_residual_stream():
  config = tiny(norm_placement="both", residual_multiplier=0.7)
  params, names = random_params(config), ("residual", "attention", "mlp")
  tapped = jax.jit(functools.partial(hidden_states, config=config, taps=Taps((0, 1), names)))
  taps = tapped(params, tokens_BT=random_tokens(1, 5)).taps
  assert_close(taps["residual"][0] + taps["attention"][0] + taps["mlp"][0], taps["residual"][1])


def test_the_summed_loss_has_the_gradient_of_capped_logits():
  rng = np.random.default_rng(0)
  weight, x = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((11, 6), (2, 5, 6)))
  targets = jnp.asarray(rng.integers(0, 11, (2, 5)))

  def total(params, x, derivatives):
    settings = {"z_loss": 0.1, "chunk": 3, "derivatives": derivatives, "softcap": 0.8}
    return summed_token_losses(params, x, targets, jnp.ones((2, 5)), **settings).total

  gradient = jax.jit(jax.value_and_grad(total, (0, 1)), static_argnums=2)
  own, expected = (gradient({"embedding": weight}, x, how) for how in ("own", "jax"))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), own, expected)


CAPPED = tiny(logits_softcap=1e-3)  # close to zero: all tokens are equally likely, whatever the weights


@pytest.mark.parametrize("cap", [1e-3, None])
def test_a_cap_on_the_logits_is_in_evaluation(cap):
  config = dataclasses.replace(CAPPED, logits_softcap=cap)
  losses = position_losses(random_params(config), Inference(config), [np.asarray(random_tokens(1, 9)[0])], length=8)
  assert (np.abs(losses - np.log(config.vocab_size)).max() < 0.01) == (cap is not None)


@pytest.mark.slow  # compiling takes the time
@pytest.mark.parametrize("cap", [1e-3, None])
def test_a_cap_on_the_logits_is_in_sampling(cap):
  config = dataclasses.replace(CAPPED, logits_softcap=cap)
  settings = {"max_new_tokens": 1, "temperature": 0.05, "key": jax.random.key(0)}
  first = {tokens[0] for tokens in generate(random_params(config), config, [[1]] * 64, **settings)}
  assert (len(first) > 8) == (cap is not None)


@pytest.mark.slow  # likewise
def test_a_run_trains_with_the_cap(tmp_path):
  base = tiny_run(tiny_corpus(tmp_path / "corpus"), steps=2, checkpoint_every=2)
  run = with_model(base, logits_softcap=1e-3, init_std=0.5)
  train(run, tmp_path / "run")
  np.testing.assert_allclose([loss for _, loss in recorded(tmp_path / "run")], np.log(264), atol=0.01)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("norm_placement", "sandwich"),
    ("activation", "relu"),
    ("attention_scale", 0.0),
    ("attention_softcap", -1.0),
    ("logits_softcap", 0.0),
    ("embedding_multiplier", 0.0),
    ("residual_multiplier", float("inf")),
    ("logits_divisor", 0.0),
  ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
  with pytest.raises(ConfigError, match=f"ModelConfig.{field} is {value!r}"):
    tiny(**{field: value})
