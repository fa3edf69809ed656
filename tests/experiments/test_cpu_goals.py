"""The goals of speed on a CPU: what a figure says, and that its measurements have the memory of each side."""

import subprocess
import sys

import pytest
from support.pages import ROOT

from experiments.benchmarks import goals
from experiments.benchmarks.goals import Figure, Goal
from experiments.benchmarks.measuring import Spread

MEMORY = {"ours": 3 * 2**30, "torch_compiled": 2**29}


@pytest.mark.parametrize(
  ("goal", "found", "rounds", "shown", "met"),
  [
    (Goal("a", 1.5), Spread(1.6, 1.0, 1.7), 3, "| a | ≥ 1.5 | 1.60 (1.00 to 1.70) | met |", True),
    (Goal("b", 0.5, at_least=False), Spread(0.6, 0.6, 0.6), 1, "| b | ≤ 0.5 | 0.60 (one round) | missed |", False),
    (Goal("c", 0.8), Spread(0.7, 0.7, 0.7), 12, "| c | ≥ 0.8 | 0.70 | missed |", False),
    (Goal("d", None, at_least=False), Spread(2.0, 1.0, 3.0), 3, "| d |  | 2.00 (1.00 to 3.00) |  |", None),
  ],
)
def test_a_row_says_what_was_found_how_often_and_in_what_memory(goal, found, rounds, shown, met):
  figure = Figure(goal, found, rounds, MEMORY, {"more": 1})
  assert goals.line(figure) == f"{shown} ours 3.00 GiB, torch compiled 0.50 GiB |"
  record = goals.record(figure)
  assert (record["median"], record["rounds"], record["memory"], record["more"]) == (found.median, rounds, MEMORY, 1)
  assert record["met"] == met


@pytest.mark.slow
def test_every_comparison_has_the_memory_of_its_sides():
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  figures = [
    *goals.training("tiny", 1, 1, {"torch": 1.0}),
    *goals.generation("tiny", 1, {"prefill": 1.0, "decode": 1.0}),
    *goals.long_text(1, "tiny", 32),
  ]
  assert len(figures) == 5 and all(figure.rounds == 1 and figure.found.median > 0 for figure in figures)
  for figure in figures:
    assert figure.memory.keys() == {"ours", "torch"}
    assert all(2**27 < peak < 2**34 for peak in figure.memory.values())  # of a process with JAX or torch


@pytest.mark.slow
def test_a_measurement_that_is_none_is_refused(tmp_path):
  command = [sys.executable, "-m", "experiments.benchmarks.cpu_goals", "--only=fast", f"--json={tmp_path / 'out'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and "--only has 'fast'" in done.stderr and not list(tmp_path.iterdir())
