"""Configs on their way to JSON and back, and their files."""

import dataclasses
import json

import pytest
from support.configs import SHAPE, model, run

from drope_jax import config as config_module
from drope_jax import model_config, serialization
from drope_jax.config import (
  ComputeConfig,
  DataConfig,
  InitConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  QKNorm,
  TrainConfig,
)
from drope_jax.errors import ConfigError
from drope_jax.files import holds_something
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE, rnope_swa
from drope_jax.scalings import NTK, PI, DynamicNTK, DynamicYaRN, Llama3, NTKByParts, YaRN
from drope_jax.serialization import checked, differences, from_dict, is_cut_off, load_config, save_config, to_dict
from drope_jax.transitions import Keep

SCALINGS = [
  PI(2.0),
  NTK(2.0),
  NTKByParts(2.0, 64, slow=2.0, fast=16.0),
  YaRN(2.0, 64, beta_fast=16.0),
  YaRN(2.0, 64, attention_factor=1.5),
  DynamicNTK(64, factor=2.0),
  DynamicYaRN(64, beta_slow=2.0),
  Llama3(2.0, 64, 2.0, 8.0),
]
PATTERN = LayerPattern((Layer(RoPE(500.0, YaRN(2.0, 64)), 8), Layer(ALiBi()), Layer(None)))
POSITIONS = [None, ALiBi(), RoPE(), rnope_swa(8), PATTERN, *(RoPE(500.0, scaling) for scaling in SCALINGS)]


CONFIGS = [
  *(model(positions=positions) for positions in POSITIONS),
  model(qk_norm=QKNorm("head", keys=False), qkv_bias=True, tie_embeddings=False),
  QKNorm(),
  ComputeConfig(dtype="bfloat16", scan_layers=False, remat="dots"),
  DataConfig(directory="d", context=8, batch_size=4, document_mask=True),
  OptimConfig(peak_lr=1e-3, schedule="wsd", decay_steps=5),
  MeshConfig(data=2, fsdp=-1),
  InitConfig(checkpoint="other", step=3, qk_norm=QKNorm("head")),
  run(model=model(positions=PATTERN)),
  run(
    model=None, init=InitConfig(checkpoint="other", transition=Keep()), keep_every=5, trackers=("wandb", "tensorboard")
  ),
  run(trackers=()),
]


def test_every_config_class_is_tried_below():
  modules = (config_module, model_config)
  declared = [item for module in modules for item in vars(module).values() if dataclasses.is_dataclass(item)]
  names = {module.__name__ for module in modules}
  assert {type(config) for config in CONFIGS} == {item for item in declared if item.__module__ in names}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_json_round_trip(config, tmp_path):
  assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
  save_config(config, tmp_path / "config.json")
  restored = load_config(type(config), tmp_path / "config.json")
  assert restored == config
  assert hash(restored) == hash(config)  # a static argument of jit


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_checked_is_an_equal_copy_that_shares_nothing(config):
  copy = checked(config)
  assert copy == config
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      assert getattr(copy, field.name) is not value


def test_saved_config_tells_the_library_versions(tmp_path):
  save_config(model(), tmp_path / "config.json")
  versions = json.loads((tmp_path / "config.json").read_text())["versions"]
  assert versions["jax"] == __import__("jax").__version__


def test_absent_fields_take_their_defaults():
  assert from_dict(ModelConfig, SHAPE) == model()


def test_a_whole_number_is_a_float_where_one_is_wanted():
  norm_eps = from_dict(ModelConfig, {**SHAPE, "norm_eps": 1}).norm_eps
  assert norm_eps == 1.0 and isinstance(norm_eps, float)


def changed(data, path, value):
  """`data` with the entry at the dotted `path` replaced, added, or (value is `del`) removed."""
  first, _, rest = path.partition(".")
  if rest:
    key = int(first) if first.isdigit() else first
    entry = changed(data[key], rest, value)
    return [*data[:key], entry, *data[key + 1 :]] if isinstance(data, list) else {**data, first: entry}
  if value is REMOVED:
    return {key: item for key, item in data.items() if key != first}
  return {**data, first: value}


REMOVED = object()


