"""Measuring a checkpoint: each figure once, under its settings, and on from where an interruption came."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from support.counting_task import BOS_TOKENIZER, MODEL, PARAMS, TOKENIZER, Counting, dropped_checkpoint
from support.tiny_run import tiny_run

from drope_jax.checkpoint import Checkpoint
from drope_jax.errors import ConfigError
from drope_jax.evaluate import measure, results
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.figures import Figure
from drope_jax.evaluate.measure import evaluate
from drope_jax.evaluate.recorder import Recorder
from drope_jax.evaluate.results import Measurement, plain
from drope_jax.evaluate.tasks import make_tasks


@pytest.fixture
def loaded():
  return dropped_checkpoint()


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  tasks = [Counting("one"), Counting("two", fails_at=(1 + 0.5 * math.log(2), 32))]
  arguments = ("run", loaded, ["nope", "drope:0.5"], [16, 32], tasks, data, out)
  with pytest.raises(KeyboardInterrupt):
    evaluate(*arguments, command="first")
  evaluate(*arguments, command="second")
  evaluate(*arguments, command="third")
  assert tasks[0].measured == tasks[1].measured == [16, 32, 32]  # within the context both methods are one
  records = results.read(out)
  assert len({(r.measurement, r.metric, r.by) for r in records}) == len(records) == 8 * 3
  assert {r.command for r in records} == {"first", "second"}
  first = records[0]
  assert (first.metric, first.value, first.n, first.low, first.high) == ("score", 0.5, 10, 0.4, 0.6)
  assert (first.run, first.context, first.extension, first.seed) == ("run", 16, 1.0, 0)
  betas = {(r.method, r.context): r.value for r in records if r.metric == "beta"}
  assert betas["drope:0.5", 32] == 1 + 0.5 * math.log(2) and betas["nope", 32] == 1.0


@pytest.mark.parametrize(
  "change",
  [
    {"samples": 11},
    {"seed": 1},
    {"c": 0.25},
    {"bos": True},
    {"step": 2},
    {"params": jax.tree.map(lambda w: w.at[(-1,) * w.ndim].add(1e-3), PARAMS)},
  ],
  ids=lambda change: next(iter(change)),
)
def test_what_is_asked_with_another_setting_is_measured_anew(tmp_path, loaded, change):
  out = tmp_path / "results.jsonl"

  def ask(samples=10, seed=0, c=0.5, bos=False, step=1, params=PARAMS):
    data = EvalData(tokenizer=BOS_TOKENIZER, longest=64, seed=seed)
    task = Counting("one", samples=samples)
    changed = loaded._replace(step=step, params=params)
    evaluate("run", changed, ["nope", "drope"], [16, 32], [task], data, out, c, bos=bos)
    return task.measured

  assert ask() == [16, 32, 32]
  before = out.read_bytes()
  anew = ask(**change)
  assert anew == ([32] if "c" in change else [16, 32, 32])  # beta follows c beyond the context alone
  assert ask() == ask(**change) == []
  assert out.read_bytes().startswith(before)


def test_weights_are_known_whole_whatever_their_dtype(loaded):
  cast = loaded._replace(params=jax.tree.map(lambda w: w.astype(jnp.bfloat16), PARAMS))
  changed = loaded._replace(params={**PARAMS, "embedding": PARAMS["embedding"].at[-1, -1].add(1e-3)})
  known = [measure.weights_of(one)["weights"] for one in (loaded, cast, changed, loaded)]
  assert known[0] == known[3] and len(set(known)) == 3


def test_figures_of_before_there_were_settings_are_measured_anew_and_stay(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  evaluate("run", loaded, ["nope"], [16], [Counting("one")], data, out)
  old = [{k: v for k, v in json.loads(line).items() if k != "settings"} for line in out.read_text().splitlines()]
  out.write_text("".join(json.dumps(record) + "\n" for record in old))
  task = Counting("one")
  evaluate("run", loaded, ["nope"], [16], [task], data, out)
  assert task.measured == [16] and [r.settings is None for r in results.read(out)] == [True] * 3 + [False] * 3


def test_what_725dc9e_has_measured_is_not_measured_again(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  evaluate("run", loaded, ["nope", "drope:0.5"], [16, 32], [Counting("one")], data, out)
  records = [json.loads(line) for line in out.read_text().splitlines()]
  for record in records:
    by, at = record.pop("by"), record.pop("at")
    record["metric"] += "" if by is None else f"@{by}={at:g}"
    del record["better"], record["values"]
  assert {record["metric"] for record in records} == {"score", "beta", "score@depth=0"}
  out.write_text("".join(json.dumps(record) + "\n" for record in records))
  before, task = out.read_bytes(), Counting("one")
  evaluate("run", loaded, ["nope", "drope:0.5"], [16, 32], [task], data, out)
  assert task.measured == [] and out.read_bytes() == before


def test_answers_under_other_settings_are_not_taken_for_these(tmp_path):
  one, other = ({"beta": beta} for beta in (1.0, 1.5))
  recorder = Recorder(path=tmp_path / "results.jsonl", train_context=16)
  known = {"run": "run", "method": "drope", "task": "vt", "context": 64, "seed": 0}
  logs = [recorder.log_of(Measurement(**known, settings=settings)) for settings in (one, other, one)]
  logs[0].append([{"index": 0, "prompt": "p", "tokens": [1], "text": "a"}])
  assert logs[0].path == logs[2].path != logs[1].path


@pytest.mark.parametrize("name", ["order", "induction", "copy", "vt", "perplexity", "sliding_perplexity", "needles"])
def test_settings_of_a_task_are_json_and_tell_its_samples_apart(name, tmp_path, monkeypatch):
  first, second = ("The sea is calm tonight. The tide is full.", "The moon lies fair upon the straits of old.")
  found = set()
  for text in (first, first, second):
    (tmp_path / "essay.txt").write_text(f"{text} " * 40)
    monkeypatch.setattr(EvalData, "_split", lambda *_, text=text: [f"{text} " * 40])
    data = EvalData(tokenizer=TOKENIZER, longest=64, haystack=tmp_path, num_samples=3)
    settings = make_tasks([name], data)[0].settings(64)
    assert plain(settings) == settings
    found.add(json.dumps(settings, sort_keys=True))
  assert len(found) == 2


def test_a_length_and_a_method_named_twice_are_measured_once(tmp_path, loaded):
  out, data, task = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64), Counting("one")
  evaluate("run", loaded, ["nope", "nope"], [16, 32, 16], [task], data, out)
  assert task.measured == [16, 32] and len(results.read(out)) == 2 * 3


def test_what_fits_is_asked_once_for_every_crop(tmp_path):
  config = tiny_run("nowhere", model=MODEL)
  rope = Checkpoint(MODEL, PARAMS, config, 1, 1, 16)
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  bounded, free = Counting("one"), Counting("two", bounded=False)
  methods = ("rope", "pi", "ntk", "yarn", "dynamic_ntk", "dynamic_yarn", "crop")
  evaluate("run", rope, methods, [16, 32], [bounded, free], data, out)
  assert bounded.checked == [(16, None), (32, None), (32, 16)]
  assert free.checked == [(16, None), (16, 16), (32, None), (32, 16)]
  # rope; pi, ntk and yarn are it at 16; dynamic_ntk, dynamic_yarn and crop go by the sequence.
  assert bounded.measured == [16] + [32] * 7 and free.measured == [16] * 4 + [32] * 7


@pytest.mark.parametrize("methods", [["nope"], ["nope", "drope:0.5"]])
def test_a_c_that_no_method_reads_is_refused(tmp_path, loaded, methods):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  with pytest.raises(ConfigError, match=r"c is 0\.9, which no method of nope.* reads"):
    evaluate("run", loaded, methods, [32], [Counting("one")], data, out, 0.9)
  assert not out.exists()


def test_a_bos_that_the_tokenizer_lacks_is_refused(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  with pytest.raises(ConfigError, match="tokenizer has no token that begins a document"):
    evaluate("run", loaded, ["nope"], [32], [Counting("one")], data, out, bos=True)
  assert not out.exists()


def test_a_figure_that_is_not_finite_ends_it_with_one_line(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  task = Counting("one")
  task.measure = lambda subject, length: [Figure("loss", math.nan, 3)]
  with pytest.raises(results.ResultsError, match="loss of run, nope, one at 32 tokens is nan") as error:
    evaluate("run", loaded, ["nope"], [32], [task], data, out)
  assert "\n" not in str(error.value) and not out.exists()


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  task = Counting("one")
  with pytest.raises(ConfigError, match="one at 1 tokens: too short"):
    evaluate("run", loaded, ["nope"], [16, 1], [task], data, out)
  with pytest.raises(ConfigError, match="method 'rope' is impossible"):
    evaluate("run", loaded, ["nope", "rope"], [16], [task], data, out)
  assert not task.measured and not out.exists()
