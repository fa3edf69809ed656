"""Figures 4, 6, 7, 8 and 11: their numbers follow the paper's formulas, and their studies draw them."""

import csv
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from support.tiny_run import WORDS, contents, tiny_corpus, tiny_model, tiny_run

from drope_jax.config import InitConfig, TrainConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.recall import needle_sample
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.parameters import count_parameters
from drope_jax.train import train
from experiments.factor_search import Search, nearest_allowed, search
from experiments.studies import fig4_bias_gradients as fig4
from experiments.studies import fig6_fig11_frequency_factors as fig6
from experiments.studies import fig7_positional_head as fig7
from experiments.studies import fig8_semantic_head as fig8
from experiments.studies.figures import standard_error, text_lines
from experiments.studies.table10_extension import Extension
from experiments.study import run_seeds, run_study


@pytest.mark.parametrize("extension", [2.0, 4.0])
def test_the_factors_are_those_of_the_methods(extension):
  """The paper's 494M shape: YaRN keeps pairs 0 to 3 and divides by s from 12 on; 12 pairs make a full turn."""
  paper = fig6.get_config("paper")
  found = fig6.factors(paper.theta, paper.head_dim, paper.context, extension)
  np.testing.assert_allclose(found["PI"], 1 / extension)
  np.testing.assert_allclose(found["NTK"], extension ** (-2 * np.arange(32) / 62))
  assert (found["YaRN"][:4] == 1).all() and np.allclose(found["YaRN"][12:], 1 / extension)
  assert found["partial drop"].tolist() == [1.0] * 12 + [0.0] * 20
  assert not found["drop"].any() and found["CoPE"][-1] == 0


def rows_of(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_the_picture_of_the_factors_has_its_numbers_beside_it_and_a_report_around_it(tmp_path):
  settings = fig6.FrequencyFactors(theta=1e4, head_dim=8, context=128, extensions=(2,))
  run_study(settings, tmp_path, formats=("svg",))
  assert (tmp_path / "figures" / "frequency_factors.png").read_bytes().startswith(b"\x89PNG")
  assert "partial drop" in (tmp_path / "figures" / "frequency_factors.svg").read_text()
  rows = rows_of(tmp_path / "figures" / "frequency_factors.csv")
  assert len(rows) == 6 * 4 and {row["gamma"] for row in rows if row["method"] == "PI"} == {"0.5"}
  assert "(figures/frequency_factors.png)" in (tmp_path / "report.md").read_text()
  before = contents(tmp_path)
  run_study(settings, tmp_path)  # draws nothing again
  assert contents(tmp_path) == before
  (tmp_path / "figures" / "frequency_factors.png").unlink()
  run_study(settings, tmp_path)
  assert contents(tmp_path)["figures/frequency_factors.png"] == before["figures/frequency_factors.png"]


def test_the_command_of_settings_that_could_not_be_drawn_is_forgotten(tmp_path, monkeypatch):
  settings = fig6.FrequencyFactors(theta=1e4, head_dim=8, context=128, extensions=(2,))
  with monkeypatch.context() as patched:
    patched.setattr("drope_jax.cli.command_line", lambda: "the first command")
    patched.setattr(fig6, "factors", lambda *_: pytest.fail())
    with pytest.raises(pytest.fail.Exception):
      run_study(settings, tmp_path)
  monkeypatch.setattr("drope_jax.cli.command_line", lambda: "the second command")
  run_study(dataclasses.replace(settings, theta=2e4), tmp_path)
  report = (tmp_path / "report.md").read_text()
  assert "the second command" in report and "the first command" not in report


@pytest.mark.parametrize("module", [fig4, fig6])
def test_what_trains_nothing_has_all_sizes_and_no_run(module):
  for size in ("mini", "small", "paper"):
    assert not module.get_config(size).study(Path("study")).runs
  with pytest.raises(ConfigError, match="trains nothing, so it has no run 'trunk'"):
    module.get_config("mini/trunk")


def test_the_sizes_of_figure_4_are_those_of_its_docstring():
  for size in fig4.SIZES:
    settings = fig4.get_config(size)
    (line,) = [line for line in fig4.__doc__.splitlines() if line.startswith(f"| {size} ")]
    held = count_parameters(settings.model)
    assert f"{held:,}" in line or f"{held / 1e6:.0f}M" in line
    assert f"| {settings.rows} × {settings.length:,} " in line


@pytest.mark.parametrize(
  ("module", "changes", "said"),
  [
    (fig4, {"layers": (4,)}, r"BiasGradients.layers has 4; the model's are 0 to 3"),
    (fig4, {"length": 1}, r"BiasGradients.length is 1"),
    (fig4, {"seeds": ()}, r"BiasGradients.seeds is empty"),
    (fig6, {"head_dim": 7}, r"FrequencyFactors.head_dim is 7; it must be even"),
    (fig7, {"length": 1}, r"PositionalHead.length is 1"),
    (fig8, {"dropped": "runs/drop"}, r"SemanticHead.dropped is set, but not SemanticHead.trained"),
  ],
)
def test_settings_that_cannot_be_drawn_are_refused(module, changes, said):
  with pytest.raises(ConfigError, match=said):
    dataclasses.replace(module.get_config("mini"), **changes)


def test_all_values_of_the_prompts_have_as_many_tokens():
  tokenizer = load_tokenizer("byte")
  prompts = fig8.make_prompts(text_lines(tokenizer, 512), 5, 512)
  assert prompts.tokens_NT.shape == (5, 512) and len(prompts.names) == prompts.places_Nn.shape[1]
  ends = zip(prompts.tokens_NT, prompts.places_Nn, strict=True)
  values = {tokenizer.decode(row[at][-prompts.values :].tolist()) for row, at in ends}
  assert len(values) > 1 and all(value[0] == " " and value[1:].isalpha() for value in values), values


def test_the_error_of_a_mean_needs_two_values():
  """Of 1, 2 and 3: 1 / sqrt(3), column by column."""
  np.testing.assert_allclose(standard_error(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])), [3**-0.5, 0])
  assert np.isnan(standard_error(np.array([[1.0, 5.0]]))).all()


