import dataclasses
import math
import re

import pytest

from drope_jax.config import ModelConfig
from drope_jax.errors import ConfigError
from drope_jax.evaluate.methods import METHODS, Inference, allowed_methods, inference, is_as_trained
from drope_jax.positions import ALiBi, Embedding, RoPE, rnope_swa
from drope_jax.scalings import NTK, PI, DynamicNTK, DynamicYaRN, Scaling, YaRN
from drope_jax.transitions import drop


def trained(positions) -> ModelConfig:
  return ModelConfig(
    vocab_size=31, d_model=16, num_layers=4, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24, positions=positions
  )


@pytest.mark.parametrize(
  ("method", "scaling"),
  [
    ("rope", None),
    ("pi", PI(4.0)),
    ("ntk", NTK(4.0)),
    ("yarn", YaRN(4.0, 128)),
    ("dynamic_ntk", DynamicNTK(128)),
    ("dynamic_yarn", DynamicYaRN(128)),
  ],
)
def test_rope_methods_rescale_by_the_extension_factor_and_keep_theta(method, scaling):
  assert inference(method, trained(RoPE(5e5)), 128, 512) == Inference(trained(RoPE(5e5, scaling)))


def within(method: str, length: int, positions) -> Inference:
  """On sequences that are no longer; with c = 0.4 where it is read."""
  c = 0.4 if method == "drope" else None
  return inference(method, trained(positions), 128, length, c, bounded=True)


@pytest.mark.parametrize("length", [64, 128])
def test_within_the_training_context_every_method_is_the_trained_model(length):
  for positions in (RoPE(), ALiBi(), None, rnope_swa(32)):
    for method in allowed_methods(trained(positions)):
      assert within(method, length, positions) == Inference(trained(positions))


@pytest.mark.parametrize(
  ("method", "expected"),
  [
    ("dynamic_ntk", Inference(trained(RoPE(scaling=DynamicNTK(128))))),
    ("dynamic_yarn", Inference(trained(RoPE(scaling=DynamicYaRN(128))))),
    ("crop", Inference(trained(RoPE()), crop=128)),
  ],
)
@pytest.mark.parametrize("length", [64, 128, 512])
def test_what_goes_by_the_sequence_does_so_at_every_nominal_length(method, expected, length):
  assert inference(method, trained(RoPE()), 128, length) == expected


def test_a_static_factor_stays_within_the_context():
  for method in ("pi:4", "yarn:4", "ntk:4"):
    how = inference(method, trained(RoPE()), 128, 64)
    assert within(method, 64, RoPE()) == how != Inference(trained(RoPE()))


@pytest.mark.parametrize("positions", [RoPE(), ALiBi(), None, rnope_swa(32)])
def test_crop_sees_the_training_context(positions):
  assert inference("crop", trained(positions), 128, 512) == Inference(trained(positions), crop=128)


@pytest.mark.parametrize(
  ("method", "positions"),
  [
    ("rope", RoPE()),
    ("pi", RoPE()),
    ("yarn:8", RoPE()),
    ("dynamic_ntk", RoPE()),
    ("alibi", ALiBi()),
    ("pattern", rnope_swa(32)),
  ],
)
def test_other_methods_take_a_temperature_after_a_plus(method, positions):
  plain = inference(method, trained(positions), 128, 512)
  warm = inference(f"{method}+0.1", trained(positions), 128, 512)
  assert plain.logit_scale == 1 and warm.logit_scale == 1 + 0.1 * math.log(4)
  assert (warm.config, warm.crop) == (plain.config, plain.crop)
  assert inference(f"{method}+0.1", trained(positions), 128, 64) == inference(method, trained(positions), 128, 64)


@pytest.mark.parametrize(
  ("method", "message"),
  [
    ("nope+0.1", "is method 'drope', as drope:0.1"),
    ("drope+0.1", "is method 'drope', as drope:0.1"),
    ("drope:0.1+0.1", "is method 'drope', as drope:0.1"),
    ("crop+0.1", "sees its training context, at which beta is 1"),
    ("rope+", "c one of at least 0"),
    ("rope+-1", "c one of at least 0"),
    ("yarn:8+x", "c one of at least 0"),
    ("yarn+8:2", "c one of at least 0"),
    ("yam+1", "allowed: rope"),
  ],
)
def test_a_temperature_that_cannot_be_is_refused(method, message):
  with pytest.raises(ConfigError, match=message):
    inference(method, trained(RoPE()), 128, 512)


@pytest.mark.parametrize(
  ("method", "positions"), [("yarn", RoPE()), ("nope", None), ("drope:0.5", None), ("rope+0.1", RoPE()), ("crop", None)]
)
def test_a_c_that_a_method_does_not_read_is_refused(method, positions):
  with pytest.raises(ConfigError, match=f"c is 0.4, which method '{re.escape(method)}' does not read"):
    inference(method, trained(positions), 128, 512, c=0.4)


@pytest.mark.parametrize("config", [trained(None), drop(trained(RoPE())), drop(trained(rnope_swa(32)))])
def test_without_embedding_nope_is_beta_one_and_drope_the_temperature(config):
  assert inference("nope", config, 128, 512) == Inference(config)
  assert inference("drope", config, 128, 512, c=0.4) == Inference(config, logit_scale=1 + 0.4 * math.log(4))


