"""From what a user has to a first training step in one command; and what a command says of bad data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.stored_documents import store

from drope_jax.data.sources import Tokens

pytestmark = pytest.mark.slow

CONFIG = """
from drope_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

def get_config(arg=""):
  return TrainConfig(
    model=ModelConfig(vocab_size=320, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=16),
    data=DataConfig(context=16, batch_size=4), optim=OptimConfig(peak_lr=1e-3), steps=2, trackers=(),
  )
"""
TEXTS = [f"a text of the user's, number {i}, about {'this and that ' * (i % 5)}" for i in range(200)]


def run(module, *arguments, cache):
  root = str(Path(__file__).parents[2])
  environment = {**os.environ, "PYTHONPATH": root, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-m", module, *map(str, arguments)],
    cwd=root, env=environment, capture_output=True, text=True, timeout=300,
  )  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_one_command_from_documents_to_a_training_step(kind, tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  store(kind, tmp_path / "mine", TEXTS)
  path = tmp_path / "mine" if kind == "text" else f"{tmp_path}/mine/*.jsonl"
  done = run(
    "experiments.train",
    f"--config={tmp_path}/config.py",
    f"--data={path}",
    "--train_tokenizer=300",
    f"--workdir={tmp_path}/run",
    cache=tmp_path / "cache",
  )
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
  assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["directory"] == str(path)
  assert (tmp_path / "run" / "tokenizer.json").exists()  # its own copy


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_ends_a_run_with_one_line(workers, tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  lines = [json.dumps({"text": text if i != 150 else None}) for i, text in enumerate(TEXTS)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
  done = run(
    "experiments.train",
    f"--config={tmp_path}/config.py",
    f"--data={tmp_path}/a.jsonl",
    f"--config.data.num_workers={workers}",
    "--config.steps=400",
    f"--workdir={tmp_path}/run",
    cache=tmp_path / "cache",
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
  assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/a.jsonl, line 151, field 'text': has no text")


def test_tokenise_and_report(tmp_path):
  store("parquet", tmp_path / "mine", TEXTS)
  arguments = f"--data={tmp_path}/mine", "--train_tokenizer=300"
  done = run("drope_jax.data.tokenize", *arguments, f"--out={tmp_path}/out", "--processes=2", cache=tmp_path / "cache")
  assert done.returncode == 0, done.stderr
  assert 0 < len(Tokens(str(tmp_path / "out")).documents()) <= len(TEXTS)
  done = run(
    "drope_jax.data.report",
    f"--data={tmp_path}/out",
    f"--tokenizer={tmp_path}/out/tokenizer",
    f"--out={tmp_path}/report",
    cache=tmp_path / "cache",
  )
  assert done.returncode == 0 and "bytes per token" in done.stdout, done.stderr
  assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.txt", "lengths.png"}
  done = run("drope_jax.data.report", f"--data={tmp_path}/nowhere", cache=tmp_path / "cache")
  assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/nowhere: no dataset here")


def test_two_hosts_tokenise_at_the_same_time(tmp_path):
  """Each its shards, whoever begins or ends first; the result is that of one host, and no draft is left."""
  store("jsonl", tmp_path / "mine", TEXTS)
  root = str(Path(__file__).parents[2])
  environment = {**os.environ, "PYTHONPATH": root, "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "drope_jax.data.tokenize", f"--data={tmp_path}/mine", "--processes=1", "--shards=5"]

  def begin(out, *more):
    return subprocess.Popen([*command, f"--out={tmp_path}/{out}", *more], cwd=root, env=environment)

  hosts = [begin("out", f"--host={host}", "--hosts=2") for host in range(2)]
  assert [host.wait(timeout=300) for host in hosts] == [0, 0]
  assert begin("whole").wait(timeout=300) == 0
  names = {path.name for path in (tmp_path / "whole").iterdir()}
  assert {path.name for path in (tmp_path / "out").iterdir()} == names
  assert all(
    (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names - {"tokenizer"}
  )
