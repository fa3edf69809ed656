"""The commands as a person types them: what bad input is told, its exit status, and that nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.smollm2 import CHECKPOINT, needs_smollm2
from support.tiny_run import contents, records, tiny_corpus, tiny_model, tiny_run

from drope_jax import checkpoint
from drope_jax.data.corpus import build_corpus, documents
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.drope import temperature
from drope_jax.generation import generate
from drope_jax.positions import RoPE
from drope_jax.serialization import differences, to_dict
from drope_jax.train import train
from drope_jax.transitions import drop

pytestmark = pytest.mark.usefixtures("compile_once")

ROOT = Path(__file__).parents[2]
CONFIG_FILE = """
from drope_jax.config import DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig


def get_config(init=None):
  sizes = {{"d_model": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "d_ff": 24}}
  return TrainConfig(
    model=ModelConfig(vocab_size=264, **sizes),
    init=InitConfig(checkpoint=init, transition=Keep()) if init else None,
    data=DataConfig(directory={corpus!r}, context=16, batch_size=8),
    optim=OptimConfig(peak_lr=1e-2, warmup_steps=2),
    steps=10,
    log_every=1,
    checkpoint_every=5,
    trackers=(),
  )
"""


class Ended(NamedTuple):
  """How a command ended."""

  status: int
  stdout: str
  stderr: str

  def error(self) -> str:
    """What it says, if that is one line as promised."""
    lines = self.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), self.stderr
    return lines[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A corpus, a config file that trains on it, and a run that did."""
  directory = tmp_path_factory.mktemp("commands")
  training = list(documents(tiny_corpus(directory / "unevaluated"), "train"))
  prose = ["\n".join(training[part::8]) for part in range(8)]  # long enough to be measured on
  splits = {"train": training, "heldout": prose[:4], "fit": prose[4:]}
  corpus = str(build_corpus(directory / "corpus", splits))
  (directory / "tiny.py").write_text(CONFIG_FILE.format(corpus=corpus))
  train(tiny_run(corpus), directory / "finished")
  wider = {"model": tiny_model(d_ff=32), "optim": {"warmup_steps": 0}, "steps": 1}
  train(tiny_run(str(directory / "unevaluated"), **wider), directory / "wider")
  return directory


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """Runs `python -m MODULE ARGUMENTS`."""
  server = subprocess.Popen(
    [sys.executable, str(ROOT / "tests" / "support" / "command_server.py")],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    },
  )

  def run(module, *arguments):
    server.stdin.write(json.dumps([module, *map(str, arguments)]) + "\n")
    server.stdin.flush()
    return Ended(**json.loads(server.stdout.readline()))

  yield run
  server.stdin.close()
  server.wait()


def test_train_with_an_override(command, files, tmp_path):
  arguments = (f"--config={files / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", "--config.optim.peak_lr=0.02")
  ended = command("experiments.train", *arguments)
  assert ended.status == 0, ended.stderr
  assert f"finished: step 10 in {tmp_path / 'run'}" in ended.stderr
  assert checkpoint.load(tmp_path / "run").config.optim.peak_lr == 0.02
  assert len(records(tmp_path / "run")) == 10
  before = contents(tmp_path / "run")
  assert command("experiments.train", *arguments).status == 0
  assert contents(tmp_path / "run") == before


RECALIBRATE = ROOT / "experiments" / "configs" / "recalibrate.py"
SHORT = ("--config.steps=10", "--config.optim.warmup_steps=2", "--config.log_every=1", "--config.trackers=()")


def test_a_recalibration_and_its_control_differ_in_one_override(command, files, tmp_path):
  corpus = checkpoint.load(files / "finished").config.data.directory
  arguments = (
    f"--config={RECALIBRATE}:smollm2_135m",
    f"--config.init.checkpoint={files / 'finished'}",
    f"--config.data.directory={corpus}",
    "--config.data.context=16",
    "--config.data.batch_size=8",
    "--config.optim.peak_lr=0.01",
    *SHORT,
  )
  for name, override in (("dropped", ()), ("control", ("--config.init.transition=Keep",))):
    ended = command("experiments.train", *arguments, f"--workdir={tmp_path / name}", *override)
    assert ended.status == 0, ended.stderr
  dropped, control = (checkpoint.load(tmp_path / name) for name in ("dropped", "control"))
  assert sorted(differences(to_dict(control.config), to_dict(dropped.config))) == [
    "init.transition.type: 'Keep' there, 'Drop' here",
    f"model.positions: {to_dict(RoPE())} there, None here",
  ]
  assert dropped.config.data.tokenizer == str(files / "finished")  # which its own copy came from
  assert dropped.model.qk_norm is not None
  loss = [record["loss"] for record in records(tmp_path / "dropped")]
  assert min(loss[-3:]) < loss[0] - 0.1


