"""Objectives: what they add up, how a teacher's weight falls, and that they train, accumulate and resume."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.interrupting import terminate, when_step_is_logged
from support.objectives import sums
from support.tiny_run import losses, records, tiny_model, tiny_run

from drope_jax import checkpoint, metrics
from drope_jax.aot import compile as aot
from drope_jax.aot.traced_flops import traced_flops
from drope_jax.checkpoint import TrainState
from drope_jax.config import ComputeConfig, InitConfig
from drope_jax.errors import ConfigError
from drope_jax.model import Decoder, Taps, hidden_states, init_params
from drope_jax.objective import Distill, InTurn, NextToken, Objective
from drope_jax.sharding import make_mesh
from drope_jax.shares import elapsed
from drope_jax.train import train
from drope_jax.training.run import resolve, start_from
from drope_jax.training.step import as_promised, make_train_step, step_number

TEACHER = tiny_model(vocab_size=50, init_std=0.3)
STUDENT = dataclasses.replace(TEACHER, positions=None)
TRAINED = tiny_model(init_std=0.3)  # of runs: attention is far from uniform, so that positions matter
INIT = InitConfig(checkpoint="elsewhere", model=TEACHER)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (4, 11)), jnp.int32)


@dataclasses.dataclass(unsafe_hash=True)
class Confident(Objective):
  """A user's own: cross-entropy, and a penalty on the size of the log-partition."""

  weight: float = 0.1

  def __call__(self, inputs):
    states_BTD = inputs.student().states_BTD
    total, nll = inputs.summed_losses(states_BTD)
    penalty = (inputs.token_losses(states_BTD).log_z_BT ** 2 * inputs.weights_BT).sum()
    return total + self.weight * penalty, {"nll": nll, "tokens": inputs.weights_BT.sum(), "penalty": penalty}


@pytest.fixture(scope="module")
def params():
  return jax.jit(functools.partial(init_params, TEACHER))(jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("objective", "chunk"))
def distilled(params, frozen, objective, step=0, chunk=512):
  compute = ComputeConfig(dtype="float32", loss_chunk=chunk)
  return sums(
    objective, STUDENT, params, {"tokens": TOKENS}, compute, source=TEACHER, frozen=frozen, step=step, init=INIT
  )


def log_probabilities(model, params):
  logits = jax.jit(Decoder(model).apply)({"params": params}, TOKENS[:, :-1])
  return np.asarray(jax.nn.log_softmax(logits), np.float64)


def test_the_distance_of_logits_is_the_divergence_from_the_teacher(params):
  log_p, log_q = log_probabilities(TEACHER, params), log_probabilities(STUDENT, params)
  expected = (np.exp(log_p) * (log_p - log_q)).sum()
  total, found = distilled(params, params, Distill(weight=0.5, until=1.0))
  assert expected > 1
  np.testing.assert_allclose(found["kl"], expected, rtol=1e-4)
  np.testing.assert_allclose(total, found["nll"] + 0.5 * expected, rtol=1e-4)
  assert found["tokens"] == 40


def test_the_distance_of_attention_is_the_mean_square_over_features_and_layers(params):
  def updates(model):
    taps = Taps(tuple(range(model.num_layers)), ("attention",))
    return np.asarray(hidden_states(params, model, TOKENS[:, :-1], taps=taps).taps["attention"])

  expected = ((updates(STUDENT) - updates(TEACHER)) ** 2).mean(axis=(0, -1)).sum()
  total, found = distilled(params, params, Distill(what="attention"))
  assert expected > 0
  np.testing.assert_allclose(found["attention_mse"], expected, rtol=1e-4)
  np.testing.assert_allclose(total, found["nll"] + expected, rtol=1e-5)


def test_the_weight_falls_linearly_to_zero_and_then_no_teacher_is_asked(params):
  objective = Distill(weight=2.0, until=0.5)  # of 10 steps
  plain, _ = jax.jit(lambda params: sums(NextToken(), STUDENT, params, {"tokens": TOKENS}))(params)
  for step, weight in ((0, 2.0), (1, 1.6), (4, 0.4)):
    total, found = distilled(params, params, objective, step)
    np.testing.assert_allclose(total, plain + weight * found["kl"], rtol=1e-4)
  unknown = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
  for step in (5, 9):
    total, found = distilled(params, unknown, objective, step)
    np.testing.assert_allclose(total, plain, rtol=1e-6)
    assert np.isnan(found["kl"])
  assert [objective.extra_forwards(step, 10) for step in (0, 4, 5, 9)] == [1, 1, 0, 0]


