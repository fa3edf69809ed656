"""Optimizers as values: which parameters Muon orthogonalises, layer by layer, and what AdamW does for the others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny_run import tiny_model

from drope_jax.config import OptimConfig, QKNorm
from drope_jax.errors import ConfigError
from drope_jax.optim import carried_over, make_optimizer
from drope_jax.optimizers import AdamW, Muon, Optimizer, Staged, matrix_axes
from drope_jax.parameters import map_specs, named_leaves, parameter_specs
from drope_jax.serialization import from_dict, to_dict

MODEL = tiny_model(qkv_bias=True, qk_norm=QKNorm(), tie_embeddings=False)
MATRICES = {"q": (16, 16), "k": (16, 8), "v": (16, 8), "o": (16, 16)}  # inputs and outputs
MATRICES |= {"gate": (16, 24), "up": (16, 24), "down": (24, 16)}


@functools.cache
def gradients(seed):
  rng = np.random.default_rng(seed)
  return map_specs(lambda spec: rng.normal(size=spec.shape).astype(np.float32), MODEL)


def updates_of(optimizer, steps=2):
  """The updates of the last of some steps, at a learning rate of 1."""
  chain = make_optimizer(OptimConfig(peak_lr=1.0, schedule="constant", clip_norm=1e9, optimizer=optimizer), MODEL, 10)

  @jax.jit
  def run(params):
    state = chain.init(params)
    for step in range(steps):
      updates, state = chain.update(gradients(step), state, params)
    return updates

  return run(gradients(9))


@pytest.fixture(scope="module")
def muon():
  return updates_of(Muon(weight_decay=0.0))


def test_every_matrix_of_a_layer_is_one_with_all_its_heads():
  specs = parameter_specs(MODEL)
  axes = {name: matrix_axes(spec) for name, spec in specs["layers"].items()}
  sizes = {
    name: tuple(int(np.prod([specs["layers"][name].shape[axis] for axis in group])) for group in found)
    for name, found in axes.items()
    if found is not None
  }
  assert sizes == MATRICES
  assert [matrix_axes(specs[name]) for name in ("embedding", "unembedding", "final_norm")] == [None] * 3


@pytest.mark.parametrize("name", MATRICES)
def test_muon_of_the_stacked_layers_is_that_of_each_layer_by_itself(muon, name):
  """Optax's Muon for plain matrices, on one layer's matrix at a time."""
  shape = MATRICES[name]
  alone = optax.contrib.muon(1.0, beta=0.95, consistent_rms=0.2)
  for layer in range(MODEL.num_layers):
    matrix = [gradients(seed)["layers"][name][layer].reshape(shape) for seed in (0, 1)]
    state = alone.init({"w": matrix[0]})
    for gradient in matrix:
      expected, state = alone.update({"w": gradient}, state, {"w": gradient})
    found = np.asarray(muon["layers"][name][layer]).reshape(shape)
    np.testing.assert_allclose(found, expected["w"], atol=1e-5)


def test_an_update_of_muon_is_nearly_orthogonal_and_has_the_rms_of_adamw(muon):
  update = np.asarray(muon["layers"]["gate"][0]) / (0.2 * np.sqrt(24))
  singular = np.linalg.svd(update, compute_uv=False)
  assert singular.min() > 0.5 and singular.max() < 1.5
  assert np.sqrt((np.asarray(muon["layers"]["q"]) ** 2).mean()) == pytest.approx(0.2, rel=0.3)


def test_what_is_no_matrix_of_a_layer_gets_adamw(muon):
  adam = updates_of(AdamW(weight_decay=0.0))
  others = [name for name in adam["layers"] if name not in MATRICES]
  assert {"attention_norm", "q_bias", "k_norm"} <= set(others)
  for ours, theirs in [
    *((muon["layers"][name], adam["layers"][name]) for name in others),
    *((muon[name], adam[name]) for name in ("embedding", "unembedding", "final_norm")),
  ]:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_weight_decay_is_the_same_under_both():
  decayed = [updates_of(kind(weight_decay=0.1), steps=1) for kind in (AdamW, Muon)]
  plain = [updates_of(kind(weight_decay=0.0), steps=1) for kind in (AdamW, Muon)]
  shrunk = [jax.tree.map(np.subtract, *pair) for pair in zip(decayed, plain, strict=True)]
  expected = map_specs(lambda spec: spec.decay, MODEL)
  for tree in shrunk:
    jax.tree.map(
      lambda change, decays, before: np.testing.assert_allclose(change, -0.1 * before * decays, atol=1e-5),
      tree,
      expected,
      gradients(9),
    )


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_moments_are_carried_over_and_the_schedule_starts_again(optimizer):
  chain = make_optimizer(OptimConfig(peak_lr=1.0, optimizer=optimizer), MODEL, 10)
  smaller = tiny_model(qkv_bias=True, tie_embeddings=False)
  before = make_optimizer(OptimConfig(peak_lr=0.1, optimizer=optimizer), smaller, 10)

  def without_norms(tree):
    return {**tree, "layers": {name: x for name, x in tree["layers"].items() if name not in ("q_norm", "k_norm")}}

  old = without_norms(gradients(0))
  _, source = before.update(old, before.init(old), old)
  fresh = chain.init(gradients(0))
  state = carried_over(fresh, source)
  assert jax.tree.structure(state) == jax.tree.structure(fresh)
  by_path = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
  theirs = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(source)}
  moments = [path for path in theirs if "mu" in path or "nu" in path]
  assert len(moments) >= 12
  for path in moments:
    np.testing.assert_array_equal(by_path[path], theirs[path])
  inserted = [path for path in by_path if "_norm']" in path and path not in theirs]
  assert len(inserted) >= 2 and not any(np.any(by_path[path]) for path in inserted)
  assert state[-1].count == 0 and source[-1].count == 1


def test_a_staged_optimizer_moves_the_first_parameters_alone_and_then_all_as_without_it():
  staged, plain = Staged(first=("q", "k"), steps=1), AdamW()
  alone, theirs = (named_leaves(updates_of(how, steps=1)) for how in (staged, plain))
  for (name, ours), (_, expected) in zip(alone, theirs, strict=True):
    np.testing.assert_array_equal(ours, expected if name in ("layers/q", "layers/k") else 0)
  jax.tree.map(np.testing.assert_array_equal, updates_of(staged, steps=2), updates_of(plain, steps=2))


def test_a_staged_optimizer_must_find_its_parameters():
  with pytest.raises(ConfigError, match=r"Staged\.first has 'qk'; the layers of this model have attention_norm, q,"):
    updates_of(Staged(first=("q", "qk"), steps=1))


@dataclasses.dataclass(unsafe_hash=True)
class Sign(Optimizer):
  """A user's own: sign descent."""

  scale: float = 1.0

  def transforms(self, specs):
    return (optax.stateless(lambda updates, _: jax.tree.map(lambda u: self.scale * jnp.sign(u), updates)),)


