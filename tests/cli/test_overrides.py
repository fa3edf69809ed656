"""`--config.A.B=VALUE`: any field can be set, and what cannot be is named with what is allowed."""

import dataclasses

import pytest

from drope_jax.cli.overrides import overridden
from drope_jax.config import DataConfig, InitConfig, ModelConfig, OptimConfig, QKNorm, TrainConfig
from drope_jax.errors import ConfigError
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE
from drope_jax.scalings import YaRN
from drope_jax.serialization import to_dict
from drope_jax.transitions import Fade, Keep, PartialDrop, Transition

MODEL = ModelConfig(vocab_size=11, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=24)
RUN = TrainConfig(
  model=MODEL, data=DataConfig(directory="d", context=8, batch_size=4), optim=OptimConfig(peak_lr=1e-3), steps=10
)
STARTED = dataclasses.replace(RUN, model=None, init=InitConfig(checkpoint="other"))


@dataclasses.dataclass(unsafe_hash=True)
class Sink(Transition):
  """A user's own."""

  depth: int = 1


def reached(config, path):
  for name in path.split("."):
    config = getattr(config, name)
  return config


@pytest.mark.parametrize(
  ("config", "path", "text", "value"),
  [
    (RUN, "steps", "1_000", 1000),
    (RUN, "optim.peak_lr", "3", 3.0),
    (RUN, "optim.floor", "0.5", 0.5),
    (RUN, "data.document_mask", "true", True),
    (RUN, "data.document_mask", "False", False),
    (RUN, "data.split", "train[:90%]", "train[:90%]"),
    (RUN, "data.split", "'train'", "train"),
    (RUN, "data.directory", "gs://bucket/data, and more", "gs://bucket/data, and more"),
    (RUN, "trackers", "()", ()),
    (RUN, "trackers", "wandb", ("wandb",)),
    (RUN, "trackers", "wandb,tensorboard", ("wandb", "tensorboard")),
    (RUN, "keep_every", "5", 5),
    (RUN, "model.positions", "None", None),
    (RUN, "model.positions", "ALiBi", ALiBi()),
    (
      RUN,
      "model.positions",
      "RoPE(theta=1e5, scaling=YaRN(factor=8, original_context=1024))",
      RoPE(1e5, YaRN(8.0, 1024)),
    ),
    (RUN, "model.positions.scaling", "YaRN(8, 1024)", YaRN(8.0, 1024)),
    (RUN, "model.positions", "LayerPattern([Layer(ALiBi, 4), Layer()])", LayerPattern((Layer(ALiBi(), 4), Layer()))),
    (RUN, "model.qk_norm", "QKNorm(scope=head)", QKNorm("head")),
    (RUN, "model.qk_norm.scope", "head", QKNorm("head").scope),
    (RUN, "init.checkpoint", "runs/rope", "runs/rope"),
    (STARTED, "init.step", "5", 5),
    (STARTED, "init.transition", "Keep", Keep()),
    (STARTED, "init.transition", "PartialDrop(turns=2)", PartialDrop(2.0)),
    (STARTED, "init.transition", "Fade(0.5, order='slow_first')", Fade(0.5, "slow_first")),
    (STARTED, "init.transition", "Sink(depth=3)", Sink(3)),
    (STARTED, "init.transition", f"{__name__}.Sink", Sink()),
    (STARTED, "init.transition", f"{__name__}:Sink(3)", Sink(3)),
  ],
)  # fmt: skip
def test_a_field_is_set(config, path, text, value):
  changed = overridden(config, [(path, text)])
  assert reached(changed, path) == value and type(reached(changed, path)) is type(value)
  assert overridden(config, []) == config


def test_overrides_count_in_their_order_and_leave_the_config_alone():
  before = to_dict(STARTED)
  pairs = [("init.transition", "PartialDrop"), ("init.transition.turns", "3"), ("init.transition.fastest", "2")]
  assert overridden(STARTED, pairs).init.transition == PartialDrop(3.0, fastest=2)
  assert to_dict(STARTED) == before


