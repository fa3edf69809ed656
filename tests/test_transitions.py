"""Transitions: the model that each makes of a checkpoint's, and the tables that a fade trains with."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_decoder import assert_close, logits_of, random_params, random_tokens, tiny

from drope_jax.config import InitConfig
from drope_jax.errors import ConfigError
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import PI, CoPE, DynamicNTK, YaRN
from drope_jax.serialization import from_dict, to_dict
from drope_jax.transitions import Drop, Fade, Keep, KeepWindows, PartialDrop, Replace, Transition

CONTEXT = 128
HEAD_DIM = 16
ROPE = RoPE(10_000.0)
MODEL = tiny(head_dim=HEAD_DIM, positions=ROPE)
TURNS = CONTEXT * 10_000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM) / (2 * math.pi)  # of each pair, by hand


LOCAL_AND_GLOBAL = LayerPattern((Layer(RoPE(50.0), 16), Layer(RoPE(50.0), 16), Layer(ROPE)))


def applied(transition, positions=ROPE):
  return transition.apply(dataclasses.replace(MODEL, num_layers=4, positions=positions), CONTEXT).positions


def test_what_each_transition_makes_of_rope():
  assert applied(Keep()) == ROPE
  assert applied(Drop()) is None
  assert applied(Fade(0.5)) is None
  assert applied(Replace(ROPE.rescaled(YaRN(8.0, CONTEXT)))) == RoPE(10_000.0, YaRN(8.0, CONTEXT))
  assert applied(KeepWindows(window=32, every=3)) == LayerPattern((Layer(ROPE, 32), Layer(ROPE, 32), Layer(None)))


def test_windows_that_are_there_are_kept_with_their_own_embedding():
  kept = LayerPattern((*LOCAL_AND_GLOBAL.layers[:2], Layer(None)))
  assert applied(KeepWindows(16, every=3), LOCAL_AND_GLOBAL) == kept


@pytest.mark.parametrize("turns", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_a_partial_drop_keeps_the_pairs_that_turn_often_enough(turns):
  assert applied(PartialDrop(turns)) == RoPE(10_000.0, pairs=int((turns <= TURNS).sum()))


def test_a_partial_drop_by_hand_and_of_everything():
  assert applied(PartialDrop(fastest=3)) == RoPE(10_000.0, pairs=3)
  assert applied(PartialDrop(fastest=0)) is None
  assert applied(PartialDrop(math.inf)) is None


def test_a_partial_drop_goes_by_the_rotation_that_was_trained():
  slower = RoPE(10_000.0, PI(4.0))  # turns a fourth as often
  assert applied(PartialDrop(1.0), slower) == RoPE(10_000.0, PI(4.0), pairs=int((TURNS / 4 >= 1).sum()))


def test_a_partial_drop_leaves_the_windows_and_layers_of_a_pattern():
  pattern = rnope_swa(16)
  kept = dataclasses.replace(pattern.layers[0], positions=RoPE(pairs=2))
  assert applied(PartialDrop(fastest=2), pattern) == LayerPattern((kept, kept, kept, Layer(None)))


def test_a_partial_drop_of_a_pattern_may_leave_one_of_its_layers_whole():
  slow, fast = Layer(RoPE(10_000.0)), Layer(RoPE(2.0), 16)
  kept = int((TURNS >= 1).sum())
  assert applied(PartialDrop(1.0), LayerPattern((fast, slow))) == LayerPattern(
    (fast, Layer(RoPE(10_000.0, pairs=kept)))
  )


@pytest.mark.parametrize(
  ("transition", "positions", "said"),
  [
    (Drop(), None, "there is no positional embedding to drop"),
    (Fade(0.5), None, "there is no positional embedding to drop"),
    (Fade(0.5), ALiBi(), "a rotation whose frequencies do not depend on the length"),
    (Fade(0.5), RoPE(scaling=DynamicNTK(CONTEXT)), "a rotation whose frequencies do not depend on the length"),
    (Fade(0.5), LayerPattern((Layer(None), Layer(ALiBi()))), "a rotation whose"),
    (Fade(0.5), RoPE(scaling=YaRN(8.0, CONTEXT)), "scales the logits too"),
    (PartialDrop(), ALiBi(), "only the pairs of a RoPE"),
    (PartialDrop(0.001), ROPE, "drops nothing"),
    (PartialDrop(fastest=8), ROPE, "drops nothing"),
    (Replace(ROPE), ROPE, "already; use Keep"),
    (KeepWindows(16), rnope_swa(16), "global layers have nothing to drop"),
    (KeepWindows(8, every=3), LOCAL_AND_GLOBAL, "its windows must be those that are kept already"),
    (KeepWindows(16, every=2), LOCAL_AND_GLOBAL, "its windows must be those that are kept already"),
    (KeepWindows(CONTEXT), ROPE, "the training context is 128"),
    (KeepWindows(16, every=5), ROPE, "of 4 layers none would be global"),
  ],
)
def test_the_impossible_is_refused(transition, positions, said):
  with pytest.raises(ConfigError, match=said):
    applied(transition, positions)


@pytest.mark.parametrize(
  ("make", "field"),
  [
    (lambda: Fade(0.0), "Fade.share"),
    (lambda: Fade(1.5), "Fade.share"),
    (lambda: Fade(0.5, order="fast_first"), "Fade.order"),
    (lambda: Fade(0.5, shape="square"), "Fade.shape"),
    (lambda: PartialDrop(0.0), "PartialDrop.turns"),
    (lambda: PartialDrop(fastest=-1), "PartialDrop.fastest"),
    (lambda: KeepWindows(0), "KeepWindows.window"),
    (lambda: KeepWindows(4, every=1), "KeepWindows.every"),
  ],
)
def test_bad_fields_are_named(make, field):
  with pytest.raises(ConfigError, match=field):
    make()


# --- the model without some of its pairs -------------------------------------------------------


def test_the_pairs_that_are_dropped_do_not_turn_at_all():
  cos, sin = RoPE(100.0, pairs=3).rotation(np.arange(50)[None], HEAD_DIM)
  whole = RoPE(100.0).rotation(np.arange(50)[None], HEAD_DIM)
  assert (cos[..., 3:] == 1).all() and (sin[..., 3:] == 0).all()
  np.testing.assert_array_equal(cos[..., :3], whole.cos[..., :3])


def test_a_scaling_leaves_the_dropped_pairs_alone():
  omega = RoPE(10_000.0, YaRN(4.0, CONTEXT), pairs=3).frequencies(HEAD_DIM).omega
  np.testing.assert_array_equal(omega[:3], RoPE(10_000.0, YaRN(4.0, CONTEXT)).frequencies(HEAD_DIM).omega[:3])
  assert (omega[3:] == 0).all()


def test_heads_must_have_the_pairs():
  with pytest.raises(ConfigError, match="heads of 16 have 8 pairs"):
    dataclasses.replace(MODEL, positions=RoPE(pairs=9))


# --- fades -------------------------------------------------------------------------------------

STEPS = 40


def omega_at(fade, step):
  return np.asarray(fade.frequencies(MODEL, jnp.asarray(step), STEPS).omega)


@pytest.mark.parametrize("order", ["all", "slow_first", "late_first", "theta"])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_fade_begins_with_rope_and_ends_with_nothing_exactly(order, shape):
  fade = Fade(0.5, order, shape)
  whole = np.asarray(ROPE.frequencies(HEAD_DIM).omega, np.float32)
  np.testing.assert_array_equal(omega_at(fade, 0), np.broadcast_to(whole, (MODEL.num_layers, HEAD_DIM // 2)))
  for step in (20, 21, 39):
    assert (omega_at(fade, step) == 0).all()
  assert (omega_at(fade, 19) > 0).any()
  tables = np.stack([omega_at(fade, step) for step in range(21)])
  assert (np.diff(tables, axis=0) <= 1e-7).all()  # nothing comes back


def test_a_pattern_fades_layer_by_layer():
  """Each from frequencies of its own, to the same end."""
  model = dataclasses.replace(MODEL, num_layers=4, positions=LOCAL_AND_GLOBAL)
  own = [RoPE(theta).frequencies(HEAD_DIM).omega for theta in (50.0, 50.0, 10_000.0, 50.0)]
  fade = Fade(0.5, "late_first")
  for step, gates in ((0, [1, 1, 1, 1]), (10, [1, 1, 0, 0]), (20, [0, 0, 0, 0])):
    table = fade.frequencies(model, jnp.asarray(step), STEPS)
    np.testing.assert_allclose(table.omega, np.stack(own) * np.array(gates)[:, None], rtol=1e-6)
  params, tokens = random_params(model), random_tokens(1, 20)
  begin, end = (fade.frequencies(model, jnp.asarray(step), STEPS) for step in (0, 30))
  assert_close(logits_of(params, model, tokens, frequencies=begin), logits_of(params, model, tokens), atol=1e-4)
  dropped = fade.apply(model, CONTEXT)
  assert [layer.window for layer in dropped.positions.layers] == [16, 16, None]
  np.testing.assert_array_equal(logits_of(params, model, tokens, frequencies=end), logits_of(params, dropped, tokens))


def test_the_orders_of_a_fade():
  whole = omega_at(Fade(0.5), 0)
  half = {order: omega_at(Fade(0.5, order), 10) / whole for order in ("all", "slow_first", "late_first")}
  np.testing.assert_allclose(half["all"], 0.5, atol=1e-6)
  np.testing.assert_allclose(half["slow_first"], np.broadcast_to([1] * 4 + [0] * 4, whole.shape), atol=1e-6)
  np.testing.assert_allclose(half["late_first"], [[1] * 8, [0] * 8], atol=1e-6)
  doubled = RoPE(ROPE.theta**2).frequencies(HEAD_DIM).omega
  np.testing.assert_allclose(omega_at(Fade(0.5, "theta"), 10)[0], doubled, rtol=1e-5)


def test_a_fade_by_theta_leaves_pairs_that_were_dropped_before_dropped():
  model = dataclasses.replace(MODEL, positions=RoPE(pairs=3))
  table = np.asarray(Fade(0.5, "theta").frequencies(model, jnp.asarray(10), STEPS).omega)
  assert (table[:, :3] > 0).all() and (table[:, 3:] == 0).all()


@pytest.mark.parametrize("scan_layers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_table_by_layer_is_a_pattern_of_those_tables(scan_layers):
  from drope_jax.config import ComputeConfig

  tokens, params = random_tokens(2, 8), random_params(MODEL)
  table = ROPE.frequencies(HEAD_DIM)
  by_layer = table._replace(omega=jnp.stack([jnp.asarray(table.omega), jnp.zeros(HEAD_DIM // 2)]))
  pattern = dataclasses.replace(MODEL, positions=LayerPattern((Layer(ROPE), Layer(None))))
  compute = ComputeConfig(scan_layers=scan_layers)
  assert_close(
    logits_of(params, MODEL, tokens, frequencies=by_layer, compute=compute), logits_of(params, pattern, tokens)
  )


def test_the_end_of_a_fade_is_the_dropped_model_bitwise():
  tokens, params = random_tokens(2, 8), random_params(MODEL)
  end = Fade(0.5).frequencies(MODEL, jnp.asarray(30), STEPS)
  np.testing.assert_array_equal(
    logits_of(params, MODEL, tokens, frequencies=end),
    logits_of(params, Fade(0.5).apply(MODEL, CONTEXT), tokens),
  )


@pytest.mark.parametrize("steps", [41, 47, 55, 61, 82])  # whose quotients round to less than 1 once compiled
@pytest.mark.parametrize("order", ["all", "slow_first"])
def test_a_compiled_fade_ends_exactly_too(steps, order):
  table = jax.jit(lambda step: Fade(1.0, order).frequencies(MODEL, step, steps))
  assert (np.asarray(table(steps).omega) == 0).all() and (np.asarray(table(steps - 1).omega) > 0).any()


def test_a_fade_counts_only_the_pairs_that_still_turn():
  left = dataclasses.replace(MODEL, positions=RoPE(10_000.0, pairs=2))
  omega = np.asarray(Fade(1.0, "slow_first").frequencies(left, jnp.asarray(STEPS // 2), STEPS).omega)
  np.testing.assert_allclose(omega[:, :2], [[1.0, 0.0]] * MODEL.num_layers, atol=1e-6)


def test_all_steps_of_a_fade_are_one_program():
  table = jax.jit(lambda step: Fade(0.5, "slow_first").frequencies(MODEL, step, STEPS))
  for step in range(3):
    np.testing.assert_allclose(table(step).omega, omega_at(Fade(0.5, "slow_first"), step))
  assert table._cache_size() == 1


# --- values ------------------------------------------------------------------------------------


@dataclasses.dataclass(unsafe_hash=True)
class DropEveryOther(Transition):
  """What a user may write: every other layer loses its embedding."""

  first: int = 0

  def apply(self, model, context):
    layers = [Layer(None), Layer(model.positions)]
    return dataclasses.replace(model, positions=LayerPattern((layers[self.first], layers[1 - self.first])))


@pytest.mark.parametrize(
  "transition",
  [
    Keep(),
    Drop(),
    Fade(0.3, "late_first", "cosine"),
    PartialDrop(2.0),
    Replace(RoPE(scaling=CoPE(CONTEXT))),
    KeepWindows(8, 4),
    DropEveryOther(1),
  ],
)
def test_a_transition_is_recorded_and_read_again(transition):
  init = InitConfig(checkpoint="rope", transition=transition)
  assert from_dict(InitConfig, to_dict(init)) == init


def test_a_transition_of_ones_own_is_recorded_with_its_module():
  assert to_dict(DropEveryOther())["type"] == f"{__name__}:DropEveryOther"
  assert applied(DropEveryOther()) == LayerPattern((Layer(None), Layer(ROPE)))


def test_one_that_is_not_imported_is_asked_for():
  record = {"type": "InitConfig", "checkpoint": "rope", "transition": {"type": "my_fades:Sudden", "share": 0.1}}
  with pytest.raises(ConfigError, match=r"transition\.type is 'my_fades:Sudden'.*import my_fades first"):
    from_dict(InitConfig, record)


@pytest.mark.parametrize(("drop", "transition"), [(True, Drop()), (False, Keep())])
def test_what_725dc9e_recorded_is_read(drop, transition):
  assert from_dict(InitConfig, {"checkpoint": "rope", "drop": drop}).transition == transition
