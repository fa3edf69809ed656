"""The studies of a pretrained model at a tiny size: measured as it is, and recalibrated with its controls."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.eight_devices import devices_flags
from support.tiny_run import WORDS, contents, tiny_corpus, tiny_run

from drope_jax import checkpoint
from drope_jax.data.corpus import build_corpus
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.parameters import count_parameters
from drope_jax.train import train
from drope_jax.transitions import drop
from experiments.report import write_report
from experiments.studies.smollm2_lengths import Lengths
from experiments.studies.smollm2_recalibration import Recalibration
from experiments.study import run_study

ROOT = Path(__file__).parents[2]
ROWS = [*(("rope", method) for method in ("rope", "pi", "ntk", "yarn")), ("dropped", "nope"), ("turns_1", "rope")]


@pytest.fixture(scope="module")
def study(command, tmp_path_factory):
  """The settings, and the workdir of the study done by its command: a model of context 16, 2 documents, blocks of 4."""
  directory = tmp_path_factory.mktemp("study")
  train(tiny_run(tiny_corpus(directory / "corpus"), steps=5), directory / "model")
  rng = random.Random(0)
  long = [" ".join(rng.choices(WORDS, k=20)) for _ in range(3)]
  prose = build_corpus(directory / "prose", {"heldout": ["too short", *long]})  # neither `fit` nor `words`
  settings = Lengths(checkpoint=str(directory / "model"), dataset=str(prose), documents=2, block=4, turns=(1.0,))
  ended = command("experiments.study", *of_the_command(settings, directory / "study"))
  assert ended.status == 0, ended.stderr
  return settings, directory / "study"


def of_the_command(settings, workdir):
  """The arguments of `experiments.study`."""
  fields = ("checkpoint", "dataset", "documents", "block", "turns")
  overrides = [f"--config.{name}={getattr(settings, name)}" for name in fields]
  return ["--config=experiments/studies/smollm2_lengths.py", f"--workdir={workdir}", *overrides]


def results(workdir):
  return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def test_every_row_is_measured_at_every_length(study):
  whole = [r for r in results(study[1]) if (r["metric"], r["by"]) == ("loss", None)]
  found = [(r["run"], r["method"], r["context"], r["n"]) for r in whole]
  assert sorted(found) == sorted((*row, length, 2 * length) for row in ROWS for length in (16, 32))
  ntk = [r for r in results(study[1]) if (r["method"], r["context"], r["by"]) == ("ntk", 32, "position")]
  assert [(r["metric"], r["at"]) for r in ntk] == [("loss", [start, start + 4]) for start in range(0, 32, 4)]


def test_the_dropped_row_is_the_same_weights_without_the_embedding(study):
  settings, workdir = study
  loaded = checkpoint.load(settings.checkpoint)
  data = EvalData(tokenizer=load_tokenizer(settings.checkpoint), longest=32, dataset=settings.dataset, num_documents=2)
  whole = [r for r in results(workdir) if (r["metric"], r["by"], r["context"]) == ("loss", None, 32)]
  losses = {(r["run"], r["method"]): r["value"] for r in whole}
  for model, row in ((loaded.model, ("rope", "rope")), (drop(loaded.model), ("dropped", "nope"))):
    expected = position_losses(loaded.params, Inference(model), data.documents, length=32, batch_size=1)
    assert losses[row] == pytest.approx(expected.mean(), rel=1e-6)
  assert len(set(losses.values())) == len(ROWS)


def test_the_report_is_of_what_was_measured(study):
  report = (study[1] / "report.md").read_text()
  pictures = {path.name for path in study[1].glob("*.png")}
  assert pictures == {"summary.png", "perplexity_by_position.png", "perplexity_by_sample.png", "frequencies.png"}
  for absent in ("## needles", "## The training", "## The temperature", "No training record"):
    assert absent not in report
  assert "## perplexity" in report and "## The rotations" in report
  assert "- **RoPE**: the pretrained model (`rope`) as it is.\n" in report
  dropped = next(line for line in report.splitlines() if line.startswith("- **Dropped, not recalibrated**"))
  assert "`dropped`" in dropped and "nothing is recalibrated" in dropped.partition(":")[2]
  parameters = count_parameters(checkpoint.open_step(study[0].checkpoint).model)
  assert f"`{study[0].checkpoint}`: {parameters:,} parameters, trained with RoPE (" in report
  assert "| RoPE + YaRN |" in report


def test_nothing_is_measured_twice(study):
  settings, workdir = study
  before = contents(workdir)
  run_study(settings, workdir)
  write_report(workdir)
  assert contents(workdir) == before


@pytest.mark.slow
def test_two_devices_measure_the_same(study, tmp_path):
  line = [sys.executable, "-m", "experiments.study", "--mesh=context", *of_the_command(study[0], tmp_path)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices_flags(2)}
  subprocess.run(line, cwd=ROOT, env=environment, check=True)
  for two, one in zip(results(tmp_path), results(study[1]), strict=True):
    assert two["value"] == pytest.approx(one["value"], rel=1e-5)
    assert all(two[key] == one[key] for key in one.keys() - {"value", "low", "high", "values", "command"})


def test_equal_methods_are_computed_once(study, tmp_path, monkeypatch):
  calls = []

  def counting(params, how, documents, **inputs):
    calls.append(inputs["length"])
    return position_losses(params, how, documents, **inputs)

  monkeypatch.setattr("drope_jax.evaluate.tasks.perplexity.position_losses", counting)
  run_study(study[0], tmp_path / "again")
  assert sorted(calls) == [16] * 3 + [32] * 6  # within the context the four RoPE rows are one
  again, first = ([r | {"command": ""} for r in results(where)] for where in (tmp_path / "again", study[1]))
  assert again == first


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"checkpoint": "/nowhere/model"}, "/nowhere/model is not there; `python -m experiments.fetch_smollm2`"),
    ({"dataset": "/nowhere/prose"}, "/nowhere/prose is not there; `python -m experiments.prose"),
    ({"documents": 0}, "Lengths.documents is 0"),
    ({"extensions": ()}, "Lengths.extensions is ()"),
  ],
)
def test_what_is_missing_is_named_before_anything_is_written(study, tmp_path, changes, message):
  settings, _ = study
  values = {"checkpoint": settings.checkpoint, "dataset": settings.dataset, **changes}
  with pytest.raises(ConfigError) as raised:
    run_study(Lengths(**values), tmp_path / "study")
  assert message in str(raised.value)
  assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
  "changes",
  [{"documents": 0}, {"needles_per_depth": 0}, {"block": 0}, {"batch_size": 0}, {"steps": 0}, {"extensions": (0, 1)}],
)
def test_a_recalibration_names_a_setting_that_cannot_be(changes):
  ((field, value),) = changes.items()
  with pytest.raises(ConfigError, match=re.escape(f"Recalibration.{field} is {value}; it")):
    Recalibration(**changes)


@pytest.mark.slow  # six runs
def test_a_recalibration_is_measured_beside_its_controls(tmp_path):
  train(tiny_run(tiny_corpus(tmp_path / "corpus"), data={"context": 256}, steps=5), tmp_path / "model")
  rng = random.Random(0)
  long = ["".join(" ".join(["It", *rng.choices(WORDS, k=7)]) + ". " for _ in range(25)) for _ in range(6)]
  prose = build_corpus(tmp_path / "prose", {"train": long, "heldout": long[:3], "fit": long[3:]})
  settings = Recalibration(
    checkpoint=str(tmp_path / "model"), dataset=str(prose), steps=2, batch_size=2, extensions=(1, 2), documents=2,
    needles_per_depth=1, block=64,
  )  # fmt: skip
  run_study(settings, tmp_path / "study")
  whole = [r for r in results(tmp_path / "study") if r["by"] is None]
  found = [(r["run"], r["method"], r["context"], r["metric"]) for r in whole]
  methods = {"control": ("rope", "ntk", "yarn"), "drop": ("nope", "drope")}
  rows = [(f"{kept}_{name}", method) for name in ("qk_norm", "plain") for kept in methods for method in methods[kept]]
  rows += [(f"turns_{turns}_plain", method) for turns in (0.5, 1, 2) for method in ("rope", "yarn")]
  measured = [row for row in found if row[3] in ("loss", "accuracy")]
  assert sorted(measured) == sorted(
    (*row, n, metric) for row in rows for n in (256, 512) for metric in ("loss", "accuracy")
  )
  assert checkpoint.load(tmp_path / "study" / "runs" / "control_qk_norm").model.qk_norm is not None
  report = (tmp_path / "study" / "report.md").read_text()
  assert "dropped (QK-norm, 1e-3), fitted β" in report and "RoPE, continued (3e-4) + YaRN" in report