def test_an_item_of_a_tuple_is_set():
  config = overridden(RUN, [("model.positions", "LayerPattern((Layer(RoPE()), Layer(None)))")])
  changed = overridden(
    config, [("model.positions.layers[0].window", "4"), ("model.positions.layers[1]", "Layer(ALiBi)")]
  )
  assert changed.model.positions == LayerPattern((Layer(RoPE(), 4), Layer(ALiBi())))


def test_fields_of_a_value_that_is_none_begin_with_its_defaults():
  assert overridden(RUN, [("init.checkpoint", "x"), ("init.step", "3")]).init == InitConfig(checkpoint="x", step=3)


def test_a_home_is_expanded(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert overridden(RUN, [("data.directory", "~/data")]).data.directory == "/home/me/data"


@pytest.mark.parametrize(
  ("path", "text", "named"),
  [
    ("stps", "3", ["TrainConfig.stps", "fields: model, init, data"]),
    ("optim.peek_lr", "3", ["TrainConfig.optim.peek_lr", "peak_lr"]),
    ("model.positions.thta", "3", ["TrainConfig.model.positions.thta", "fields: theta"]),
    ("model.positions", "RoPE(thta=3)", ["TrainConfig.model.positions.thta", "fields: theta"]),
    ("model.positions", "RoPE(scaling=YaRN(factr=3))", ["TrainConfig.model.positions.scaling.factr", "fields: factor"]),
    ("model.positions", "RoPE(scaling=YaRN(3))", ["TrainConfig.model.positions.scaling", "original_context"]),
    ("model.positions", "Rope", ["TrainConfig.model.positions", "'Rope'", "RoPE, RoPETable, ALiBi", "LayerPattern"]),
    ("model.positions", "rope(", ["TrainConfig.model.positions", "'rope('", "RoPETable", "LayerPattern, None"]),
    ("model.positions", "RoPE(1, None, None, None, 5)", ["TrainConfig.model.positions", "takes 4"]),
    ("model.positions", "RoPE(1e4, theta=1e5)", ["TrainConfig.model.positions.theta", "twice"]),
    ("model.positions", "RoPE(**{})", ["TrainConfig.model.positions", "**"]),
    ("model.positions", "RoPE(theta=__import__('os').getpid())", ["TrainConfig.model.positions.theta", "float"]),
    ("model.positions", "nowhere:Spiral", ["nowhere:Spiral", "--import=nowhere"]),
    ("model.positions.scaling.factor", "2", ["TrainConfig.model.positions.scaling is None", "PI, NTK"]),
    ("model.positions.layers[0]", "Layer()", ["layers", "fields: theta"]),
    ("trackers[3]", "wandb", ["TrainConfig.trackers has no item 3"]),
    ("steps.more", "3", ["TrainConfig.steps is 10", "no fields"]),
    ("steps", "many", ["TrainConfig.steps is many", "int"]),
    ("steps", "1 + 1", ["TrainConfig.steps is 1 + 1", "int"]),
    ("steps", "1.5", ["TrainConfig.steps is 1.5", "int"]),
    ("steps", "None", ["TrainConfig.steps is None"]),
    ("steps", "0", ["TrainConfig.steps is 0"]),
    ("seed", "-1", ["TrainConfig.seed is -1"]),
    ("seed", str(2**40), ["TrainConfig.seed is"]),
    ("data.document_mask", "maybe", ["TrainConfig.data.document_mask is maybe", "bool"]),
    ("data.directory", "None", ["TrainConfig.data.directory is None"]),
    ("init.transition", "Keep", ["TrainConfig.init", "checkpoint"]),
    ("", "3", ["''"]),
    ("model..positions", "None", ["'model..positions'"]),
  ],
)  # fmt: skip
def test_what_cannot_be_is_named(path, text, named):
  with pytest.raises(ConfigError) as error:
    overridden(RUN, [(path, text)])
  assert all(part in str(error.value) for part in named), error.value
  assert "\n" not in str(error.value)
