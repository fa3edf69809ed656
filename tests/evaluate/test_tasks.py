"""What all tasks share: intervals, batches, progress, records, and going on after an interruption."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.stub_model import put, reader
from support.tiny_run import tiny_model, tiny_run

from drope_jax.checkpoint import Checkpoint
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import generation, measure, needles, perplexity, probes, results
from drope_jax.evaluate.catalog import NAMES, EvalData, make_tasks
from drope_jax.evaluate.generation import complete
from drope_jax.evaluate.measure import Place, evaluate
from drope_jax.evaluate.methods import Inference, allowed_methods, inference
from drope_jax.evaluate.perplexity import Perplexity, position_losses, text_bytes
from drope_jax.evaluate.progress import Progress
from drope_jax.evaluate.results import Measurement
from drope_jax.evaluate.samples import SampleLog
from drope_jax.evaluate.tasks import Figure, Subject, batches, bootstrap, mean_figure
from drope_jax.model import map_specs
from drope_jax.positions import NTK, PI, RoPE, YaRN

TOKENIZER = ByteTokenizer()
BOS_TOKENIZER = ByteTokenizer()
BOS_TOKENIZER.bos_id = 260  # of no text
RNG = np.random.default_rng(0)
MODEL = tiny_model(positions=RoPE())
PARAMS = map_specs(lambda spec: jnp.asarray(RNG.normal(not spec.decay, 0.3, spec.shape), jnp.float32), MODEL)


# --- intervals and batches -------------------------------------------------------------------------


def test_intervals_cover_the_true_mean_as_often_as_they_say():
  rng = np.random.default_rng(1)
  intervals = [bootstrap(rng.random(60) < 0.3, np.ones(60)) for _ in range(300)]
  covered = np.mean([low <= 0.3 <= high for low, high in intervals])
  assert 0.89 < covered < 0.99


def test_an_interval_is_that_of_the_samples_and_reproducible():
  values = np.random.default_rng(2).normal(5.0, 2.0, 400)
  figure = mean_figure("loss", values)
  assert figure.value == pytest.approx(values.mean()) and figure.n == 400
  assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
  assert mean_figure("loss", values) == figure
  assert mean_figure("loss", [3.0]) == Figure("loss", 3.0, 1, None, None)
  with pytest.raises(ValueError, match="loss: there is no sample"):
    mean_figure("loss", [])


def test_weights_make_a_ratio_of_sums():
  figure = mean_figure("bits", [1.0, 4.0], weights_N=np.array([3.0, 1.0]), n=7)
  assert (figure.value, figure.n) == (1.75, 7) and 1.0 <= figure.low <= figure.high <= 4.0


def test_batches_hold_each_index_once_within_the_budget():
  lengths = RNG.integers(1, 500, 100).tolist()
  groups = batches(lengths, 1000)
  assert sorted(i for group in groups for i in group.indices) == list(range(100))
  assert all(len(group.indices) * max(lengths[i] for i in group.indices) <= 1000 for group in groups)
  order = [lengths[i] for group in groups for i in group.indices]
  assert order == sorted(lengths, reverse=True)
  for group in groups:
    longest = max(lengths[i] for i in group.indices)
    assert longest <= group.width <= 1.25 * longest and len(group.indices) <= group.rows
  assert [group.indices for group in batches([5000, 3], 1000)] == [[0], [1]]  # one longer than the budget goes alone


def test_samples_of_one_length_are_one_shape_with_little_filling():
  for count in range(1, 60):
    groups = batches([100] * count, 1600)
    assert len({(group.rows, group.width) for group in groups}) == 1
    filled = sum(group.rows for group in groups)
    assert filled - count < 0.25 * count + len(groups) and max(len(group.indices) for group in groups) <= 16


# --- progress --------------------------------------------------------------------------------------


def test_progress_tells_the_share_and_the_time_left():
  now, said = [0.0], []
  progress = Progress([1, 3], said.append, lambda: now[0])
  progress.begin("first")
  now[0] = 10.0
  progress(1.0)
  progress.begin("second")
  assert said[-1].startswith("\r[######..................]  25%  second  about 30 s left")
  now[0] = 130.0
  progress(1 / 3)
  assert " 50%  second  about 2 min left" in said[-1]
  progress(1.0)
  assert progress.remaining() == ""


# --- a method and the number it was given ------------------------------------------------------------


def test_a_factor_by_hand_holds_at_every_length():
  for method, scaling in (("pi:8", PI(8.0)), ("ntk:8", NTK(8.0)), ("yarn:8", YaRN(8.0, 16))):
    for length in (16, 64):
      assert inference(method, MODEL, 16, length) == Inference(dataclasses.replace(MODEL, positions=RoPE(1e4, scaling)))
  nope = dataclasses.replace(MODEL, positions=None)
  assert inference("drope:0.5", nope, 16, 64).logit_scale == 1 + 0.5 * math.log(4)


@pytest.mark.parametrize("method", ["yarn:0.5", "pi:", "ntk:two", "rope:2", "drope:-1", "yarn:inf", "yarn:nan"])
def test_a_bad_number_is_refused(method):
  with pytest.raises(ConfigError, match="method is '" + method.split(":")[0]):
    inference(method, MODEL, 16, 64)


# --- perplexity --------------------------------------------------------------------------------------


def subject(**fields) -> Subject:
  return Subject(**{"params": PARAMS, "how": Inference(MODEL), "tokenizer": TOKENIZER, "train_context": 16, **fields})


DOCUMENTS = [np.asarray(TOKENIZER.encode(text), np.int32) for text in ("ab cd é " * 12, "The tides turn. " * 6)]


def test_bits_per_byte_are_the_loss_over_the_bytes():
  task = Perplexity(DOCUMENTS, TOKENIZER)
  loss, bits, *blocks = task.measure(subject(), 40)
  nll_NT = position_losses(PARAMS, Inference(MODEL), DOCUMENTS, length=40, batch_size=2)
  assert loss.value == pytest.approx(nll_NT.mean()) and loss.n == 80
  assert bits.metric == "bits_per_byte"
  assert bits.value == pytest.approx(loss.value / math.log(2), rel=1e-5)  # a token of this tokenizer is a byte
  assert [block.metric for block in blocks[:2]] == ["loss@0-8", "loss@8-16"] and len(blocks) == 5
  assert loss.low <= loss.value <= loss.high


def test_bytes_are_those_of_the_predicted_tokens():
  ids = TOKENIZER.encode("aé")
  assert text_bytes(TOKENIZER, np.asarray(ids)) == 2  # é, without the token that nothing predicts


def test_a_sliding_window_sees_no_more_than_its_length_and_predicts_the_same_tokens_at_every_length():
  task = Perplexity(DOCUMENTS, TOKENIZER, span=64)
  assert task.name == "sliding_perplexity"
  loss, _ = task.measure(subject(), 16)
  cropped = position_losses(PARAMS, Inference(MODEL, crop=16), DOCUMENTS, length=64, batch_size=2)
  assert loss.value == pytest.approx(cropped.mean(), rel=1e-6) and loss.n == 128
  whole, _ = task.measure(subject(), 64)
  assert whole.value == pytest.approx(
    position_losses(PARAMS, Inference(MODEL), DOCUMENTS, length=64, batch_size=2).mean(), rel=1e-6
  )
  with pytest.raises(ConfigError, match="a window of 65 tokens is longer than the 64"):
    task.check(65, None)


# --- answers and records ------------------------------------------------------------------------------


def test_answers_are_kept_and_not_asked_for_again(monkeypatch, tmp_path):
  model = put(monkeypatch, reader(lambda text: text[-1] if text[-3:] != "zzz" else "", TOKENIZER), TOKENIZER)
  prompts = [model.encode(text) for text in ("az", "bbb", "ccccz")]
  asked = []
  real = generation.generate
  monkeypatch.setattr(generation, "generate", lambda *args, **how: asked.append(len(args[2])) or real(*args, **how))
  path = tmp_path / "samples.jsonl"
  small = dataclasses.replace(model, log=SampleLog(path), batch_tokens=1)
  assert complete(small, prompts, 5) == ["zz", "bbbbb", "zz"] and asked == [1, 1, 1]
  lines = path.read_text().splitlines()
  assert sorted((json.loads(line)["index"], json.loads(line)["text"]) for line in lines) == [
    (0, "zz"),
    (1, "bbbbb"),
    (2, "zz"),
  ]
  path.write_text("\n".join(lines)[:-9])  # the last record is torn, and its newline gone
  again = dataclasses.replace(model, log=SampleLog(path))
  assert complete(again, [*prompts[:2], model.encode("changed"), prompts[2]], 5)[:2] == ["zz", "bbbbb"]
  assert asked[3:] == [3 if json.loads(lines[-1])["index"] in (0, 1) else 2]
  assert len(SampleLog(path)._known) >= 4


def test_a_crop_without_room_for_a_prompt_is_refused():
  with pytest.raises(ValueError, match="crop is 5; an answer of 5 tokens leaves no room"):
    complete(subject(how=Inference(MODEL, crop=5)), [np.arange(9)], 5)


class Counting:
  """A task that counts how often it is measured, and fails once."""

  def __init__(self, name, fails_at=None, samples=10, bounded=True):
    self.name, self.fails_at, self.samples, self.bounded = name, fails_at, samples, bounded
    self.measured, self.checked = [], []

  def settings(self, length):
    return {"samples": self.samples}

  def check(self, length, crop):
    self.checked.append((length, crop))
    if length == 1:
      raise ConfigError(f"{self.name}: too short")

  def measure(self, subject, length):
    if (subject.how.logit_scale, length) == self.fails_at:
      self.fails_at = None
      raise KeyboardInterrupt
    self.measured.append(length)
    return [Figure("score", 0.5, 10, 0.4, 0.6), Figure("score@depth=0", 1.0, 5)]


@pytest.fixture
def loaded():
  config = tiny_run("nowhere", model=dataclasses.replace(MODEL, positions=None))
  return Checkpoint(config.model, PARAMS, config, 1, 1, config.data.context)


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
  assert len({(r.measurement, r.metric) for r in records}) == len(records) == 8 * 3
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


def test_answers_under_other_settings_are_not_taken_for_these(tmp_path):
  one, other = ({"beta": beta} for beta in (1.0, 1.5))
  place = Place(path=tmp_path / "results.jsonl", train_context=16)
  logs = [place.log_of(Measurement("run", "drope", "vt", 64, 0, results.as_text(s))) for s in (one, other, one)]
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
    found.add(results.as_text(make_tasks([name], data)[0].settings(64)))
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
  evaluate("run", rope, allowed_methods(MODEL), [16, 32], [bounded, free], data, out)
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


# --- the fit of the temperature ----------------------------------------------------------------------


@pytest.fixture
def fit_data(monkeypatch):
  """Documents of 40 bytes, of which `fit` has three."""
  texts = ["The tides turn at noon and at dusk, or so.", "Ships left the harbour at the break of day.", "x y " * 20]
  monkeypatch.setattr(EvalData, "_split", lambda *_: texts)
  return EvalData(tokenizer=TOKENIZER, longest=32)


def test_an_interrupted_fit_goes_on_where_it_was(tmp_path, loaded, fit_data, monkeypatch):
  out, calls, fails = tmp_path / "results.jsonl", [], [13]

  def counting(params, how, documents, *, length, **inputs):
    calls.append((length, how.logit_scale))
    if len(calls) in fails:
      raise KeyboardInterrupt
    return position_losses(params, how, documents, length=length, **inputs)

  monkeypatch.setattr(measure, "position_losses", counting)
  arguments = ("run", loaded, ["nope", "drope"], [16, 24, 32], [Counting("one")], fit_data, out)
  with pytest.raises(KeyboardInterrupt):
    evaluate(*arguments)
  assert len(results.read(out)) == 12
  evaluate(*arguments)
  assert len(calls) == 2 * len(measure.BETAS) + 1 and calls[12] == calls[13]
  evaluate(*arguments)
  assert len(calls) == 2 * len(measure.BETAS) + 1
  fitted = [r for r in results.read(out) if r.task == "temperature"]
  assert len({(r.context, r.metric) for r in fitted}) == len(fitted) == 2 * len(measure.BETAS) + 2 + 1
  losses = [r for r in fitted if r.metric.startswith("loss@")]
  assert all(r.low <= r.value <= r.high and r.n == 3 * r.context for r in losses)
  for context in (24, 32):
    row = {r.metric: r.value for r in losses if r.context == context}
    (best,) = [r.value for r in fitted if (r.context, r.metric) == (context, "beta")]
    assert min(row, key=row.get) == f"loss@beta={best:.2f}"


def test_the_fit_is_part_of_the_progress(tmp_path, loaded, fit_data, monkeypatch):
  plans, said = [], []

  class Told(Progress):
    def plan(self, weights):
      super().plan(weights)
      plans.append(list(weights))

    def __call__(self, share):
      super().__call__(share)
      said.append((self._label, self._done(share)))

  monkeypatch.setattr(measure, "Progress", Told)
  methods = ["nope", "drope", "drope:0.5"]
  evaluate("run", loaded, methods, [16, 32], [Counting("one")], fit_data, tmp_path / "results.jsonl")
  betas = len(measure.BETAS)
  assert plans[0] == [32 * betas, *[16] * 3, *[32] * 3]
  assert plans[1] == [16, 32, 32, 32]  # within the context the three are one
  shares = [share for _, share in said]
  assert shares == sorted(shares)
  fit = [share for label, share in said if "temperature at 32" in label]
  assert len(fit) > betas and fit == sorted(fit) and shares[-1] == 1.0


def test_an_optimum_on_the_edge_of_the_grid_is_said(tmp_path, loaded, fit_data, monkeypatch, caplog):
  def losses(params, how, documents, *, length, **inputs):
    return np.full((len(documents), length), how.logit_scale, np.float32)

  monkeypatch.setattr(measure, "position_losses", losses)
  with caplog.at_level("WARNING"):
    evaluate("run", loaded, ["drope"], [32], [Counting("one")], fit_data, tmp_path / "results.jsonl")
  assert "at 2 times the training context the best beta, 0.8, ends the grid" in caplog.text


# --- concatenated documents ----------------------------------------------------------------------------


def test_short_documents_are_joined_only_where_that_is_asked_for(monkeypatch):
  monkeypatch.setattr(EvalData, "_split", lambda *_: ["abc", "defgh", "ijklm", "no", "pq"])
  alone = EvalData(tokenizer=TOKENIZER, longest=6)
  with pytest.raises(ConfigError, match="no document has 7 tokens"):
    make_tasks(["perplexity"], alone)
  joined = dataclasses.replace(alone, concatenate=True)
  (task,) = make_tasks(["perplexity"], joined)
  rows = [[TOKENIZER.decode([i]) for i in row.tolist()] for row in task.documents]
  assert ["".join(row) for row in rows] == ["abcdef", "ghijkl", "mnopq"] and {len(row) for row in rows} == {7}
  assert rows[0][3] == rows[1][2] == rows[2][1] == ""  # EOS
  assert task.settings(6)["concatenated"] and len(dataclasses.replace(joined, num_documents=2).documents) == 2
  assert [row.tolist() for row in joined.fit_documents] == [row.tolist() for row in task.documents]
  with pytest.raises(ConfigError, match="all documents together have 22 tokens; 41 are needed"):
    make_tasks(["perplexity"], dataclasses.replace(joined, longest=40))


# --- a BOS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["perplexity", "sliding_perplexity", "needles", "order", "induction"])
def test_a_bos_is_read_by_every_task(task, monkeypatch):
  monkeypatch.setattr(EvalData, "_split", lambda *_: ["The tides turn at noon and at dusk, or so they say. " * 20])
  data = EvalData(tokenizer=BOS_TOKENIZER, longest=200, num_samples=4, needles_per_depth=1)
  (made,) = make_tasks([task], data)
  seen = []
  monkeypatch.setattr(perplexity, "position_losses", lambda params, how, documents, **inputs: seen.extend(documents))
  monkeypatch.setattr(probes, "score_continuations", lambda subject, pairs: seen.extend(c for c, _ in pairs))
  monkeypatch.setattr(needles, "continuations", lambda subject, prompts, *_, **__: seen.extend(prompts))
  for bos in (True, False):
    with pytest.raises((TypeError, AttributeError)):  # there are no figures of nothing
      made.measure(subject(tokenizer=BOS_TOKENIZER, bos=bos), 200)
    assert seen and {int(row[0]) == 260 for row in seen} == {bos}
    seen.clear()


def test_a_bos_conditions_the_loss_and_is_not_predicted():
  task = Perplexity(DOCUMENTS, BOS_TOKENIZER)
  loss, bits, *_ = task.measure(subject(tokenizer=BOS_TOKENIZER, bos=True), 40)
  begun = [np.concatenate([[260], document]) for document in DOCUMENTS]
  expected = position_losses(PARAMS, Inference(MODEL), begun, length=40)
  assert loss.value == pytest.approx(expected.mean(), rel=1e-6) and loss.n == 80
  texts = [TOKENIZER.decode(document[:40].tolist()).encode() for document in DOCUMENTS]
  assert bits.n == pytest.approx(sum(map(len, texts)), abs=2)  # a cut character is spelt with three bytes


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path, loaded):
  out, data = tmp_path / "results.jsonl", EvalData(tokenizer=TOKENIZER, longest=64)
  task = Counting("one")
  with pytest.raises(ConfigError, match="one: too short"):
    evaluate("run", loaded, ["nope"], [16, 1], [task], data, out)
  with pytest.raises(ConfigError, match="method 'rope' is impossible"):
    evaluate("run", loaded, ["nope", "rope"], [16], [task], data, out)
  assert not task.measured and not out.exists()


def test_tasks_by_name():
  data = EvalData(tokenizer=TOKENIZER, longest=64, num_samples=3)
  tasks = make_tasks(["niah", "vt", "niah_single_1", "probes"], data)
  names = [task.name for task in tasks]
  assert len(names) == len(set(names)) == 12 and names[-1] == "copy" and "vt" in names
  with pytest.raises(ConfigError, match=r"task is 'needle'; allowed: perplexity, needles"):
    make_tasks(["needle"], data)
  assert {"ruler", "probes", *names} <= set(NAMES)
