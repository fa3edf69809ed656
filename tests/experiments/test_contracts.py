"""Every experiment config builds, its docstring's numbers are true, and its training step lowers."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh, AxisType
from support.lowering import lower

from drope_jax import checkpoint
from drope_jax.errors import ConfigError
from drope_jax.metrics import flops_per_token
from drope_jax.parameters import count_parameters, map_specs
from drope_jax.serialization import checked
from drope_jax.sharding import AXES, PRESETS
from drope_jax.training.preflight import check_layout
from drope_jax.training.run import Run, start_from
from drope_jax.transitions import Drop, drop
from experiments.configs import pretrain, recalibrate
from experiments.costs import exponent
from experiments.models import run_models
from experiments.studies import quickstart, smollm2_lengths, smollm2_recalibration

# Recipes of one model differ in numbers alone, which make no other program, but for the QK-norm.
DISTINCT = {(recipe.base, recipe.qk_norm): arg for arg, recipe in recalibrate.RECIPES.items()}
TRACED = {
  **{f"pretrain:{arg}": (pretrain, arg) for arg in pretrain.ARGS},
  **{f"recalibrate:{arg}": (recalibrate, arg) for arg in DISTINCT.values()},
}


def with_model(module, arg):
  """The config, with the model that a recalibration would read from its checkpoint."""
  config = checked(module.get_config(arg))
  return config if config.init is None else start_from(config, config.init.model).config


@pytest.mark.parametrize("name", TRACED)
def test_the_train_step_of_every_model_lowers_on_an_abstract_mesh(name):
  config = with_model(*TRACED[name])
  tensor = 2 if config.model.num_kv_heads % 2 == 0 else 1
  assert "sharding" in lower(config, AbstractMesh((2, 8 // tensor, tensor, 1), AXES, axis_types=(AxisType.Auto,) * 4))


@pytest.fixture
def recalibration(monkeypatch):
  """The study with its defaults, as if its checkpoint and its data existed."""
  base = recalibrate.BASES["smollm2_135m"]
  saved = checkpoint.SavedStep(Path("nowhere"), 0, {}, None, base.model, base.context)
  monkeypatch.setattr(smollm2_recalibration, "require", lambda *_, **__: None)
  monkeypatch.setattr(checkpoint, "open_step", lambda path, step=None: saved)
  return smollm2_recalibration.get_config().study(Path("study"))


def run_configs(study):
  """The run's configs, with their models."""
  models = run_models(study, Path("study"))
  return {name: dataclasses.replace(run, model=models[name]) for name, run in study.runs.items()}


