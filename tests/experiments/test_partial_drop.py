"""The study of the partial drop: the numbers on its page, the fairness of its arms, and its programs."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from drope_jax import transitions
from drope_jax.aot.compile import trace_train_step, with_model
from drope_jax.config import MeshConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.errors import ConfigError
from drope_jax.metrics import flops_per_token
from drope_jax.parameters import count_parameters
from drope_jax.sharding import make_mesh
from experiments.studies import partial_drop
from experiments.study import run_models

PAGE = {
  cells[0]: cells
  for line in partial_drop.__doc__.splitlines()
  if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in partial_drop.SIZES
}


def exponent(value: float, digits: int) -> str:
  return f"{value:.{digits}e}".replace("e+0", "e").replace("e+", "e")


def runs_of(size):
  return partial_drop.get_config(size).study(Path("study")).runs


@pytest.mark.parametrize("size", partial_drop.SIZES)
def test_the_page_says_what_a_size_costs(size):
  settings = partial_drop.get_config(size)
  study = settings.study(Path("study"))
  models = run_models(study, Path("study"))
  tokens = {name: run.steps * run.data.batch_size * run.data.context for name, run in study.runs.items()}
  per_token = flops_per_token(settings.model, settings.context)
  kept = ", ".join(f"{turns:g} ({models[f'turns_{turns:g}'].positions.pairs})" for turns in settings.turns)
  assert PAGE[size] == [
    size,
    f"{count_parameters(settings.model):,}",
    f"{settings.context:,}",
    *(f"{tokens[name] / 1e6:,.2f}M" for name in ("trunk", "control")),
    kept,
    exponent(per_token, 3),
    exponent(per_token * sum(tokens.values()), 2),
  ]


@pytest.mark.parametrize("size", partial_drop.SIZES)
def test_tails_differ_in_their_transition_alone(size):
  trunk, *tails = runs_of(size).items()
  assert trunk[0] == "trunk" and trunk[1].init is None
  assert [type(run.init.transition) for _, run in tails[:2]] == [transitions.Keep, transitions.Drop]
  alike = {
    dataclasses.replace(run, init=dataclasses.replace(run.init, transition=transitions.Keep())) for _, run in tails
  }
  assert len(alike) == 1
  (tail,) = alike
  assert tail.init.checkpoint == "study/runs/trunk"
  assert tail.data == trunk[1].data and tail.seed != trunk[1].seed  # the tails go on in another order of the text


def test_every_tail_is_an_arm_and_has_its_rows():
  study = partial_drop.get_config("small").study(Path("study"))
  rows = {name: [row.method for row in study.rows if row.run == name] for name in study.runs}
  assert rows == {
    "trunk": [],
    "control": ["rope", "ntk", "yarn"],
    "drop": ["nope", "drope"],
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