@pytest.mark.parametrize(
  "path, value, message",
  [
    ("stepz", 3, "TrainConfig.stepz"),
    ("model.rope_theta", 1e4, "TrainConfig.model.rope_theta"),
    ("model.positions.layers.0.positions.scaling.beta", 1, "model.positions.layers[0].positions.scaling.beta"),
    ("steps", REMOVED, "TrainConfig.*steps"),
    ("data.context", REMOVED, "TrainConfig.data.*context"),
    ("model.d_model", REMOVED, "TrainConfig.model.*d_model"),
    ("model.positions.layers.0.positions.scaling.factor", REMOVED, "positions.scaling.*factor"),
    ("steps", "10", "TrainConfig.steps is '10'"),
    ("steps", 10.0, "TrainConfig.steps is 10.0"),
    ("steps", True, "TrainConfig.steps is True"),
    ("steps", None, "TrainConfig.steps"),
    ("optim.peak_lr", "1e-3", "TrainConfig.optim.peak_lr is '1e-3'"),
    ("optim.peak_lr", True, "TrainConfig.optim.peak_lr is True"),
    ("data.document_mask", 1, "TrainConfig.data.document_mask is 1"),
    ("model.tie_embeddings", "false", "TrainConfig.model.tie_embeddings is 'false'"),
    ("data", 3, "TrainConfig.data is 3"),
    ("model.positions", "rope", "TrainConfig.model.positions is 'rope'"),
    ("model.positions.type", "Rope", "TrainConfig.model.positions.type is 'Rope'; allowed: RoPE, RoPETable, ALiBi"),
    ("model.positions.layers", {}, "TrainConfig.model.positions.layers is {}"),
    ("model.positions.layers.1.window", 2.5, "TrainConfig.model.positions.layers[1].window is 2.5"),
    ("model.positions.layers", [], "TrainConfig.model.positions.*LayerPattern.layers is empty"),
    ("model.positions.layers.0.positions.scaling.factor", 0.5, "scaling.*YaRN.factor is 0.5"),
    ("trackers", "wandb", "TrainConfig.trackers is 'wandb'"),
    ("trackers", ["wandb", 3], "TrainConfig.trackers[1] is 3"),
    ("type", "ModelConfig", "TrainConfig.type is 'ModelConfig'"),
  ],
)  # fmt: skip
def test_unknown_missing_and_mistyped_fields_are_named_by_their_path(path, value, message):
  data = changed(to_dict(run(model=model(positions=PATTERN))), path, value)
  with pytest.raises(ConfigError) as error:
    from_dict(TrainConfig, data)
  text = str(error.value)
  assert "\n" not in text
  start = 0
  for part in message.split(".*"):
    assert part in text[start:], text
    start = text.index(part, start) + len(part)


@pytest.mark.parametrize(
  "path, value, named",
  [
    ("model.head_dim", 5, "ModelConfig.head_dim is 5"),
    ("model.d_model", "16", "TrainConfig.model.d_model is '16'"),
    ("model.positions.scaling.factor", 0.5, "PI.factor is 0.5"),
    ("model.positions", "rope", "TrainConfig.model.positions is 'rope'"),
    ("optim.accumulation", 3, "OptimConfig.accumulation is 3"),
    ("data.context", 0, "DataConfig.context is 0"),
    ("mesh.data", 0, "MeshConfig.data is 0"),
    ("compute.remat", "some", "ComputeConfig.remat is 'some'"),
    ("steps", 0, "TrainConfig.steps is 0"),
    ("trackers", "wandb", "TrainConfig.trackers is 'wandb'"),
  ],
)
def test_checked_catches_a_bad_override_set_in_place(path, value, named):
  config = checked(run(model=model(positions=RoPE(scaling=PI(2.0)))))
  *owners, field = path.split(".")
  owner = config
  for name in owners:
    owner = getattr(owner, name)
  setattr(owner, field, value)
  with pytest.raises(ConfigError) as error:
    checked(config)
  assert named in str(error.value)


def test_a_config_is_replaced_whole_and_only_if_it_changes(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  save_config(model(), path)
  before = path.stat().st_mtime_ns, path.stat().st_ino
  monkeypatch.setattr(serialization, "library_versions", lambda: {"jax": "99"})
  save_config(model(), path)
  assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
  save_config(model(d_ff=32), path)
  assert load_config(ModelConfig, path) == model(d_ff=32)
  assert json.loads(path.read_text())["versions"]["jax"] != "99"
  assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_what_was_cut_off_and_what_a_crash_left_are_told_from_other_files(tmp_path):
  path = tmp_path / "config.json"
  save_config(model(), path)
  whole = path.read_text()
  assert not is_cut_off(path, ModelConfig)
  for length in (0, 1, 10, 60, len(whole) - 2):
    path.write_text(whole[:length])
    assert is_cut_off(path, ModelConfig)
    assert not length or is_cut_off(path, TrainConfig) == (length < 12)
  path.write_text(whole[:-1])  # as an editor may leave it
  assert not is_cut_off(path, ModelConfig)
  path.write_text('{"mine": 1}')
  assert not is_cut_off(path, ModelConfig)
  path.rename(tmp_path / "config.json.draft")
  assert not holds_something(tmp_path) and not holds_something(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"stepz": 3}', '{"data": 3}'])
def test_load_config_names_the_file(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(ConfigError, match=str(path)):
    load_config(TrainConfig, path)


def test_load_config_names_a_file_that_is_not_there(tmp_path):
  with pytest.raises(ConfigError, match=str(tmp_path / "absent.json")):
    load_config(TrainConfig, tmp_path / "absent.json")


def test_differences_names_each_field_with_both_values():
  old = to_dict(run(model=model(positions=RoPE(500.0, PI(2.0)))))
  new = to_dict(run(model=model(positions=RoPE(500.0, PI(4.0)), d_ff=32), steps=20))
  assert differences(old, new) == [
    "model.d_ff: 24 there, 32 here",
    "model.positions.scaling.factor: 2.0 there, 4.0 here",
    "steps: 10 there, 20 here",
  ]


def test_equal_configs_have_no_differences():
  assert differences(to_dict(run()), to_dict(run())) == []


def test_differences_between_a_value_and_none_are_one_line():
  (line,) = differences(to_dict(model(positions=RoPE())), to_dict(model(positions=None)))
  assert line.startswith("positions: ") and line.endswith("None here")
