"""The benchmark of one accelerator: its variants, in what order, and that each is measured here with tiny shapes."""

import json
import subprocess
import sys

import pytest
from support.pages import ROOT

from drope_jax.errors import ConfigError
from experiments.benchmarks.kernels import CALLS
from experiments.benchmarks.shapes import SHAPES
from experiments.benchmarks.variants import TORCH, VARIANTS, Comparison, parse_variant

CARD = ["--dtype=float32", "--ceiling=64", "--steps=1", "--rounds=1", "--seconds=10000"]


@pytest.mark.parametrize(
  ("variant", "wrong"),
  [("494m", "no variant"), ("494m:16:remat", "SETTING=VALUE"), ("7b:1", "7b"), ("1m:2:x=1", "x=1")],
)
def test_a_variant_that_is_none_is_refused(variant, wrong):
  with pytest.raises(ConfigError, match=wrong):
    parse_variant(variant)


@pytest.mark.slow
def test_a_card_s_variants_are_checked_before_anything_runs(tmp_path):
  command = [sys.executable, "-m", "experiments.benchmarks.card", "--variants=tiny:2,494m"]
  done = subprocess.run([*command, f"--json={tmp_path / 'out'}"], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 2 and "no variant" in done.stderr and not done.stdout and not list(tmp_path.iterdir())


def test_what_decides_a_goal_comes_first_and_torch_right_behind_ours():
  variants = [parse_variant(text) for text in VARIANTS]
  places = {(variant.side, variant.shape, variant.size): place for place, variant in reversed([*enumerate(variants)])}
  for side in ("torch_compiled", "torch_text"):
    (torch,) = (variant for variant in variants if variant.side == side)
    own = (TORCH[side], torch.shape, torch.size)
    assert variants[places[own]].is_plain and places[side, torch.shape, torch.size] == places[own] + 1
  goals = ["494m", "smollm2_135m", "smollm_1.7b"]
  assert max(places["ours", SHAPES[name], rows] for name, rows in zip(goals, (16, 16, 8), strict=True)) < 6
  assert all(variant.is_plain for variant in variants[:9])


def test_torch_is_compared_with_our_plain_variant_of_the_same_shape_and_size():
  speeds = {"tiny:2": 6.0, "tiny:4": 9.0, "tiny:2:remat=full": 1.0, "decode:tiny:2": 1.0, "text:tiny:32": 8.0}
  comparison, found = Comparison(), {}
  for text in [*speeds, "torch:tiny:2", "torch_text:tiny:32", "torch:tiny:8"]:
    found[text] = comparison.of(parse_variant(text), {"tokens_per_second": speeds.get(text, 2.0)})
  assert {text: one["ours_relative"] for text, one in found.items() if one} == {
    "torch:tiny:2": 3.0,
    "torch_text:tiny:32": 4.0,
  }
  assert comparison.of(parse_variant("torch:tiny:2"), {"kernels": []}) == {}


@pytest.mark.slow
def test_a_card_s_figures_are_kept_as_they_come_and_a_failure_stops_nothing(tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  kept = tmp_path / "speed.json"
  variants = "--variants=tiny:2,tiny:2:attention=cudnn,tiny:2:remat=dots:scan_layers=True,text:tiny:32"
  variants += ",torch_text:tiny:32,documents:tiny:2,decode:tiny:2,kernels:tiny:32"
  command = [sys.executable, "-m", "experiments.benchmarks.card", *CARD, variants, f"--json={kept}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  whole = json.loads(kept.read_text())
  records = whole["figures"]
  assert whole["versions"]["jax"] and whole["device"] == "cpu"
  profiled = {record["variant"] for record in records if "kernels" in record}
  assert profiled == {"tiny:2", "text:tiny:32", "documents:tiny:2", "decode:tiny:2"}  # ours, without settings
  by_variant = {record["variant"]: record for record in records if "kernels" not in record}
  assert list(by_variant) == ["ceiling", *variants.split("=", 1)[1].split(",")]
  assert by_variant["ceiling"]["matmul_ceiling"] > 0
  assert "cudnn" in by_variant["tiny:2:attention=cudnn"]["failure"]
  assert by_variant["tiny:2"]["tokens_per_second"] > 0 and by_variant["tiny:2"]["memory"] > 0
  assert by_variant["text:tiny:32"]["loss"] > 0 and by_variant["torch_text:tiny:32"]["ours_relative"] > 0
  assert by_variant["documents:tiny:2"]["tokens_per_second"] > 0
  assert by_variant["decode:tiny:2"]["prefill_tokens_per_second"] > 0
  calls = {record["call"]: record for record in records if "call" in record}
  assert calls.keys() == CALLS.keys() and all(record["error"] < 1e-2 for record in calls.values())
