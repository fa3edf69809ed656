"""lm-evaluation-harness's own tasks, offline, against what we measure natively."""

import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.stub_model import put, reader
from support.tiny_run import tiny_corpus, tiny_model, tiny_run

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from drope_jax import checkpoint
from drope_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.answers import complete
from drope_jax.evaluate.harness import DropeJax
from drope_jax.evaluate.methods import inference
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.tasks.multiple_choice import MultipleChoice
from drope_jax.evaluate.tasks.ruler import found_references
from drope_jax.generation import generate
from drope_jax.interop.exporting import export_model
from drope_jax.train import train

LENGTH = 256
TEXTS = ["The model drops its positions. " * 3, "A longer text than it has seen, and some more of it."]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("harness")
  model = tiny_model(positions=None)
  train(tiny_run(tiny_corpus(directory / "corpus"), model=model, steps=5), directory / "run")
  return directory / "run"


@pytest.fixture(scope="module")
def native(workdir):
  loaded = checkpoint.load(workdir)
  how = inference("drope", loaded.model, 16, LENGTH, c=0.1)
  return Subject(params=loaded.params, how=how, tokenizer=load_tokenizer(workdir), train_context=16)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  """A folder with a rolling perplexity, ARC as released to the hub, and answers to be generated."""
  folder = tmp_path_factory.mktemp("tasks")
  rng = random.Random(0)
  words = ["the", "model", "drops", "text", "longer", "seen"]
  arc = [
    {
      "question": " ".join(rng.choices(words, k=5)) + "?",
      "choices": {"text": [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(4)], "label": list("ABCD")},
      "answerKey": rng.choice("ABCD"),
    }
    for _ in range(40)
  ]
  data = {
    "text": [{"text": text} for text in TEXTS],
    "arc_easy": arc,
    "asked": [{"q": f"{word} ", "a": word} for word in words],
  }
  for name, records in data.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  head = "dataset_path: json\ndataset_kwargs:\n  data_files: {file}\ntest_split: train\ntask: {name}\n"
  bodies = {
    "text": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n'
    "  - metric: word_perplexity\n  - metric: byte_perplexity\n  - metric: bits_per_byte\n",
    "arc_easy": 'output_type: multiple_choice\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
    'doc_to_target: "{{choices.label.index(answerKey)}}"\ndoc_to_choice: "{{choices.text}}"\nmetric_list:\n'
    "  - metric: acc\n  - metric: acc_norm\n",
    "asked": 'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\ngeneration_kwargs:\n'
    '  until: ["e"]\n  max_gen_toks: 12\n  do_sample: false\nmetric_list:\n  - metric: exact_match\n',
  }
  for name, body in bodies.items():
    (folder / f"{name}.yaml").write_text(head.format(file=folder / f"{name}.jsonl", name=f"own_{name}") + body)
  return folder


@pytest.fixture(scope="module")
def measured(workdir, tasks):
  return simple_evaluate(
    model="drope_jax",
    model_args=f"checkpoint={workdir},method=drope,c=0.1,length={LENGTH}",
    tasks=["own_text", "own_arc_easy", "own_asked"],
    task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    bootstrap_iters=0,
    log_samples=True,
  )


def test_rolling_perplexity_is_ours(measured, native):
  total_nll, total_bytes = 0.0, 0
  for text in TEXTS:
    tokens = np.asarray([native.tokenizer.eos_id, *native.tokenizer.encode(text)], np.int32)
    total_nll += position_losses(native.params, native.how, [tokens], length=len(tokens) - 1).sum()
    total_bytes += len(text.encode())
  assert measured["results"]["own_text"]["bits_per_byte,none"] == pytest.approx(
    total_nll / total_bytes / math.log(2), rel=1e-4
  )


