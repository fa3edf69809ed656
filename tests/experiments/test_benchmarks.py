"""The benchmarks: how measurements become figures, what happens to a side that fails, and that each program runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drope_jax.errors import ConfigError
from drope_jax.parameters import count_parameters
from experiments.benchmarks import figures, measuring
from experiments.benchmarks.measuring import Side, Worker, WorkerError, growth_exponent, in_turns, ratios, spread
from experiments.benchmarks.shapes import SHAPES, shape_named

ROOT = Path(__file__).parents[2]

# A function for workers. Both sides append to one file, which records the order of their measurements.


def recorder(name, path, fails_in=None):
  def measure(step):
    with open(path, "a") as log:
      log.write(name)
    calls = Path(path).read_text().count(name)
    if calls == fails_in:
      print("noise, then", file=sys.stderr)
      sys.exit("out of luck")
    print("a library's chatter")  # is no reply
    return {"calls": calls, "step": step}

  return {"name": name}, measure


JOB = "test_benchmarks:recorder"


@pytest.fixture(autouse=True)
def tests_are_importable(monkeypatch):
  monkeypatch.setenv(
    "PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "experiments"), os.environ.get("PYTHONPATH", "")])
  )


@pytest.mark.slow
def test_sides_take_turns_and_one_that_fails_leaves_the_other(tmp_path):
  log = str(tmp_path / "log")
  jobs = {
    "a": (JOB, {"name": "a", "path": log}),
    "b": (JOB, {"name": "b", "path": log, "fails_in": 3}),
    "c": ("test_benchmarks:nothing", {}),
  }
  sides = in_turns(jobs, 4, {"step": 7})
  assert Path(log).read_text() == "abababa"
  assert sides["a"] == ({"name": "a"}, [{"calls": n, "step": 7} for n in (1, 2, 3, 4)], None)
  assert sides["b"] == ({"name": "b"}, [], "out of luck")
  assert "nothing" in sides["c"].failure


def test_a_worker_that_is_killed_says_so(tmp_path):
  with Worker(JOB, name="a", path=str(tmp_path / "log")) as worker:
    worker._process.kill()
    with pytest.raises(WorkerError, match="status -9"):
      worker.measure(step=1)


def test_spread_and_ratios_by_round():
  assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
  assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (2.0, 1.0, 3.0)
  assert spread([1234.0]).show() == "1,234 (1,234 to 1,234)"


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_growth_exponent(power):
  assert growth_exponent([2, 4, 16], [3 * n**power for n in (2, 4, 16)]) == pytest.approx(power)
  assert growth_exponent([2], [1.0]) is None


PEAKS = """
from experiments.benchmarks import measuring

