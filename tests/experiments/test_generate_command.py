"""The command experiments.generate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drope_jax import checkpoint
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.drope import temperature
from drope_jax.generation import generate
from drope_jax.transitions import drop


def answers(ended):
  """The text below each heading of experiments.generate."""
  return [part.split("\n", 1)[1] for part in ended.stdout.split("--- ")[1:]]


@pytest.mark.slow
def test_generate_answers_all_prompts_as_each_alone(command, files, tmp_path):
  (tmp_path / "long.txt").write_text("the model drops its positions and reads a longer text than it has seen")
  arguments = (f"--checkpoint={files / 'finished'}", "--max_new_tokens=9", "--prefill_chunk=16")
  both = command("experiments.generate", *arguments, "--prompt=the", f"--prompt_file={tmp_path / 'long.txt'}")
  assert both.status == 0, both.stderr
  assert [line.split(" ", 1)[1].split(":")[0] for line in both.stderr.splitlines()][-3:] == [
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
  """A model without embedding and with large weights, whose answers depend on the temperature."""
  run, directory = checkpoint.load(files / "finished"), files / "dropped"
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), run.params)
  checkpoint.save_weights(directory, drop(run.model), params, run.context, {"name": "dropped"})
  load_tokenizer(files / "finished").save(directory)
  return directory


@pytest.mark.slow
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