@pytest.mark.slow
@needs_smollm2
def test_ten_steps_of_recalibration_help_a_dropped_smollm2(command, tmp_path):
  texts = [text for _, text in sorted(topics.topics.items())]
  corpus = build_corpus(tmp_path / "topics", {"train": texts})
  ended = command(
    "experiments.train",
    f"--config={RECALIBRATE}:smollm2_135m",
    f"--workdir={tmp_path / 'run'}",
    f"--config.init.checkpoint={CHECKPOINT}",
    f"--config.data.directory={corpus}",
    "--config.data.context=256",
    "--config.data.batch_size=4",
    *SHORT,
  )
  assert ended.status == 0, ended.stderr
  loss = [record["loss"] for record in records(tmp_path / "run")]
  assert len(loss) == 10
  assert sum(loss[-3:]) / 3 < loss[0] - 1


def test_evaluate_measures_each_figure_once(command, files, tmp_path):
  before = contents(files / "finished")
  arguments = (
    f"--checkpoint={files / 'finished'}",
    f"--out={tmp_path / 'out'}",
    "--methods=rope,yarn",
    "--lengths=1x,32",
    "--tasks=perplexity",
    "--documents=2",
  )
  ended = command("experiments.evaluate", *arguments)
  assert ended.status == 0, ended.stderr
  results = (tmp_path / "out" / "results.jsonl").read_text()
  loss = {(r["method"], r["context"]): r for r in map(json.loads, results.splitlines()) if r["metric"] == "loss"}
  assert loss.keys() == {("rope", 16), ("rope", 32), ("yarn", 16), ("yarn", 32)}
  assert {r["run"] for r in loss.values()} == {"finished"}
  assert loss["rope", 16]["value"] == loss["yarn", 16]["value"]
  assert loss["rope", 32]["n"] == 2 * 32
  assert command("experiments.evaluate", *arguments).status == 0
  assert (tmp_path / "out" / "results.jsonl").read_text() == results
  assert contents(files / "finished") == before


def test_evaluate_names_a_split_that_is_missing(command, files, tmp_path):
  ended = command("experiments.evaluate", f"--checkpoint={files / 'wider'}", f"--out={tmp_path / 'out'}")
  assert ended.status == 2
  assert f"{files / 'unevaluated'}: the split 'heldout' is missing" in ended.error()
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["--config.optim.peek_lr=1"], "peek_lr"),
    (["--config.depth=1"], "depth"),
    (["--config.steps=many"], "steps"),
    (["--no_such_flag"], "no_such_flag"),
    (["positional"], "positional"),
    (["--config.model.num_heads=3"], "ModelConfig.num_heads is 3"),
    (["--config.model.head_dim=5"], "ModelConfig.head_dim is 5"),
    (["--config.data.context=0"], "DataConfig.context is 0"),
    (["--config.data.batch_size=-1"], "DataConfig.batch_size is -1"),
    (["--config.optim.schedule=linear"], "OptimConfig.schedule is 'linear'"),
    (["--config.optim.schedule=constant", "--config.optim.floor=0.5"], "OptimConfig.floor is 0.5"),
    (["--config.compute.attention=splash"], "ComputeConfig.attention is 'splash', which runs on tpu; this is cpu"),
    (["--config.data.directory=/nowhere/at/all"], "/nowhere/at/all: no dataset here"),
    (["--config.data.split=test"], "split 'test' is missing or empty"),
    (["--config.data.tokenizer=/nowhere/tokenizer.json"], "/nowhere/tokenizer.json"),
    (["--config.mesh.fsdp=3"], "MeshConfig (data=-1, fsdp=3"),
  ],
)
def test_train_names_what_is_wrong_and_writes_nothing(command, files, tmp_path, overrides, named):
  ended = command("experiments.train", f"--config={files / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *overrides)
  assert named in ended.error()
  assert ended.status == 2
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--workdir=/dev/null/unused"], "--config"),
    (["--config=/nowhere/config.py", "--workdir=/dev/null/unused"], "/nowhere/config.py"),
    (
      [f"--config={ROOT}/experiments/studies/quickstart.py", "--workdir=/dev/null/unused"],
      "--config: the file has a Quickstart; this command needs a TrainConfig",
    ),
  ],
)
def test_train_without_a_config(command, arguments, named):
  ended = command("experiments.train", *arguments)
  assert named in ended.error()
  assert ended.status == 2