def test_one_objective_follows_another_with_the_gradient_of_each(params):
  first, then = Distill(what="attention", until=0.5), Distill(weight=3.0)
  both = InTurn(first=first, then=then, share=0.2)  # of 10 steps
  # Other weights than the teacher's, whose attention is else the least that the distance can be.
  student = jax.tree.map(lambda x: 1.1 * x, params)
  for step, one, other in ((0, first, "kl"), (1, first, "kl"), (2, then, "attention_mse"), (9, then, "attention_mse")):
    value = lambda student, objective, step=step: distilled(student, params, objective, step)
    (total, found), gradient = jax.value_and_grad(value, has_aux=True)(student, both)
    (expected, alone), its_gradient = jax.value_and_grad(value, has_aux=True)(student, one)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, its_gradient)
    assert found.keys() == alone.keys() | {other} and np.isnan(found[other])
  assert both.frozen() == "init"


def test_the_teacher_of_one_of_two_counts_only_in_its_own_steps():
  both = InTurn(first=NextToken(), then=Distill(until=0.6), share=0.25)
  assert [both.extra_forwards(step, 10) for step in range(10)] == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
  ("share", "steps", "expected"), [(0.07, 100, 7), (0.55, 400, 220), (0.25, 10, 3), (1e-9, 10, 1)]
)
def test_a_share_is_rounded_up_to_steps_but_not_for_what_floating_point_adds(share, steps, expected):
  both = InTurn(first=NextToken(), then=Distill(until=share), share=share)
  assert sum(phase == (0,) for phase in (both.phase(step, steps) for step in range(steps))) == expected
  assert sum(both.then.extra_forwards(step, steps) for step in range(steps)) == expected
  assert elapsed(expected, share, steps) == 1


def test_no_gradient_flows_to_the_teacher(params):
  value = lambda params, frozen: distilled(params, frozen, Distill())[0]
  ours, theirs = jax.grad(value, argnums=(0, 1))(params, params)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(ours))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))


def test_chunks_change_nothing(params):
  def both(size):
    value = functools.partial(distilled, objective=Distill(), chunk=size)
    return jax.value_and_grad(lambda student: value(student, params)[0])(params)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), both(10), both(4))  # the last of 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["logits", "attention"])
def test_micro_batches_add_up(rope, corpus, what):
  objective = Distill(weight=0.7, until=0.5, what=what)
  init = InitConfig(checkpoint=str(rope))
  found = []
  for accumulation in (1, 4):
    config = tiny_run(corpus, init=init, objective=objective, optim={"accumulation": accumulation})
    run, optimizer = resolve(config), optax.sgd(1.0)
    frozen = checkpoint.open_step(rope).params()
    step = jax.jit(make_train_step(run, optimizer, objective))
    rows = {"tokens": jnp.asarray(np.random.default_rng(1).integers(0, 257, (8, 17)), jnp.int32)}
    found.append(step(TrainState(frozen, optimizer.init(frozen)), rows, step_number(1), frozen))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), *found)


def test_a_distillation_trains_records_and_resumes_exactly(rope, corpus, tmp_path, monkeypatch):
  init = InitConfig(checkpoint=str(rope))
  config = tiny_run(corpus, init=init, objective=Distill(until=0.5), steps=6, checkpoint_every=3)
  train(config, tmp_path / "straight")
  found = records(tmp_path / "straight")
  assert all(record["kl"] > 0 for record in found[:3]) and [record["kl"] for record in found[3:]] == [None] * 3
  saved = checkpoint.open_step(tmp_path / "straight")
  assert saved.meta["teacher_step"] == 4 and saved.config.objective == Distill(until=0.5)
  when_step_is_logged(monkeypatch, 1, terminate)
  assert train(config, tmp_path / "stopped") == (2, False)
  train(config, tmp_path / "stopped")
  assert [(record["loss"], record["kl"]) for record in records(tmp_path / "stopped")] == [
    (record["loss"], record["kl"]) for record in found
  ]


def test_a_run_of_ones_own_may_teach(rope, corpus, tmp_path):
  config = tiny_run(corpus, objective=Distill(teacher=str(rope)), steps=2)
  assert train(config, tmp_path / "student") == (2, True)
  assert all(record["kl"] > 0 for record in records(tmp_path / "student"))
  with pytest.raises(ConfigError, match="with other steps Distill would bring back what it has taken away"):
    train(dataclasses.replace(config, steps=4), tmp_path / "student", extend=True)  # its weight had fallen to zero
  with pytest.raises(ConfigError, match="has a vocabulary of 264, the run 300"):
    train(dataclasses.replace(config, model=tiny_model(vocab_size=300)), tmp_path / "other")


def test_a_teachers_forward_pass_costs_a_third_of_what_training_it_would():
  small, large = tiny_model(), tiny_model(num_layers=4)
  costs = [metrics.flops_per_token(model, 16) for model in (small, large)]

  def cost(objective, teacher, steps):
    return metrics.objective_flops_per_token(objective, small, teacher, 16, steps, of=10)

  assert cost(NextToken(), None, range(10)) == costs[0]
  for teacher, its in ((None, costs[0]), (small, costs[0]), (large, costs[1])):
    assert cost(Distill(until=0.5), teacher, range(4, 5)) == pytest.approx(costs[0] + its / 3)
    assert cost(Distill(until=0.5), teacher, range(5, 6)) == costs[0]
    assert cost(Distill(until=0.5), teacher, range(10)) == pytest.approx(costs[0] + its / 6)