def test_the_needle_is_the_fact_that_is_asked_for():
  tokenizer = load_tokenizer("byte")
  lines = text_lines(tokenizer, 512)
  for index in range(20):
    sample = needle_sample(lines, 512, fig8.DEPTH, 0, index, fig8.FACTS)
    asked = tokenizer.decode(sample.tokens.tolist()).rpartition("\n")[2]
    found = tokenizer.decode(sample.tokens[sample.needle].tolist())
    assert found == "\n" + asked + tokenizer.decode(list(sample.answer))


def test_a_search_keeps_to_what_is_allowed_and_finds_a_known_best():
  best = np.array([1.0, 1.4, 3.0, 6.0])

  seen = []

  def loss(factors):
    seen.append(factors)
    return float((np.log(factors / best) ** 2).sum())

  found = search(loss, [np.full(4, 4.0), np.ones(4)], critical=3, factor=4.0, how=Search(generations=30))
  assert all((np.diff(one) >= 0).all() and one.min() >= 1 and one[3] >= 4 and one.max() <= 8 for one in seen)
  assert loss(found) < 0.01 < loss(nearest_allowed(np.full(4, 4.0), 3, 4.0))


@pytest.mark.slow
def test_table_10_searches_for_the_factors_of_its_row(tmp_path):
  """Only once: a second start finds the factors, and measures nothing again."""
  train(tiny_run(tiny_corpus(tmp_path / "corpus"), data={"context": 256}, steps=5), tmp_path / "model")
  rng = random.Random(0)
  long = ["".join(" ".join(["It", *rng.choices(WORDS, k=7)]) + ". " for _ in range(25)) for _ in range(6)]
  prose = build_corpus(tmp_path / "prose", {"train": long, "heldout": long[:3], "fit": long[3:]})
  shape = {"model": tiny_model(), "context": 256, "batch_size": 2, "trunk_steps": 1, "tail_steps": 2}
  rates = {"peak_lr": 1e-3, "tail_lr": 1e-3, "warmup_steps": 1, "tail_warmup_steps": 1}
  settings = Extension(
    **shape, **rates, checkpoint=str(tmp_path / "model"), data=str(prose), methods=("rope", "yarn"), generations=2,
    extensions=(1, 2), documents=2, needles_per_depth=1,
  )  # fmt: skip
  workdir = tmp_path / "study"
  run_study(settings, workdir)
  before = contents(workdir)
  found = json.loads((workdir / "runs" / "longrope" / "factors.json").read_text())
  assert found["loss"] <= min(found["losses_of_others"].values())
  stored = json.loads((workdir / "study.json").read_text())["pretrained"]["longrope"]
  assert stored["transition"]["positions"]["scaling"]["long_factor"] == found["factors"]
  loss = {
    (row["run"], row["method"]): row["value"]
    for row in map(json.loads, (workdir / "results.jsonl").read_text().splitlines())
    if (row["metric"], row["by"], row["context"]) == ("loss", None, 512)
  }
  assert len({loss["control", "rope"], loss["control", "yarn"], loss["longrope", "rope"]}) == 3
  run_study(settings, workdir)
  assert contents(workdir) == before


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """The workdirs of a model with RoPE, and of the same model dropped and trained on."""
  place = tmp_path_factory.mktemp("models")
  corpus = tiny_corpus(place / "corpus")
  train(tiny_run(corpus, model=tiny_model(head_dim=8), steps=2), place / "rope")
  train(tiny_run(corpus, init=InitConfig(checkpoint=str(place / "rope")), steps=2), place / "drope")
  return {"trained": str(place / "rope"), "dropped": str(place / "drope")}