@pytest.mark.parametrize(
  ("raised", "said"),
  [
    ("raise ValueError", "config.py: Error whilst parsing config file: ValueError"),
    ("raise ConfigError('no rop')", "config.py: Error whilst parsing config file: no rop"),
    ("raise KeyError", "KeyError()"),
    ("import no_such_module", "No module named 'no_such_module'"),
  ],
)
def test_a_config_file_that_fails_is_told_by_what_it_says(command, tmp_path, raised, said):
  program = f"from drope_jax.errors import ConfigError\ndef get_config():\n  {raised}\n"
  (tmp_path / "config.py").write_text(program)
  ended = command("experiments.train", f"--config={tmp_path / 'config.py'}", "--workdir=/dev/null/unused")
  assert ended.error().endswith(said)
  assert ended.status == 2


def test_train_refuses_the_workdir_of_another_config(command, files):
  before = contents(files / "finished")
  ended = command(
    "experiments.train",
    f"--config={files / 'tiny.py'}",
    f"--workdir={files / 'finished'}",
    "--config.optim.peak_lr=0.5",
  )
  assert ended.status == 1
  assert f"{files / 'finished'} belongs to another run: optim.peak_lr: 0.01 there, 0.5 here" in ended.error()
  assert contents(files / "finished") == before


def test_train_refuses_a_checkpoint_of_another_architecture(command, files, tmp_path):
  config = f"--config={files / 'tiny.py'}:{files / 'wider'}"
  ended = command("experiments.train", config, f"--workdir={tmp_path / 'run'}")
  assert ended.status == 2
  assert "d_ff: 32 there, 24 here" in ended.error() and str(files / "wider") in ended.error()
  assert not (tmp_path / "run").exists()


def test_train_names_a_checkpoint_that_is_not_there(command, files, tmp_path):
  ended = command("experiments.train", f"--config={files / 'tiny.py'}:/nowhere/run", f"--workdir={tmp_path / 'run'}")
  assert ended.status == 1
  assert "/nowhere/run: not the workdir of a run" in ended.error()


@pytest.mark.parametrize(
  ("arguments", "named", "status"),
  [
    (["--checkpoint=/nowhere/run"], "/nowhere/run", 1),
    (["--step=7"], "no checkpoint of step 7; there are 5, 10", 1),
    (["--methods=rope,yarm"], "method is 'yarm'; allowed: rope, ", 2),
    (["--methods=drope"], "method 'drope' is impossible for a checkpoint with positions RoPE", 2),
    (["--tasks=perplexity,needle"], "task is 'needle'; allowed: perplexity, needles", 2),
    (["--lengths=0x"], "--lengths has '0x'", 2),
    (["--lengths=far"], "--lengths has 'far'", 2),
    (["--documents=few"], "documents", 2),
  ],
)
def test_evaluate_names_what_is_wrong_and_writes_nothing(command, files, tmp_path, arguments, named, status):
  if not arguments[0].startswith("--checkpoint"):
    arguments = [f"--checkpoint={files / 'finished'}", *arguments]
  ended = command("experiments.evaluate", *arguments, f"--out={tmp_path / 'out'}")
  assert named in ended.error()
  assert ended.status == status
  assert not (tmp_path / "out").exists()


def answers(ended):
  """The text below each heading of experiments.generate."""
  return [part.split("\n", 1)[1] for part in ended.stdout.split("--- ")[1:]]