@pytest.mark.parametrize("what", ["logits", "attention"])
def test_the_program_with_a_teacher_has_a_third_more_products(corpus, what):
  """Distances of attention need neither the teacher's unembedding nor its last feed-forward layer."""
  init = InitConfig(checkpoint="elsewhere", model=tiny_model())
  plain, distilled = (
    start_from(tiny_run(corpus, init=init, objective=objective), init.model)
    for objective in (NextToken(), Distill(what=what))
  )
  flops = [
    traced_flops(aot.trace_train_step(run, make_mesh(run.config.mesh)).jaxpr).flops for run in (plain, distilled)
  ]
  spared = 0 if what == "logits" else 2 * (264 * 16 + 3 * 16 * 24) * 8 * 16
  expected = 4 / 3 - spared / flops[0]
  assert flops[1] / flops[0] == pytest.approx(expected, rel=1e-3)


def test_mfu_counts_the_teacher(rope, corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "mfu", lambda speed, flops: flops)
  init = InitConfig(checkpoint=str(rope))
  train(tiny_run(corpus, init=init, objective=Distill(until=0.5), steps=6, log_every=2), tmp_path)
  per_token = metrics.flops_per_token(tiny_model(), 16)
  found = {record["step"]: record["mfu"] for record in records(tmp_path)}
  assert found == {1: None, 2: pytest.approx(per_token * 4 / 3), 4: pytest.approx(per_token * 7 / 6)} | {
    5: pytest.approx(per_token),
    6: pytest.approx(per_token),
  }


def test_an_objective_of_ones_own_trains_is_recorded_and_resumes(corpus, tmp_path, monkeypatch):
  config = tiny_run(corpus, objective=Confident(weight=0.2), steps=4, checkpoint_every=2)
  train(config, tmp_path / "straight")
  written = json.loads((tmp_path / "straight" / "config.json").read_text())["objective"]
  assert written == {"type": f"{__name__}:Confident", "weight": 0.2}
  assert all(math.isfinite(record["penalty"]) for record in records(tmp_path / "straight"))
  assert losses(tmp_path / "straight") != losses_of_plain(corpus, tmp_path)
  when_step_is_logged(monkeypatch, 1, terminate)
  assert train(config, tmp_path / "stopped") == (2, False)
  assert train(config, tmp_path / "stopped") == (4, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
  assert checkpoint.load(tmp_path / "stopped").config.objective == Confident(weight=0.2)


@dataclasses.dataclass(unsafe_hash=True)
class Shadowing(Confident):
  """Its sum has the name of a field of the record."""

  def __call__(self, inputs):
    total, found = super().__call__(inputs)
    return total, {**found, "seconds": total}


def test_a_sum_may_not_take_the_name_of_another_field(corpus, tmp_path):
  with pytest.raises(ValueError, match="a sum is called 'seconds'"):
    train(tiny_run(corpus, objective=Shadowing()), tmp_path / "run")


ONE, ROWS = jnp.ones(()), jnp.ones(8)


@pytest.mark.parametrize(
  "returned", [None, ONE, (ONE, {"nll": ONE}), (ONE, {"nll": ROWS, "tokens": ONE}), (ROWS, {"nll": ONE, "tokens": ONE})]
)
def test_what_an_objective_returns_is_checked(returned):
  with pytest.raises(ConfigError, match=r"NextToken\(.*: returned .* it must return a sum \(\) and a dict of sums"):
    as_promised(NextToken(), returned)


def losses_of_plain(corpus, tmp_path):
  train(tiny_run(corpus, steps=4, checkpoint_every=2), tmp_path / "plain")
  return losses(tmp_path / "plain")


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: NextToken(z_loss=-1e-4), "NextToken.z_loss is -0.0001"),
    (lambda: Distill(weight=0.0), "Distill.weight is 0.0"),
    (lambda: Distill(until=1.5), "Distill.until is 1.5"),
    (lambda: Distill(teacher=""), "Distill.teacher is empty"),
    (lambda: Distill(what="words"), "Distill.what is 'words'; allowed: logits, attention"),
    (lambda: InTurn(first=NextToken(), then=None, share=0.5), "InTurn.then is None; it must be an objective"),
    (lambda: InTurn(first=NextToken(), then=NextToken(), share=1.0), "InTurn.share is 1.0; it must lie in"),
    (
      lambda: InTurn(first=Distill(), then=Distill(teacher="runs/other"), share=0.5),
      "InTurn: the teachers are init and runs/other; they must be the same",
    ),
    (lambda: tiny_run("none", objective=Distill()), "whose teacher is that of TrainConfig.init; there is none"),
  ],
)
def test_a_setting_that_cannot_be(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