before = measuring.host_memory_peak()
block = b"x" * (2 * before)
print(before, measuring.host_memory_peak())
"""


@pytest.mark.slow
def test_the_memory_peak_is_of_this_process_and_grows():
  here = measuring.host_memory_peak()
  done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True, cwd=ROOT)
  before, after = map(int, done.stdout.split())
  assert 2 * before < after and before < here


def test_shapes_have_the_parameters_that_their_names_say():
  counts = {name: count_parameters(shape.model) / 1e6 for name, shape in SHAPES.items()}
  assert counts["1m"] == pytest.approx(0.98, abs=0.01) and counts["30m"] == pytest.approx(29.9, abs=0.05)
  assert counts["494m"] == pytest.approx(494.0, abs=0.1) and counts["smollm_1.7b"] == pytest.approx(1711, abs=2)
  with pytest.raises(ConfigError, match="--shapes has '7b'; allowed: tiny, 1m"):
    shape_named("7b")


def test_figures_of_training_steps():
  shape = SHAPES["tiny"]  # 2 rows of 16 tokens
  about = {"first_step_seconds": 1.0}
  ours = Side(about, [{"seconds": 0.5, "memory": 5}, {"seconds": 0.25, "memory": 7}])
  torch = Side(about, [{"seconds": 1.0, "memory": 9}, {"seconds": 1.0, "memory": 9}])
  sides = {"ours": ours, "torch": torch, "torch_compiled": Side({}, [], "no compiler")}
  found = figures.training_figures(shape, sides, ceiling=1e9)
  assert found["ours"]["tokens_per_second"] == {"median": 96.0, "least": 64.0, "greatest": 128.0}
  assert found["ours"]["memory"] == 7
  assert found["torch"]["ours_relative"] == {"median": 3.0, "least": 2.0, "greatest": 4.0}
  assert found["ours"]["share_causal"] < found["ours"]["share_palm"]
  assert found["ours"]["share_palm"] == pytest.approx(3 * found["torch"]["share_palm"])
  lines = figures.training_rows("tiny", found)
  assert [line[0] for line in lines] == ["tiny, ours", "tiny, torch", "tiny, torch, compiled"]
  assert lines[2][1] == "did not run: no compiler"
  assert {len(line) for line in lines} == {len(figures.TRAINING_HEADER)}


def test_figures_of_long_texts():
  def side(seconds, memory):
    return Side({}, [{"seconds": seconds, "memory": memory, "memory_before": 10, "loss": 2.5}])

  found = figures.text_figures({100: side(1.0, 20), 200: side(4.0, 30), 400: Side({}, [], "killed")})
  assert found["growth_of_seconds"] == pytest.approx(2) and found["growth_of_memory_above_weights"] == pytest.approx(1)
  lines = figures.text_rows("ours", [100, 200, 400], found)
  assert lines[2][1] == "did not run: killed" and lines[3][1] == "length^2.00" and lines[0][5] == "2.50000"
  assert {len(line) for line in lines} == {len(figures.TEXT_HEADER)}


def test_figures_of_decoding():
  ours = Side({}, [{"prefill": 1.0, "decode": 2.0, "memory": 3}, {"prefill": 1.0, "decode": 2.0, "memory": 4}])
  torch = Side({}, [{"prefill": 2.0, "decode": 8.0, "memory": 2**30}] * 2)
  found = figures.generation_figures({"ours": ours, "torch": torch}, {"prefill": 100, "decode": 20})
  assert found["ours"]["decode"]["median"] == 10
  assert (
    found["torch"]["ours_relative_prefill"]["median"] == 2 and found["torch"]["ours_relative_decode"]["median"] == 4
  )
  assert found["ours"]["memory"] == 4
  lines = figures.generation_rows("tiny", {**found, "other": {"failure": "no memory"}})
  assert lines[1][-1] == "1.00 GiB" and {len(line) for line in lines} == {len(figures.GENERATION_HEADER)}


def test_figures_of_the_input():
  round_ = {"with_data": 2.0, "getting": 0.1, "without": 1.5, "alone": 0.5}
  found = figures.input_figures(Side({}, [round_]), 100)
  assert found["pipeline_tokens_per_second"]["median"] == 200 and found["waiting_share"]["median"] == 0.25
  assert figures.input_row("x", found)[3].startswith("25.0")


def program(name, *arguments):
  command = [sys.executable, "-m", f"experiments.benchmarks.{name}", "--rounds=1", *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_file_that_exists_is_refused_before_anything_is_measured(command, tmp_path):
  (tmp_path / "old.json").write_text("{}")
  ended = command("experiments.benchmarks.decode", "--rounds=1", f"--json={tmp_path / 'old.json'}")
  assert ended.status == 2 and "old.json exists" in ended.stderr
  assert (tmp_path / "old.json").read_text() == "{}"


def test_records_are_kept_as_they_come(tmp_path):
  whole, lines = tmp_path / "out.json", tmp_path / "out.jsonl"
  lines.write_text('{"of": "an earlier run"}\n')
  measuring.check_free(str(whole), str(lines))
  records = measuring.Records(str(whole), str(lines), {"command": "c"})
  for number in (1, 2):
    records.add({"number": number})
    assert json.loads(whole.read_text()) == {"command": "c", "figures": [{"number": n + 1} for n in range(number)]}
  kept = [json.loads(line) for line in lines.read_text().splitlines()]
  assert kept == [{"of": "an earlier run"}, *({"number": n, "command": "c"} for n in (1, 2))]
  with pytest.raises(ConfigError, match=r"--json: .* exists"):
    measuring.check_free(str(whole), str(lines))


PROGRAMS = {
  "train_step": ("--shapes=tiny", "--steps=1", "--sides="),
  "long_eval": ("--shapes=tiny", "--lengths=16,32", "--sides="),
  "decode": ("--shapes=tiny", "--prompt=8", "--new_tokens=4", "--sides="),
}


def run_and_read(name, arguments, tmp_path):
  done = program(name, *arguments, f"--json={tmp_path / 'out.json'}")
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "out.json").read_text())
  assert record["hardware"] and record["versions"]["jax"] and name in record["command"]
  assert "|:--" in done.stdout
  assert "did not run" not in done.stdout
  return done.stdout, record


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_with_both_sides(name, tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  *arguments, sides = PROGRAMS[name]
  shown, record = run_and_read(name, [*arguments, f"{sides}ours,torch"], tmp_path)
  assert "ours" in shown and "torch" in shown and record["versions"]["transformers"]


@pytest.mark.slow
def test_the_input_program(tmp_path):
  _, record = run_and_read("input", ["--shapes=1m", "--steps=1"], tmp_path)
  assert record["figures"]["1m"]["pipeline_tokens_per_second"]["median"] > 0


@pytest.mark.slow
def test_a_program_with_our_side_alone(tmp_path):
  *arguments, sides = PROGRAMS["decode"]
  _, record = run_and_read("decode", [*arguments, f"{sides}ours"], tmp_path)
  assert record["figures"]["tiny"]["ours"]["decode"]["median"] > 0