def test_multiple_choice_is_ours(measured, native, tasks):
  raw, normalised = MultipleChoice(name="arc_easy", folder=tasks).measure(native, LENGTH)
  assert measured["results"]["own_arc_easy"]["acc,none"] == pytest.approx(raw.value)
  assert measured["results"]["own_arc_easy"]["acc_norm,none"] == pytest.approx(normalised.value)
  assert 0 < raw.value < 1


def test_generated_text_is_ours_up_to_the_stop(measured, native):
  for sample in measured["samples"]["own_asked"]:
    prompt = native.tokenizer.encode(sample["doc"]["q"].rstrip(" ") + " ")
    (row,) = generate(
      native.params,
      native.how.config,
      [prompt],
      max_new_tokens=12,
      eos_id=native.tokenizer.eos_id,
      logit_scale=native.how.logit_scale,
    )
    assert sample["resps"][0][0] == native.tokenizer.decode(row).split("e")[0]


# --- RULER, as the harness makes it: the three tasks whose haystack is not downloaded ------------------

RULER = ("niah_single_1", "niah_multikey_2", "niah_multikey_3")
RULER_LENGTH = 1536  # tokens, which are bytes here: the wording alone takes 400, and the answer has 128
RULER_SAMPLES = 4


@pytest.fixture
def ruler(workdir, tmp_path, monkeypatch):
  """Runs the tasks; they size their prompts by a tokenizer of transformers, and would make 500 of them."""
  pytest.importorskip("transformers")
  pytest.importorskip("wonderwords")
  export_model(workdir, tmp_path / "exported", format="llama")
  from lm_eval.tasks.ruler import prepare_niah

  def few(*args, num_samples, make=prepare_niah.generate_samples, **how):
    return make(*args, num_samples=RULER_SAMPLES, **how)

  monkeypatch.setattr(prepare_niah, "generate_samples", few)
  random.seed(0)

  def run():
    return simple_evaluate(
      model="drope_jax",
      model_args=f"checkpoint={workdir},method=drope,c=0.1,length={RULER_LENGTH}",
      tasks=list(RULER),
      task_manager=TaskManager(
        metadata={"tokenizer": str(tmp_path / "exported"), "max_seq_lengths": [RULER_LENGTH]},
      ),
      bootstrap_iters=0,
      log_samples=True,
    )

  return run


@pytest.mark.slow
def test_answers_to_ruler_are_ours(ruler, native, workdir):
  measured = ruler()
  loaded = checkpoint.load(workdir)
  how = inference("drope", loaded.model, 16, RULER_LENGTH, c=0.1)
  for task in RULER:
    samples = measured["samples"][task]
    assert len(samples) == RULER_SAMPLES
    prompts = [native.encode(sample["arguments"][0][0]) for sample in samples]
    assert all(RULER_LENGTH / 2 < len(prompt) <= RULER_LENGTH - 128 for prompt in prompts)
    answers = complete(dataclasses.replace(native, how=how), prompts, 128)
    assert [sample["resps"][0][0] for sample in samples] == answers
    scores = [np.mean(found_references(a, s["doc"]["outputs"])) for a, s in zip(answers, samples, strict=True)]
    assert measured["results"][task][f"{RULER_LENGTH},none"] == np.mean(scores)


@pytest.mark.slow
def test_one_that_finds_every_needle_has_all_of_ruler(ruler, monkeypatch):
  """A model that reads the value out of the prompt, and says it wrongly where it is a UUID, as in the last task."""
  tokenizer = ByteTokenizer()

  def answer(text):
    prompt, _, begun = text.rpartition(" mentioned in the provided text is")
    (value,) = re.findall(rf"for {prompt.split()[-1]} is: (\S+)\.", prompt)
    return f" {value[::-1] if '-' in value else value}"[len(begun) :]

  model = put(monkeypatch, reader(answer, tokenizer), tokenizer)
  oracle = checkpoint.Checkpoint(model.how.config, model.params, None, 0, 0, 16)
  monkeypatch.setattr("drope_jax.checkpoint.load", lambda *_: oracle)
  results = ruler()["results"]
  assert [results[task][f"{RULER_LENGTH},none"] for task in RULER] == [1.0, 1.0, 0.0]