def test_the_train_steps_of_the_studies_lower_on_an_abstract_mesh(recalibration):
  quick = run_configs(quickstart.get_config().study(Path("study")))
  again = run_configs(recalibration)
  assert list(quick) == ["rope", "rope_continued", "drope", "partial", "nope"]
  assert list(again) == [
    *("control_qk_norm", "drop_qk_norm", "control_plain", "drop_plain"),
    *("turns_0.5_plain", "turns_1_plain", "turns_2_plain"),
  ]
  configs = (*quick.values(), *again.values())
  for config in {(type(one.model.positions), one.model.qk_norm, one.data.context): one for one in configs}.values():
    tensor = 2 if config.model.num_kv_heads % 2 == 0 else 1
    mesh = AbstractMesh((2, 4 // tensor, tensor, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    assert "sharding" in lower(config, mesh)


def test_the_numbers_in_the_docstrings_of_the_trained_studies(recalibration):
  settings = quickstart.get_config()
  quick, again = (next(iter(run_configs(one).values())) for one in (settings.study(Path("study")), recalibration))
  steps = settings.pretrain_steps + settings.recalibrate_steps
  per_token, text = flops_per_token(quick.model, 128), " ".join(quickstart.__doc__.split())
  tokens = steps * quick.data.batch_size * quick.data.context
  assert f"Tokens: {tokens / 1e6:.2f}M an arm. Parameters: {count_parameters(quick.model):,}." in text
  assert f"(PaLM, T 128): {exponent(per_token, 3)}; an arm: {exponent(per_token * tokens, 2)}." in text
  per_token, text = flops_per_token(again.model, 8192), " ".join(smollm2_recalibration.__doc__.split())
  tokens = again.steps * again.data.batch_size * again.data.context
  assert f"Seven runs of {again.steps:,} steps, {tokens / 1e9:.2f}B tokens each." in text
  assert f"Parameters: {count_parameters(again.model) / 1e6:.1f}M." in text
  assert f"(PaLM, T 8,192): {exponent(per_token, 3)}; a run: {exponent(per_token * tokens, 2)}." in text


def test_the_numbers_in_the_docstring_of_the_study_that_trains_nothing():
  model, text = recalibrate.BASES["smollm2_135m"].model, " ".join(smollm2_lengths.__doc__.split())
  forward = flops_per_token(model, 16_384) / 3
  assert f"Parameters: {count_parameters(model) / 1e6:.1f}M. FLOPs per token, forward" in text
  assert f"(PaLM, T 16,384): {exponent(forward, 3)}." in text


@pytest.mark.parametrize("module", [pretrain, recalibrate, quickstart, smollm2_lengths, smollm2_recalibration])
def test_a_docstring_names_what_the_contract_asks_for(module):
  text = " ".join(module.__doc__.split())
  for part in ("table", "python -m experiments.", "--workdir", "token", "arameters", "FLOPs", "Numbers to expect"):
    assert part in text, part


POD_PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "pod.md").read_text()
LAUNCH_TABLE = POD_PAGE.split("## Which mesh?")[1].split("\n## ")[0]
PRETRAINED = {"SmolLM-360M": "smollm_360m_30b", "SmolLM-1.7B": "smollm_1_7b", "Llama2-7B": "llama2_7b"}


def launch_cells():
  """(model, context, chips, preset, settings) of every cell of the table that names a mesh."""
  lines = [line.strip("| ").split(" | ") for line in LAUNCH_TABLE.splitlines() if line.startswith("| ")]
  first = next(i for i, line in enumerate(lines) if line[0] == "model (context)")
  machines = [int(re.search(r": (\d+)", name).group(1)) for name in lines[first][1:]]
  for name, *cells in lines[first + 1 :]:
    model, context = re.fullmatch(r"(\S+) \((\d+)\)", name).groups()
    for chips, cell in zip(machines, cells, strict=True):
      if cell != "-":
        settings = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", cell)}
        yield model, int(context), chips, re.match(r"`(\w+)`", cell).group(1), settings


@pytest.mark.parametrize("cell", list(launch_cells()), ids=str)
def test_the_meshes_of_the_launch_table_cut_their_models_into_equal_pieces(cell):
  name, context, chips, preset, settings = cell
  config = with_model(recalibrate, PRETRAINED[name]) if name in PRETRAINED else with_model(pretrain, "rope")
  optim = dataclasses.replace(config.optim, accumulation=settings.pop("accumulation", 1))
  batch_size = config.data.batch_size if preset != "context" else 8
  data = dataclasses.replace(config.data, context=context, batch_size=batch_size)
  mesh_config = dataclasses.replace(PRESETS[preset], **settings)
  sizes = [getattr(mesh_config, axis) for axis in AXES]
  sizes = [size if size != -1 else chips // -math.prod(sizes) for size in sizes]
  assert math.prod(sizes) == chips
  run = Run(dataclasses.replace(config, data=data, optim=optim), config.model)
  check_layout(run, AbstractMesh(tuple(sizes), AXES))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_train_step_lowers_under_every_preset(preset):
  config = with_model(recalibrate, "smollm_1_7b")
  sizes = [getattr(PRESETS[preset], axis) for axis in AXES]
  sizes = [size if size != -1 else 8 // -math.prod(sizes) for size in sizes]
  assert "sharding" in lower(config, AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 4))


def test_the_numbers_in_the_docstring_are_those_of_the_model():
  config = pretrain.get_config("rope")
  parameters = count_parameters(config.model)
  embedding = config.model.vocab_size * config.model.d_model
  per_token = flops_per_token(config.model, config.data.context)
  per_run = per_token * config.data.context * config.data.batch_size * config.steps
  text = pretrain.__doc__
  assert f"{parameters / 1e6:.1f}M ({(parameters - embedding) / 1e6:.1f}M without the embedding)" in text
  assert f"{per_token:.3e}".replace("e+0", "e") in text
  assert f"a 16,000-step run: {per_run:.2e}".replace("e+", "e") in text


@pytest.mark.parametrize("base", recalibrate.BASES)
def test_the_numbers_of_the_pretrained_models(base):
  model, context, batch_size, _ = recalibrate.BASES[base]
  first = next(recipe for recipe in recalibrate.RECIPES.values() if recipe.base == base)
  per_token = flops_per_token(model, context)
  cells = [cell.strip() for cell in table_row(recalibrate, base).split("|")[1:-1]]
  assert cells == [
    base,
    f"{count_parameters(model) / 1e6:.1f}M",
    f"{context:,}",
    exponent(per_token, 3),
    exponent(per_token * context * batch_size * first.steps, 2),
  ]


def table_row(module, name):
  *_, row = re.findall(rf"^\| {name} .*$", module.__doc__, re.MULTILINE)  # of the last table that has it
  return row


@pytest.mark.parametrize("arg", pretrain.ARGS)
def test_the_tokens_in_the_docstring_are_those_of_the_run(arg):
  config = pretrain.get_config(arg)
  tokens = config.steps * config.data.batch_size * config.data.context
  row = table_row(pretrain, arg)
  assert f"{config.steps:,}" in row
  assert f"{tokens / 1e9:.1f}B" in row


@pytest.mark.parametrize("arg", recalibrate.RECIPES)
def test_each_recipe_is_what_the_docstring_says(arg):
  config = recalibrate.get_config(arg)
  tokens = config.steps * config.data.batch_size * config.data.context
  rows = [row.split("|") for row in re.findall(rf"^\| {arg} .*$", recalibrate.__doc__, re.MULTILINE)]
  cells = [cell.strip() for cell in rows[0][1:-1]]
  assert cells[2:] == [
    f"{config.optim.peak_lr:.0e}".replace("e-0", "e-"),
    "no" if config.init.qk_norm is None else "yes",
    f"{config.steps:,}",
    f"{tokens / 1e9:.1f}B",
  ]
  assert config.init.transition == Drop() and config.data.tokenizer == "init"
  optim = config.optim
  assert [cell.strip() for cell in rows[1][2:-1]] == [
    optim.schedule,
    f"{optim.warmup_steps:,}",
    f"{optim.decay_steps:,}" if optim.schedule == "wsd" else "",
    "" if optim.schedule == "constant" else f"{0.1 if optim.floor is None else optim.floor:g}",
    f"{optim.optimizer.beta2:g}",
    f"{optim.optimizer.weight_decay:g}",
  ]
  assert (optim.optimizer.beta1, optim.clip_norm, optim.accumulation) == (0.9, 1.0, 1)


READINGS = {  # what the paper's table 4 and its released code say, beyond the budgets
  "smollm_360m_30b": {"peak_lr": 1e-3, "schedule": "cosine", "warmup_steps": 490, "beta2": 0.95, "weight_decay": 0.1},
  "smollm_360m_released": {"peak_lr": 3e-4, "schedule": "constant", "beta2": 0.999, "weight_decay": 0.0},
  "smollm_1_7b_released": {"schedule": "wsd", "warmup_steps": 600, "decay_steps": 23_400, "floor": 0.1},
  "llama2_7b_released": {"peak_lr": 1e-4, "schedule": "cosine", "warmup_steps": 100, "floor": 0.0, "beta2": 0.999},
}


@pytest.mark.parametrize("arg", READINGS)
def test_the_readings_are_those_of_the_paper_and_its_code(arg):
  optim = recalibrate.get_config(arg).optim
  stated = {**vars(optim), **vars(optim.optimizer)}
  assert {name: stated[name] for name in READINGS[arg]} == READINGS[arg]


def test_the_epochs_of_the_small_recipes_are_stated():
  """Computed with the number of tokens in the docstring of experiments.prose."""
  prose = (Path(__file__).parents[2] / "experiments" / "prose.py").read_text()  # to import it would define its flags
  millions = float(re.search(r"([\d.]+)M, [\d.]+M and [\d.]+M tokens", prose).group(1))
  config = recalibrate.get_config("smollm2_135m")
  assert config.data.directory == "data/prose"
  epochs = config.steps * config.data.batch_size * config.data.context / (millions * 1e6)
  assert f"are {epochs:.0f} epochs over data/prose, whose split `train` is {millions}M tokens" in recalibrate.__doc__


def test_recipes_do_not_share_what_flags_may_change():
  recalibrate.get_config("smollm_360m_30b").optim.peak_lr = 0.5
  assert recalibrate.get_config("smollm_360m_30b").optim.peak_lr == 1e-3


def test_dropping_any_of_them_leaves_the_parameters_alone():
  model = pretrain.get_config("rope").model
  assert map_specs(lambda s: s.shape, drop(model)) == map_specs(lambda s: s.shape, model)


def test_an_unknown_argument_is_refused_by_name():
  with pytest.raises(ConfigError, match="no 'rop'"):
    pretrain.get_config("rop")
  with pytest.raises(ConfigError, match="no 'smollm'"):
    recalibrate.get_config("smollm")
