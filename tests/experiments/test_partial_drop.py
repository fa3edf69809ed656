"""The study of the partial drop: the numbers in its docstring, the fairness of its arms, and its programs."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import pytest

from drope_jax import transitions
from drope_jax.aot.compile import trace_train_step, with_model
from drope_jax.config import MeshConfig, TrainConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.positions import RoPE
from drope_jax.scalings import CoPE, YaRN, base_frequencies
from drope_jax.sharding import make_mesh
from experiments.models import run_models
from experiments.studies import partial_drop, partial_drop_rule


def runs_of(size):
  return partial_drop.get_config(size).study(Path("study")).runs


def test_the_page_says_how_many_pairs_each_number_of_turns_keeps():
  page, said = " ".join(partial_drop.__doc__.split()), []
  for size, turns in (("mini", (0.35, 0.5, 1, 2, 4)), ("small", (0.5, 1, 2)), ("paper", (1, 2))):
    study = partial_drop.get_config(size).study(Path("study"))
    models = run_models(study, Path("study"))
    said.append(f"{size} {', '.join(str(models[f'turns_{n:g}'].positions.pairs) for n in turns)}")
    said[-1] += f" of {models['control'].head_dim // 2}" if size != "paper" else ""
  assert said == ["mini 8, 7, 6, 5, 3 of 16", "small 16, 13, 11 of 32", "paper 12, 11"]
  assert all(part in page for part in said)


def test_the_rule_keeps_other_numbers_of_pairs_at_other_places():
  kept = {}
  for size in ("mini", "mini_256"):
    settings = partial_drop_rule.get_config(size)
    models = run_models(settings.study(Path("study")), Path("study"))
    for theta in (name.removesuffix("_control") for name in models if name.endswith("_control")):
      kept[settings.context, theta] = models[f"{theta}_turns_1"].positions.pairs
      pairs = [model.positions.pairs for name, model in models.items() if re.match(f"{theta}_(turns|fastest)", name)]
      assert 6 in pairs and len(set(pairs)) == len(pairs)
  assert kept == {(128, "theta_1e5"): 5, (256, "theta_1e4"): 7, (256, "theta_1e5"): 6}


def test_a_run_alone_knows_the_model_that_it_starts_from():
  assert partial_drop_rule.get_config("mini/theta_1e5_turns_1").init.model.positions == RoPE(1e5)
  assert partial_drop.get_config("mini/turns_1").init.model.positions == RoPE(1e4)


def test_the_smallest_theta_turns_every_pair_once():
  settings = partial_drop.get_config("mini")
  theta = partial_drop.theta_once(settings.model, settings.context)
  turns = base_frequencies(theta, settings.model.head_dim) * settings.context / (2 * math.pi)
  assert turns.min() == pytest.approx(1, rel=1e-4) and turns.min() >= 1


@pytest.mark.parametrize("size", partial_drop.SIZES)
def test_tails_differ_in_their_transition_alone(size):
  runs = runs_of(size)
  trunk, tails = runs["trunk"], [run for run in runs.values() if isinstance(run, TrainConfig) and run.init is not None]
  assert trunk.init is None
  assert [type(run.init.transition) for run in tails[:2]] == [transitions.Keep, transitions.Drop]
  keep = transitions.Keep()
  alike = {dataclasses.replace(run, init=dataclasses.replace(run.init, transition=keep)) for run in tails}
  assert len(alike) == 1
  (one,) = alike
  assert one.init.checkpoint == "study/runs/trunk"
  assert one.data == trunk.data and one.seed != trunk.seed  # the tails go on in another order of the text


def test_the_controls_of_mini_are_what_they_are_called():
  study = partial_drop.get_config("mini").study(Path("study"))
  models = run_models(study, Path("study"))
  clipped = study.runs["clipped"]
  assert (clipped.checkpoint, clipped.transition) == ("study/runs/control", transitions.PartialDrop(turns=1.0))
  assert models["from_scratch"] == models["clipped"] == models["turns_1"]
  assert study.runs["from_scratch"].init is None
  assert study.runs["from_scratch"].steps == study.runs["trunk"].steps + study.runs["control"].steps
  assert (models["cope"].positions.scaling, models["cope"].positions.theta) == (CoPE(128), 1e4)
  assert models["yarn_continued"].positions.scaling == YaRN(8.0, 128)


def test_every_tail_is_an_arm_and_has_its_rows():
  study = partial_drop.get_config("small").study(Path("study"))
  rows = {name: [row.method for row in study.rows if row.run == name] for name in study.runs}
  assert rows == {
    "trunk": [],
    "control": ["rope", "ntk", "yarn"],
    "drop": ["nope", "drope"],
    "turns_0.5": ["rope", "yarn"],
    "turns_1": ["rope", "yarn"],
    "turns_2": ["rope", "yarn"],
  }
  assert [arm.runs for arm in study.arms] == [("trunk", name) for name in study.runs if name != "trunk"]
  assert list(study.lengths) == [256, 1024, 2048]


@pytest.mark.parametrize("run", ["trunk", "drop", "turns_1"])
@pytest.mark.parametrize("size", ["small", "paper"])
def test_runs_can_be_traced_before_their_trunk_is_there(size, run):
  config = with_model(partial_drop.get_config(f"{size}/{run}"))
  traced = trace_train_step(config, make_mesh(MeshConfig(), jax.devices()[:1]))
  assert traced.out_info[1]["loss"].shape == ()


def test_a_tail_of_few_steps_keeps_its_schedule():
  """As with `--config.tail_steps=2`: neither warmup nor decay is longer than the run."""
  settings = dataclasses.replace(partial_drop.get_config("small"), trunk_steps=1, tail_steps=2)
  runs = settings.study(Path("study")).runs
  assert (runs["trunk"].optim.schedule, runs["control"].optim.schedule) == ("constant", "wsd")
  assert (runs["control"].optim.warmup_steps, runs["control"].optim.decay_steps) == (0, 2)


def test_a_corpus_that_is_there_is_left_as_it_is(tmp_path):
  corpus = build_corpus(tmp_path / "carried" / "corpus", {"train": ["some text"]})
  load_tokenizer("byte").save(tmp_path / "carried" / "tokenizer")
  before = {path: path.read_bytes() for path in corpus.iterdir()}
  for size in partial_drop.SIZES:
    settings = dataclasses.replace(partial_drop.get_config(size), data=str(tmp_path / "carried"))
    settings.study(tmp_path / "study").prepare()
  assert {path: path.read_bytes() for path in corpus.iterdir()} == before


def test_what_is_missing_or_wrong_is_named(tmp_path):
  small = dataclasses.replace(partial_drop.get_config("small"), data=str(tmp_path / "no"), text=str(tmp_path / "prose"))
  with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "prose")) + ".*experiments.prose"):
    small.study(tmp_path / "study").prepare()
  with pytest.raises(ConfigError, match=r"PartialDropStudy\.data"):
    dataclasses.replace(small, text="").study(tmp_path / "study").prepare()
  for field, value in (("turns", (1.0, 1.0)), ("schedule", "linear"), ("tail_steps", 0)):
    with pytest.raises(ConfigError, match=f"PartialDropStudy.{field}"):
      dataclasses.replace(small, **{field: value})
  for arg in ("tiny", "mini/turns_3"):
    with pytest.raises(ConfigError, match="allowed"):
      partial_drop.get_config(arg)