# --- the command --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_of_the_readme(workdir, tasks, measured, tmp_path):
  command = [sys.executable, "-m", "drope_jax.evaluate.harness", "run", "--model", "drope_jax"]
  command += ["--model_args", f"checkpoint={workdir},method=drope,c=0.1,length={LENGTH}"]
  command += ["--tasks", "own_text,own_arc_easy,own_asked", "--include_path", str(tasks)]
  offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [*command, "--output_path", str(tmp_path / "out")],
    env={**os.environ, **offline, "PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  (file,) = (tmp_path / "out").rglob("results*.json")
  found = json.loads(file.read_text())["results"]
  for task, metrics in measured["results"].items():
    for metric, value in metrics.items():
      if isinstance(value, float) and "stderr" not in metric:
        assert found[task][metric] == pytest.approx(value, rel=1e-6)
  assert "own_arc_easy" in done.stdout


def test_a_c_without_effect_is_refused(workdir):
  for arguments in (
    {"method": "drope", "c": 0.1},
    {"method": "drope:0.1"},
    {"method": "drope", "c": 0.1, "length": 16},
  ):
    with pytest.raises(ConfigError, match=r"c is 0\.1, but beta is 1 at length=16.*give length=TOKENS"):
      DropeJax(str(workdir), **arguments)
  with pytest.raises(ConfigError, match=r"c is 0\.1, which method 'nope' does not read"):
    DropeJax(str(workdir), method="nope", c=0.1, length=LENGTH)
  with pytest.raises(ConfigError, match="no token that begins a document"):
    DropeJax(str(workdir), bos=True)


def test_answers_are_kept_by_the_checkpoint(workdir):
  assert DropeJax(str(workdir)).tokenizer_name == str(workdir)


def test_a_rolling_text_begins_with_one_bos(workdir, monkeypatch):
  tokenizer = ByteTokenizer()
  tokenizer.bos_id = 260
  monkeypatch.setattr("drope_jax.evaluate.harness.load_tokenizer", lambda _: tokenizer)
  with_bos, without = (DropeJax(str(workdir), length=64, bos=bos) for bos in (True, False))
  seen = []
  for model in (with_bos, without):
    monkeypatch.setattr(model, "_loglikelihood_tokens", lambda windows: seen.append(windows) or [(0.0, True)])
    model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("abc",), 0)])
  assert seen[0] == seen[1] == [(None, [260], tokenizer.encode("abc"))]


def test_long_contexts_are_truncated_on_the_left(workdir, native, caplog):
  model = DropeJax(str(workdir), method="nope", length=32)
  context, continuation = list(range(1, 100)), [5, 6]
  with caplog.at_level("WARNING"):
    cut = model._loglikelihood_tokens([(None, context, continuation)] * 2)[:1]
  assert caplog.text.count("truncated on the left") == 1 and "99 tokens" in caplog.text
  (whole, _), (shorter, _) = (
    model._loglikelihood_tokens([(None, context[-length:], continuation)])[0] for length in (31, 30)
  )
  assert cut[0][0] == pytest.approx(whole, abs=1e-5)
  assert cut[0][0] != pytest.approx(shorter, abs=1e-5)


def test_what_it_cannot_do_is_refused(workdir):
  with pytest.raises(ConfigError, match="method 'rope' is impossible"):
    DropeJax(str(workdir), method="rope")
  with pytest.raises(ConfigError, match="--batch_size is not read"):
    DropeJax(str(workdir), batch_size=8)
  with pytest.raises(ConfigError, match="is longer than length=16"):
    DropeJax(str(workdir))._loglikelihood_tokens([(None, [1], list(range(17)))])
  assert jax.default_backend()  # torch is not needed