@pytest.mark.slow
def test_figure_4_is_drawn(tmp_path):
  """Its claim: the gradients are larger with RoPE, and more so in the last layer."""
  run_study(dataclasses.replace(fig4.get_config("mini"), layers=(0, 3), seeds=(0,)), tmp_path)
  norms = {
    (row["bias"], row["embedding"], row["layer"]): float(row["norm"])
    for row in rows_of(tmp_path / "figures" / "bias_gradients.csv")
  }
  for bias in fig4.BIASES:
    gap = [norms[bias, "RoPE", layer] / norms[bias, "NoPE", layer] for layer in ("0", "3")]
    assert 1 < gap[0] < gap[1]
  spreads = {
    (row["text"], row["embedding"], row["layer"]): float(row["spread"])
    for row in rows_of(tmp_path / "figures" / "prefix_spread.csv")
  }
  text, nearly_equal = fig4.TEXTS
  for embedding in fig4.LOOKS:  # Delta / sqrt(d) is 2 at most; the theorem is about small ones
    for layer in ("0", "3"):
      assert 0 < spreads[nearly_equal, embedding, layer] < 0.01 < 0.5 < spreads[text, embedding, layer] <= 2
  assert {"bias_gradients.png", "prefix_spread.png"} <= {path.name for path in (tmp_path / "figures").iterdir()}


@pytest.mark.slow
def test_figure_7_of_models_that_exist(tmp_path, models):
  settings = dataclasses.replace(fig7.get_config("mini"), **models, length=64, rows=2)
  run_study(settings, tmp_path)
  assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()  # nothing was trained
  rows = rows_of(tmp_path / "figures" / "positional_head_by_distance.csv")
  assert all(float(row["standard_error"]) >= 0 for row in rows) and float(rows[0]["standard_error"]) > 0
  assert {row["model"] for row in rows} >= {"RoPE, as trained", "dropped and recalibrated"}
  assert (tmp_path / "figures" / "positional_head.png").exists()


@pytest.mark.slow
def test_models_that_cannot_be_compared_are_refused_by_their_settings(tmp_path, models):
  rope, drope = models["trained"], models["dropped"]
  other = train(
    tiny_run(tiny_corpus(tmp_path / "corpus"), model=tiny_model(positions=None), steps=2), tmp_path / "other"
  )
  assert other.finished
  for given, said in (
    ({"trained": drope}, rf"PositionalHead.trained: {drope} has no RoPE"),
    ({"trained": rope, "dropped": rope}, rf"PositionalHead.dropped: {rope} has the positional embedding of {rope}"),
    ({"trained": rope, "dropped": str(tmp_path / "other")}, r"PositionalHead.dropped: .*its sizes are others"),
  ):
    with pytest.raises(ConfigError, match=said):
      run_study(dataclasses.replace(fig7.get_config("mini"), **given), tmp_path / "study")
  assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_settings_that_could_not_be_drawn_may_be_corrected_in_their_workdir(tmp_path, models):
  settings = dataclasses.replace(fig8.get_config("mini"), **models, prompts=2)
  with pytest.raises(ConfigError, match="do not fit into 20"):
    run_study(dataclasses.replace(settings, lengths=(20,)), tmp_path)
  run_study(dataclasses.replace(settings, lengths=(300,)), tmp_path)
  assert len(rows_of(tmp_path / "figures" / "semantic_head_all.csv")) == 3 * 8
  with pytest.raises(CheckpointError, match="belongs to another study: lengths"):
    run_study(dataclasses.replace(settings, lengths=(310,)), tmp_path)


