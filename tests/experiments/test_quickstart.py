"""The quickstart end to end, at the smallest settings that keep all of its parts."""

import json
from pathlib import Path

import pytest
from support.tiny_quickstart import SETTINGS as TINY
from support.tiny_run import contents, records

ROOT = Path(__file__).parents[2]
SETTINGS = (*TINY, "--seed=3")
RUNS = {"rope": 4, "rope_continued": 1, "drope": 1, "partial": 1, "nope": 5}
ROWS = [
  *(("rope_continued", method) for method in ("rope", "pi", "ntk", "yarn", "crop")),
  *(("drope", method) for method in ("nope", "drope")),
  ("partial", "rope"),
  ("nope", "nope"),
]


def quickstart(command, workdir, terminate_at=None):
  """Runs the quickstart; returns its stderr. SIGTERM is sent as soon as the path `terminate_at` exists."""
  ended = command("experiments.quickstart", f"--workdir={workdir}", *SETTINGS, terminate_at=terminate_at)
  assert ended.status == 0, ended.stderr[-4000:]
  return ended.stderr


@pytest.fixture(scope="module")
def first(command, tmp_path_factory):
  """The workdir of a study that SIGTERM stopped while making its data, and again while measuring."""
  workdir = tmp_path_factory.mktemp("quickstart") / "study"
  for path in (workdir / "config.begun.json", workdir / "results.jsonl"):
    said = quickstart(command, workdir, terminate_at=path).splitlines()
    assert "stopped" in said[-1] and "run the same command to go on" in said[-1], said
    assert not any(line.startswith("Traceback") for line in said)
  quickstart(command, workdir)
  return workdir


def test_every_run_has_its_metrics(first):
  workdir = first
  assert {path.name for path in (workdir / "runs").iterdir()} == RUNS.keys()
  assert {name: records(workdir / "runs" / name)[-1]["step"] for name in RUNS} == RUNS


def test_every_row_is_measured_at_every_length_on_every_task(first):
  workdir = first
  results = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
  keys = {"run", "method", "task", "context", "extension", "metric", "value", "n", "seed"}
  keys |= {"by", "at", "low", "high", "better", "values", "command", "settings"}  # beside those of the contract
  assert all(result.keys() == keys and result["seed"] == 3 for result in results)
  means = [
    (result["run"], result["method"], result["context"], result["metric"])
    for result in results
    if result["metric"] in ("loss", "accuracy") and result["by"] is None
  ]
  expected = [(*row, length, metric) for row in ROWS for length in (32, 64) for metric in ("loss", "accuracy")]
  assert sorted(means) == sorted(expected)  # none missing, none twice
  assert [r["extension"] for r in results if (r["task"], r["metric"]) == ("temperature", "c")] == [2.0]


def test_the_losses_of_all_runs_are_measured_before_any_needle(first):
  """So a study that is stopped while it reads answers has the loss of every row."""
  tasks = [json.loads(line)["task"] for line in (first / "results.jsonl").read_text().splitlines()]
  assert "perplexity" not in tasks[tasks.index("needles") :]


def test_methods_agree_within_the_training_context_and_differ_beyond(first):
  workdir = first
  results = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
  loss = {
    (r["run"], r["method"], r["extension"]): r["value"] for r in results if (r["metric"], r["by"]) == ("loss", None)
  }
  methods = ("rope", "pi", "ntk", "yarn", "crop")
  assert len({loss["rope_continued", method, 1.0] for method in methods}) == 1
  assert len({loss["rope_continued", method, 2.0] for method in methods}) == len(methods)


def test_report_and_plots(first):
  workdir = first
  pictures = {path.name for path in workdir.glob("*.png")}
  assert pictures == {
    f"{name}.png"
    for name in ("summary", "loss", "recovery", "perplexity_by_position", "perplexity_by_sample", "needles_by_depth",
                 "frequencies")
  }  # fmt: skip
  assert all((workdir / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
  report = (workdir / "report.md").read_text()
  assert all(f"]({name})" in report for name in pictures)
  assert "experiments.quickstart" in report and "--steps=4" in report
  assert all(label in report for label in ("RoPE, continued", "RoPE + YaRN", "DroPE, fitted β", "NoPE from scratch"))
  about = {line.split(":")[0]: line for line in report.splitlines() if line.startswith("- **")}
  assert "DroPE, the paper's method" in about["- **DroPE, β = 1**"]
  assert "partial drop, ours and not the paper's" in about["- **Partial drop**"]


def test_the_lines_of_the_readme_continue_a_prompt_and_give_logits(first, capsys):
  section = (ROOT / "README.md").read_text().split("## A checkpoint in Python")[1]
  code = section.split("```python\n")[1].split("```")[0]
  assert len([line for line in code.splitlines() if line]) == 10
  found = {}
  exec(code.replace("runs/quickstart", str(first)), found)
  assert len(capsys.readouterr().out.split()) > 3
  assert found["logits"].shape == (1, len(found["prompts"][0]), found["trained"].model.vocab_size)


def test_doing_it_again_does_nothing(command, first):
  before = contents(first)
  said = quickstart(command, first)
  assert contents(first) == before
  assert "step 4/4" not in said and "perplexity at" not in said
