"""Figures 4, 6, 7, 8 and 11, which need no training: their numbers follow the paper's formulas, and they are drawn."""

import csv
import json
import random

import numpy as np
import pytest
from support.tiny_run import WORDS, contents, tiny_corpus, tiny_model, tiny_run

from drope_jax.config import InitConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.recall import needle_sample
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.train import train
from experiments.factor_search import Search, nearest_allowed, search
from experiments.studies import fig4_bias_gradients, fig6_fig11_frequency_factors, fig7_positional_head
from experiments.studies import fig8_semantic_head as fig8
from experiments.studies.figures import standard_error, text_lines
from experiments.studies.table10_extension import Extension
from experiments.study import run_study


@pytest.mark.parametrize("extension", [2.0, 4.0])
def test_the_factors_are_those_of_the_methods(extension):
  """The paper's 494M shape: YaRN keeps pairs 0 to 3 and divides by s from 12 on; 12 pairs make a full turn."""
  found = fig6_fig11_frequency_factors.factors(1e6, 64, 1024, extension)
  np.testing.assert_allclose(found["PI"], 1 / extension)
  np.testing.assert_allclose(found["NTK"], extension ** (-2 * np.arange(32) / 62))
  assert (found["YaRN"][:4] == 1).all() and np.allclose(found["YaRN"][12:], 1 / extension)
  assert found["partial drop"].tolist() == [1.0] * 12 + [0.0] * 20
  assert not found["drop"].any() and found["CoPE"][-1] == 0


def test_the_picture_of_the_factors_has_its_numbers_beside_it(tmp_path):
  assert (
    fig6_fig11_frequency_factors.main([f"--out={tmp_path}", "--factors", "2", "--head-dim=8", "--formats=svg"]) == 0
  )
  assert (tmp_path / "frequency_factors.png").read_bytes().startswith(b"\x89PNG")
  assert "partial drop" in (tmp_path / "frequency_factors.svg").read_text()
  with (tmp_path / "frequency_factors.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 6 * 4 and {row["gamma"] for row in rows if row["method"] == "PI"} == {"0.5"}


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


DRAWN = ("positional_head", "semantic_head", "bias_gradients", "prefix_spread")


@pytest.mark.slow
def test_figures_of_a_run_are_drawn(tmp_path):
  """Of a model with RoPE, and the same model dropped."""
  corpus = tiny_corpus(tmp_path / "corpus")
  model = tiny_model(head_dim=8)
  train(tiny_run(corpus, model=model, steps=2), tmp_path / "rope")
  train(tiny_run(corpus, init=InitConfig(checkpoint=str(tmp_path / "rope")), steps=2), tmp_path / "drope")
  runs = [f"--checkpoint={tmp_path / 'rope'}", f"--dropped={tmp_path / 'drope'}", f"--out={tmp_path / 'figures'}"]
  assert fig7_positional_head.main([*runs, "--length=64", "--rows=2"]) == 0
  assert fig8.main([*runs, "--length=512", "--samples=3"]) == 0
  assert fig4_bias_gradients.main([f"--out={tmp_path / 'figures'}", "--layers", "0", "3", "--seeds", "0"]) == 0
  assert {path.name for path in (tmp_path / "figures").iterdir()} == {
    *(f"{name}.{kind}" for name in DRAWN for kind in ("png", "csv")),
    "positional_head_by_distance.csv",
    "semantic_head_all.csv",
  }
  with (tmp_path / "figures" / "positional_head_by_distance.csv").open() as file:
    rows = list(csv.DictReader(file))
  (first, *_) = rows
  assert all(float(row["standard_error"]) >= 0 for row in rows) and float(first["standard_error"]) > 0
  with (tmp_path / "figures" / "bias_gradients.csv").open() as file:
    norms = {(row["bias"], row["embedding"], row["layer"]): float(row["norm"]) for row in csv.DictReader(file)}
  for bias in fig4_bias_gradients.BIASES:  # figure 4's claim: RoPE above, and more so in the last layer
    gap = [norms[bias, "RoPE", layer] / norms[bias, "NoPE", layer] for layer in ("0", "3")]
    assert 1 < gap[0] < gap[1]
  with (tmp_path / "figures" / "semantic_head.csv").open() as file:
    tokens = list(csv.DictReader(file))
  with (tmp_path / "figures" / "semantic_head_all.csv").open() as file:
    of_all = {(row["model"], row["layer"], row["head"]): row for row in csv.DictReader(file)}
  assert len(of_all) == 3 * model.num_layers * model.num_heads
  for label in {row["model"] for row in tokens}:
    ((layer, head),) = {(row["layer"], row["head"]) for row in tokens if row["model"] == label}
    drawn = sum(float(row["weight"]) for row in tokens if row["model"] == label)
    one, trained = of_all[label, layer, head], of_all["RoPE, as trained", layer, head]
    assert float(one["weight"]) == pytest.approx(drawn, rel=1e-4)
    assert float(one["change"]) == pytest.approx(float(one["weight"]) - float(trained["weight"]), abs=1e-6)
  with (tmp_path / "figures" / "prefix_spread.csv").open() as file:
    spreads = {(row["text"], row["embedding"], row["layer"]): float(row["spread"]) for row in csv.DictReader(file)}
  text, nearly_equal = fig4_bias_gradients.TEXTS
  for embedding in fig4_bias_gradients.LOOKS:  # Delta / sqrt(d) is 2 at most; the theorem is about small ones
    for layer in ("0", "3"):
      assert 0 < spreads[nearly_equal, embedding, layer] < 0.01 < 0.5 < spreads[text, embedding, layer] <= 2