@pytest.mark.parametrize(("method", "positions"), [("alibi", ALiBi()), ("pattern", rnope_swa(32))])
def test_alibi_and_patterns_run_as_trained(method, positions):
  assert inference(method, trained(positions), 128, 512) == Inference(trained(positions))


@pytest.mark.parametrize(
  ("method", "positions"),
  [
    ("pi", None),
    ("rope", None),
    ("nope", RoPE()),
    ("drope", RoPE()),
    ("yarn", ALiBi()),
    ("pi", rnope_swa(32)),
    ("ntk", RoPE(scaling=YaRN(2.0, 64))),  # a second scaling would replace the one it was trained with
  ],
)
def test_an_impossible_pair_is_refused_in_one_line(method, positions):
  with pytest.raises(ConfigError) as error:
    inference(method, trained(positions), 128, 512, c=0.4)
  message = str(error.value)
  assert repr(method) in message and str(positions) in message and "\n" not in message
  assert message.endswith("allowed: " + ", ".join(allowed_methods(trained(positions))))


def test_an_unknown_method_is_refused():
  with pytest.raises(ConfigError, match=r"method is 'yam'; allowed: rope, pi, .*drope, crop"):
    inference("yam", trained(RoPE()), 128, 512)


def test_drope_wants_a_coefficient():
  with pytest.raises(ConfigError, match="'drope' needs c"):
    inference("drope", trained(None), 128, 512)


def test_every_method_is_possible_for_some_checkpoint():
  some = [allowed_methods(trained(positions)) for positions in (RoPE(), ALiBi(), None, rnope_swa(32))]
  assert {method for methods in some for method in methods} >= set(METHODS)


def test_a_factor_by_hand_holds_at_every_length():
  for method, scaling in (("pi:8", PI(8.0)), ("ntk:8", NTK(8.0)), ("yarn:8", YaRN(8.0, 16))):
    for length in (16, 64):
      assert inference(method, trained(RoPE()), 16, length) == Inference(trained(RoPE(1e4, scaling)))
  assert inference("drope:0.5", trained(None), 16, 64).logit_scale == 1 + 0.5 * math.log(4)


@pytest.mark.parametrize("method", ["yarn:0.5", "pi:", "ntk:two", "rope:2", "drope:-1", "yarn:inf", "yarn:nan"])
def test_a_bad_number_is_refused(method):
  with pytest.raises(ConfigError, match="method is '" + method.split(":")[0]):
    inference(method, trained(RoPE()), 16, 64)


# --- what a user defines ---------------------------------------------------------------------------


@dataclasses.dataclass(unsafe_hash=True)
class Sinks(Embedding):
  """A stranger's embedding, which nothing can rescale."""

  depth: float = 1.0


@dataclasses.dataclass(unsafe_hash=True)
class Wheels(Embedding):
  """One that can be."""

  scaling: Scaling | None = None

  def rescaled(self, scaling):
    return Wheels(scaling)


@dataclasses.dataclass(unsafe_hash=True)
class Halved(Scaling):
  """A stranger's scaling of a factor."""

  factor: float
  original_context: int
  share: float = 0.5


@dataclasses.dataclass(unsafe_hash=True)
class Searched(Scaling):
  """One that cannot be made of a factor and a context alone."""

  table: tuple[float, ...]


def test_a_users_embedding_has_its_own_method_and_crop():
  assert allowed_methods(trained(Sinks())) == ("sinks", "crop")
  assert inference("sinks", trained(Sinks()), 128, 512) == Inference(trained(Sinks()))
  assert inference("sinks+0.1", trained(Sinks()), 128, 512).logit_scale == 1 + 0.1 * math.log(4)
  assert is_as_trained("sinks") and not is_as_trained("sinks+0.1")


def test_a_users_embedding_has_the_scalings_that_it_allows():
  assert set(allowed_methods(trained(Wheels()))) >= {"wheels", "yarn", "pi", "dynamic_ntk", "crop"}
  assert inference("yarn", trained(Wheels()), 128, 512) == Inference(trained(Wheels(YaRN(4.0, 128))))
  assert allowed_methods(trained(Wheels(PI(2.0)))) == ("wheels", "crop")


def test_a_users_scaling_is_a_method_if_a_factor_and_a_context_make_it():
  assert inference("halved", trained(RoPE()), 128, 512) == Inference(trained(RoPE(scaling=Halved(4.0, 128))))
  assert inference("halved:8", trained(RoPE()), 128, 64) == Inference(trained(RoPE(scaling=Halved(8.0, 128))))
  assert "halved" in allowed_methods(trained(RoPE())) and not is_as_trained("halved")
  assert "searched" not in allowed_methods(trained(RoPE()))


@pytest.mark.parametrize("method", ["yarn", "pi", "ntk", "yarn:8", "rope+0.1", "yarn+0.1"])
def test_what_is_left_of_a_rope_after_a_partial_drop_is_rescaled_and_keeps_its_pairs(method):
  positions = inference(method, trained(RoPE(pairs=2)), 128, 512).config.positions
  assert isinstance(positions, RoPE) and positions.pairs == 2
  assert (positions.scaling is None) == (method == "rope+0.1")
  omega = positions.frequencies(8).omega
  assert (omega[:2] > 0).all() and (omega[2:] == 0).all()