def test_generate_answers_all_prompts_as_each_alone(command, files, tmp_path):
  (tmp_path / "long.txt").write_text("the model drops its positions and reads a longer text than it has seen")
  arguments = (f"--checkpoint={files / 'finished'}", "--max_new_tokens=9", "--prefill_chunk=16")
  both = command("experiments.generate", *arguments, "--prompt=the", f"--prompt_file={tmp_path / 'long.txt'}")
  assert both.status == 0, both.stderr
  assert [line.split(" ", 1)[1].split(":")[0] for line in both.stderr.splitlines()] == [
    "method rope, beta 1.000, at 4.94x the training context",
    "prompts",
    "answers",
  ]
  assert "--- 2 of 2: the model drops its positions and reads a longer text than i\n" in both.stdout
  trained, tokenizer = checkpoint.load(files / "finished"), load_tokenizer(files / "finished")
  for shown, text in zip(answers(both), ("the", (tmp_path / "long.txt").read_text()), strict=True):
    expected = generate(trained.params, trained.model, [tokenizer.encode(text)], max_new_tokens=9, eos_id=0)
    assert shown == tokenizer.decode(expected[0]) + "\n"


@pytest.fixture(scope="module")
def dropped(files):
  """A model without embedding, of large weights: what it answers hangs on its temperature."""
  run, directory = checkpoint.load(files / "finished"), files / "dropped"
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), run.params)
  checkpoint.save_weights(directory, drop(run.model), params, run.context, {"name": "dropped"})
  load_tokenizer(files / "finished").save(directory)
  return directory


def test_generate_takes_beta_from_the_length_of_each_prompt(command, dropped, tmp_path):
  texts = ["the", "the model drops its positions and reads a longer text than it has seen", "a", "its"]
  (tmp_path / "long.txt").write_text(texts[1])
  asked = ["--prompt=the", f"--prompt_file={tmp_path / 'long.txt'}", "--prompt=a", "--prompt=its"]
  ended = command("experiments.generate", f"--checkpoint={dropped}", "--max_new_tokens=20", "--c=2", *asked)
  assert ended.status == 0, ended.stderr
  trained, tokenizer = checkpoint.load(dropped), load_tokenizer(dropped)

  def alone(text, length):
    answer = {"max_new_tokens": 20, "eos_id": 0, "logit_scale": temperature(length / 16, 2)}
    return tokenizer.decode(generate(trained.params, trained.model, [tokenizer.encode(text)], **answer)[0]) + "\n"

  # The file's prompt comes last: --prompt and --prompt_file are read one after the other.
  in_order = ["the", "a", "its", texts[1]]
  assert answers(ended) == [alone(text, len(text) + 20) for text in in_order]
  assert answers(ended)[:3] != [alone(text, len(texts[1]) + 20) for text in in_order[:3]]  # the beta of a neighbour
  betas = [line.split("beta ")[1] for line in ended.stderr.splitlines() if "beta" in line]
  assert betas == [
    f"{temperature(23 / 16, 2):.3f}, at {23 / 16:.3g}x the training context (prompt 1, 3)",
    f"{temperature(21 / 16, 2):.3f}, at {21 / 16:.3g}x the training context (prompt 2)",
    f"{temperature(90 / 16, 2):.3f}, at {90 / 16:.3g}x the training context (prompt 4)",
  ]


def test_generate_reads_utf8(command, files, tmp_path):
  (tmp_path / "prompt.txt").write_bytes("Grüße".encode())
  arguments = (f"--checkpoint={files / 'finished'}", f"--prompt_file={tmp_path / 'prompt.txt'}", "--max_new_tokens=1")
  ended = command("experiments.generate", *arguments)
  assert ended.status == 0 and "prompts: 7 tokens" in ended.stderr
  (tmp_path / "prompt.txt").write_bytes("Grüße".encode("latin-1"))
  assert "prompt.txt cannot be read" in command("experiments.generate", *arguments).error()


def test_generate_samples_by_seed_and_crops(command, files):
  prompt = (f"--checkpoint={files / 'finished'}", "--prompt=the model drops", "--max_new_tokens=6")
  sampled = [command("experiments.generate", *prompt, "--temperature=5", f"--seed={seed}") for seed in (1, 2)]
  assert sampled[0].stdout != sampled[1].stdout
  cropped = command("experiments.generate", *prompt, "--method=crop")
  assert "prompts: 10 tokens" in cropped.stderr  # 16 of the training context less 6


