"""The report of an evaluation that belongs to no study: what its tables hold."""

import math

import pytest

from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from experiments.report import write_report


def result(metric, value, *, method="drope", task="perplexity", context=64, low=None, high=None) -> Result:
  common = {"run": "model", "extension": context / 32, "n": 50, "seed": 0, "command": "evaluate it"}
  return Result(metric=metric, value=value, method=method, task=task, context=context, low=low, high=high, **common)


@pytest.fixture
def report(tmp_path):
  def write(*found: Result) -> list[str]:
    results.append(tmp_path / "results.jsonl", found)
    return write_report(tmp_path).read_text().split("\n")

  return write


def test_perplexity_stands_beside_the_loss_of_texts_alone(report):
  lines = report(
    result("loss", 2.0, low=1.0, high=3.0),
    result("bits_per_byte", 1.5),
    result("loss", 4.0, task="copy"),
  )
  assert "| perplexity | 2× (64) |" in lines and "| bits_per_byte | 2× (64) |" in lines
  assert f"| drope | {math.exp(2):.3f} ({math.exp(1):.3f} to {math.exp(3):.3f}), 50 |" in lines
  assert "| drope | 2.000 (1.000 to 3.000), 50 |" in lines
  assert "| drope | 4.000, 50 |" in lines and lines.count("| perplexity | 2× (64) |") == 1


def test_what_a_score_is_divided_by_has_a_table_of_the_longest_length(report):
  lines = report(
    result("loss", 2.0, context=32),
    result("loss@0-16", 7.0, context=32),
    *(result("loss", 2.0, method=method) for method in ("nope", "drope")),
    *(result(f"loss@{start}-{start + 16}", start / 16, method=m) for m in ("nope", "drope") for start in (16, 0, 48)),
    result("score", 0.5, task="longbench_lcc"),
    result("score@tokens=128-256", 0.25, task="longbench_lcc"),
    result("score@tokens=0-128", 0.75, task="longbench_lcc"),
    result("score@words=8000-", 0.125, task="longbench_lcc"),
    *(result(metric, 0.5, task="copy") for metric in ("accuracy", "gain")),
    *(result(f"gain@distance={distance}", 1 / distance, task="copy") for distance in (128, 16)),
  )

  def table(title: str) -> list[str]:
    begin = next(i for i, line in enumerate(lines) if line.startswith(title))
    return lines[begin : lines.index("", begin)]

  assert table("| loss by position, at 2× (64) | ")[0].endswith("| drope | nope |")  # in the order of the records
  assert [line.split(" | ")[0] for line in table("| loss by position")[2:]] == ["| 0-16", "| 16-32", "| 48-64"]
  assert "7.000" not in "".join(lines)  # of a shorter length
  assert table("| score by tokens of the prompt")[2:] == ["| 0-128 | 0.750, 50 |", "| 128-256 | 0.250, 50 |"]
  assert table("| score by words")[2:] == ["| 8000- | 0.125, 50 |"]
  assert table("| gain by distance of the copy")[2:] == ["| 16 | 0.062, 50 |", "| 128 | 0.008, 50 |"]


def test_the_temperature_that_was_used_is_said_and_how_it_was_fitted(report):
  found = [result("loss", 2.0), result("beta", 1.125), result("loss", 3.0, method="nope")]
  found += [result("beta", 1.0, method="nope")]
  lines = report(*found)
  assert "| β | 2× (64) |" in lines and "| drope | 1.125 |" in lines and "| nope | 1.000 |" not in lines
  assert not any("the fit gives" in line for line in lines)
  fitted = [result(f"loss@beta={beta:.2f}", 2 + beta, task="temperature") for beta in (0.8, 1.0, 1.2)]
  lines = report(*fitted, result("beta", 0.8, task="temperature"), result("c", 0.25, task="temperature"))
  assert any("the fit gives c = **0.250**" in line for line in lines)


def test_without_a_temperature_nothing_is_said_of_it(report):
  assert "β" not in "\n".join(report(result("loss", 2.0, method="rope"), result("beta", 1.0, method="rope")))


def test_a_fit_that_was_interrupted_is_shown_as_far_as_it_went(report):
  lines = report(
    result("loss", 2.0, method="drope:0.5"),
    result("beta", 1.25, method="drope:0.5"),
    result("loss@beta=0.80", 2.5, task="temperature"),
  )
  assert "| drope:0.5 | 1.250 |" in lines