@pytest.mark.slow
def test_seeds_and_data_are_refused_where_nothing_is_trained(tmp_path, models):
  settings = dataclasses.replace(fig7.get_config("mini"), **models)
  with pytest.raises(ConfigError, match="--seeds: the study trains nothing with these settings"):
    run_seeds(settings, [0, 1], tmp_path)
  with pytest.raises(ConfigError, match=r"--data: PositionalHead.trained is set"):
    settings.reading("texts")
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_figure_8_of_models_that_exist(tmp_path, models):
  """The head is chosen at the first length; the sums that are drawn are among those of all heads."""
  settings = dataclasses.replace(fig8.get_config("mini"), **models, lengths=(512, 300), prompts=3)
  run_study(settings, tmp_path)
  tokens = rows_of(tmp_path / "figures" / "semantic_head.csv")
  of_all = {
    (row["length"], row["model"], row["layer"], row["head"]): row
    for row in rows_of(tmp_path / "figures" / "semantic_head_all.csv")
  }
  labels = {row["model"] for row in tokens}
  model = tiny_model(head_dim=8)
  assert len(of_all) == 2 * len(labels) * model.num_layers * model.num_heads and len(labels) == 3
  for label in labels:
    ((layer, head),) = {(row["layer"], row["head"]) for row in tokens if row["model"] == label}
    if not label.startswith("YaRN"):
      weights = {key[2:]: float(row["weight"]) for key, row in of_all.items() if key[:2] == ("512", label)}
      assert max(weights, key=weights.get) == (layer, head)
    for length in ("512", "300"):
      drawn = sum(float(row["weight"]) for row in tokens if (row["length"], row["model"]) == (length, label))
      one, trained = of_all[length, label, layer, head], of_all[length, "RoPE, as trained", layer, head]
      assert float(one["weight"]) == pytest.approx(drawn, rel=1e-4)
      assert float(one["change"]) == pytest.approx(float(one["weight"]) - float(trained["weight"]), abs=1e-6)


def test_a_length_without_room_for_the_needle_is_refused_before_training(tmp_path):
  settings = dataclasses.replace(fig8.get_config("mini"), lengths=(12,))
  with pytest.raises(ConfigError, match="do not fit into 12"):
    run_study(settings, tmp_path)
  assert not (tmp_path / "runs").exists() and not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_a_figure_that_fails_leaves_the_report_of_its_study(tmp_path, monkeypatch):
  cut = {"trunk_steps": 4, "tail_steps": 2, "documents": 2, "budgets": 1}
  monkeypatch.setattr(fig7, "heads", lambda *_: pytest.fail())
  with pytest.raises(pytest.fail.Exception):
    run_study(dataclasses.replace(fig7.get_config("mini"), **cut), tmp_path)
  report = (tmp_path / "report.md").read_text()
  assert "## perplexity" in report and "positional_head" not in report.replace("fig7_positional_head", "")


@pytest.mark.slow
def test_figure_7_trains_its_models_and_draws_them(tmp_path):
  """With a report of their losses; `--only` draws nothing."""
  whole = fig7.get_config("mini")
  settings = dataclasses.replace(whole, trunk_steps=4, tail_steps=2, documents=2, budgets=1, rows=2)
  run_study(settings, tmp_path, only=("control",))
  assert not (tmp_path / "figures" / "positional_head.png").exists()
  run_study(settings, tmp_path)
  runs = settings.study(tmp_path).runs
  assert list(runs) == ["trunk", "control", "drop"] and all(isinstance(run, TrainConfig) for run in runs.values())
  rows = rows_of(tmp_path / "figures" / "positional_head.csv")
  heads = whole.model.num_layers * whole.model.num_heads
  assert len(rows) == len(fig7.BIASES) * 3 * heads
  report = (tmp_path / "report.md").read_text()
  assert "(figures/positional_head.png)" in report and "## perplexity" in report