def test_an_optimizer_of_ones_own_works_and_is_recorded():
  updates = updates_of(Sign(scale=0.5), steps=1)
  jax.tree.map(lambda u, g: np.testing.assert_array_equal(u, -0.5 * np.sign(g)), updates, gradients(0))
  config = OptimConfig(peak_lr=1.0, optimizer=Sign(scale=0.5))
  data = to_dict(config)
  assert data["optimizer"] == {"type": f"{__name__}:Sign", "scale": 0.5}
  assert from_dict(OptimConfig, data) == config


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: AdamW(beta1=1.0), "AdamW.beta1 is 1.0"),
    (lambda: AdamW(beta2=-0.5), "AdamW.beta2 is -0.5"),
    (lambda: AdamW(eps=0.0), "AdamW.eps is 0.0"),
    (lambda: AdamW(weight_decay=-0.1), "AdamW.weight_decay is -0.1"),
    (lambda: Muon(momentum=1.0), "Muon.momentum is 1.0"),
    (lambda: Muon(iterations=0), "Muon.iterations is 0"),
    (lambda: Muon(rms=0.0), "Muon.rms is 0.0"),
    (lambda: Staged(steps=0), "Staged.steps is 0"),
    (lambda: Staged(first=(), steps=1), "Staged.first is ()"),
    (lambda: Staged(optimizer=Staged(steps=1), steps=1), "Staged.optimizer is Staged"),
    (lambda: OptimConfig(peak_lr=1.0, optimizer=None), "OptimConfig.optimizer is None; allowed: AdamW, Muon"),
  ],
)
def test_a_setting_that_cannot_be(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