@pytest.mark.parametrize(
  ("arguments", "named", "status"),
  [
    ([], "--prompt or --prompt_file is needed", 2),
    (["--prompt="], "prompt 1 is empty", 2),
    (["--prompt_file=/nowhere/prompt.txt"], "/nowhere/prompt.txt cannot be read", 2),
    (["--prompt=a", "--checkpoint=/nowhere/run"], "/nowhere/run", 1),
    (["--prompt=a", "--step=7"], "no checkpoint of step 7; there are 5, 10", 1),
    (["--prompt=a", "--temperature=-1"], "temperature", 2),
    (["--prompt=a", "--top_p=0"], "top_p", 2),
    (["--prompt=a", "--max_new_tokens=0"], "max_new_tokens", 2),
    (["--prompt=a", "--method=drope"], "method 'drope' is impossible for a checkpoint with positions RoPE", 2),
    (["--prompt=a", "--method=yarn", "--c=0.1"], "--c is 0.1, which method 'yarn' does not read", 2),
    (["--prompt=a", "--method=crop", "--max_new_tokens=20"], "--max_new_tokens is 20: crop is 16", 2),
    (["--prompt=a", "--bos"], "--bos: the checkpoint's tokenizer has no token that begins a document", 2),
  ],
)
def test_generate_names_what_is_wrong(command, files, arguments, named, status):
  ended = command("experiments.generate", f"--checkpoint={files / 'finished'}", *arguments)
  assert named in ended.error()
  assert (ended.status, ended.stdout) == (status, "")


@pytest.mark.parametrize(
  ("overrides", "named"),
  [
    (["--config.contxt=3"], "contxt"),
    (["--config.context=0"], "context is 0"),
    (["--config.recall_share=1.5"], "Quickstart.recall_share is 1.5"),
    (["--config.extensions=()"], "Quickstart.extensions is ()"),
    (["--config.extensions=(0, 1)"], "Quickstart.extensions is (0, 1)"),
    (["--config.documents=0"], "Quickstart.documents is 0"),
    (["--config.needles_per_depth=0"], "Quickstart.needles_per_depth is 0"),
    (["--config.prose_limit=0"], "Quickstart.prose_limit is 0"),
    (["--config.packages=()"], "Quickstart.packages is ()"),
    (["--config.model.num_heads=3"], "ModelConfig.num_heads is 3"),
    (["--steps=0"], "steps"),
  ],
)
def test_quickstart_names_what_is_wrong_and_writes_nothing(command, tmp_path, overrides, named):
  ended = command("experiments.quickstart", f"--workdir={tmp_path / 'study'}", *overrides)
  assert named in ended.error()
  assert ended.status == 2
  assert not (tmp_path / "study").exists()


def test_quickstart_names_a_package_that_is_not_installed(command, tmp_path):
  overrides = ["--config.packages=('no_such_package',)"]
  ended = command("experiments.quickstart", f"--workdir={tmp_path / 'study'}", *overrides)
  assert "no_such_package" in ended.error()
  assert ended.status == 1
  assert not (tmp_path / "study" / "config.json").exists()  # with the name corrected it may begin there


@pytest.mark.parametrize(
  ("module", "config", "said"),
  [
    ("study", "configs/pretrain.py:rope", "the file has a TrainConfig; this command needs the settings of a study"),
    ("quickstart", "studies/smollm2_lengths.py", "the file has a Lengths; this command needs a Quickstart"),
  ],
)
def test_a_config_of_another_command(command, tmp_path, module, config, said):
  path = ROOT / "experiments" / config
  ended = command(f"experiments.{module}", f"--config={path}", f"--workdir={tmp_path / 'study'}")
  assert said in ended.error()
  assert ended.status == 2
  assert not (tmp_path / "study").exists()


def test_sigterm_while_a_run_starts_ends_with_the_status_asked_for(files, tmp_path):
  program = """
import sys, time
from drope_jax import checkpoint
from drope_jax import cli
from experiments import train

def resume(*arguments):
  print("resuming", flush=True)
  time.sleep(60)

checkpoint.resume = resume
cli.run(train.main, stopped_status=train.STOPPED_STATUS)
"""
  workdir = shutil.copytree(files / "finished", tmp_path / "run")
  arguments = [f"--config={files / 'tiny.py'}", f"--workdir={workdir}", "--stopped_status=75"]
  before = contents(workdir)
  with subprocess.Popen(
    [sys.executable, "-c", program, *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  ) as process:
    assert process.stdout.readline() == "resuming\n"
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
  assert process.returncode == 75
  assert said.endswith("stopped by SIGTERM; run the same command to go on from there\n"), said
  assert contents(workdir) == before
