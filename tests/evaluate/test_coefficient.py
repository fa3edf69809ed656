"""The fit of the temperature's coefficient: recorded as it goes on, and found again."""

import json

import numpy as np
import pytest
from support.counting_task import TOKENIZER, Counting, dropped_checkpoint

from drope_jax.drope import least_squares_coefficient
from drope_jax.errors import ConfigError
from drope_jax.evaluate import coefficient, measure, results
from drope_jax.evaluate.coefficient import BETAS, coefficient_interval
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.measure import evaluate
from drope_jax.evaluate.position_losses import position_losses
from drope_jax.evaluate.progress import Progress


@pytest.fixture
def loaded():
  return dropped_checkpoint()


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

  monkeypatch.setattr(coefficient, "position_losses", counting)
  arguments = ("run", loaded, ["nope", "drope"], [16, 24, 32], [Counting("one")], fit_data, out)
  with pytest.raises(KeyboardInterrupt):
    evaluate(*arguments)
  assert len(results.read(out)) == 12
  evaluate(*arguments)
  assert len(calls) == 2 * len(BETAS) + 1 and calls[12] == calls[13]
  evaluate(*arguments)
  assert len(calls) == 2 * len(BETAS) + 1
  fitted = [r for r in results.read(out) if r.task == "temperature"]
  assert len({(r.context, r.metric, r.at) for r in fitted}) == len(fitted) == 2 * len(BETAS) + 2 + 1
  losses = [r for r in fitted if (r.metric, r.by) == ("loss", "beta")]
  assert all(r.low <= r.value <= r.high and r.n == 3 * r.context and len(r.values) == 3 for r in losses)
  (c,) = [r for r in fitted if r.metric == "c"]
  assert c.low <= c.value <= c.high
  best = {}
  for context in (24, 32):
    row = {r.at: r.value for r in losses if r.context == context}
    (best[context],) = [r.value for r in fitted if (r.context, r.metric) == (context, "beta")]
    assert sorted(row) == list(BETAS) and abs(min(row, key=row.get) - best[context]) < 0.1
  assert c.value == pytest.approx(least_squares_coefficient(list(best.values()), [1.5, 2]))


def test_the_fit_of_another_version_is_replaced_and_its_losses_are_kept(tmp_path, loaded, fit_data, monkeypatch):
  out = tmp_path / "results.jsonl"
  arguments = ("run", loaded, ["drope"], [16, 32], [Counting("one")], fit_data, out)
  evaluate(*arguments)
  kept = results.read(out)
  records = [json.loads(line) for line in out.read_text().splitlines()]
  for record in records:
    record["value"] = {"c": 0.0, "beta": 1.0}.get(record["metric"], record["value"])
  out.write_text("".join(json.dumps(record) + "\n" for record in records))
  monkeypatch.setattr(coefficient, "position_losses", None)
  evaluate(*arguments)
  for metric in ("c", "beta"):
    (new,) = {r.value for r in kept if (r.task, r.metric) == ("temperature", metric)}
    assert [r.value for r in results.read(out) if (r.task, r.metric) == ("temperature", metric)][-1] == new


def test_the_interval_of_c_is_over_documents():
  """Of four documents, three are best at one β and one at another: how often it is drawn moves c."""
  betas, s = np.array(BETAS), 4.0

  def losses(bests):
    return [[[float((beta - best) ** 2) for best in bests] for beta in betas]]

  def c_of(beta):
    return (beta - 1) / np.log(s)

  assert coefficient_interval(losses([1.4] * 4), [s]) == pytest.approx((c_of(1.4), c_of(1.4)))
  low, high = coefficient_interval(losses([1.0, 1.0, 1.0, 2.0]), [s])
  assert low == pytest.approx(c_of(1.0)) and c_of(1.3) < high <= c_of(2.0)
  between = coefficient_interval(losses([1.45] * 4), [s])
  assert between == pytest.approx((c_of(1.45), c_of(1.45)))
  assert coefficient_interval(losses([1.4]), [s]) == (None, None)
  without = losses([1.4] * 4)
  without[0][3] = None
  assert coefficient_interval(without, [s]) == (None, None)


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
  betas = len(BETAS)
  assert plans[0] == [32 * betas, *[16] * 3, *[32] * 3]
  assert plans[1] == [16, 32, 32, 32]  # within the context the three are one
  shares = [share for _, share in said]
  assert shares == sorted(shares)
  fit = [share for label, share in said if "temperature at 32" in label]
  assert len(fit) > betas and fit == sorted(fit) and shares[-1] == 1.0


def test_an_optimum_on_the_edge_of_the_grid_is_said(tmp_path, loaded, fit_data, monkeypatch, caplog):
  def losses(params, how, documents, *, length, **inputs):
    return np.full((len(documents), length), how.logit_scale, np.float32)

  monkeypatch.setattr(coefficient, "position_losses", losses)
  with caplog.at_level("WARNING"):
    evaluate("run", loaded, ["drope"], [32], [Counting("one")], fit_data, tmp_path / "results.jsonl")
  assert "at 2 times the training context the best beta, 0.8, ends the grid" in caplog.text


def test_without_a_split_to_fit_on_the_ways_out_are_named(tmp_path, loaded):
  for name in ("train", "held"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text(f"{name}: The tides turn at noon and at dusk, or so. " * 3)
  data = EvalData(tokenizer=TOKENIZER, longest=32, dataset=f"{tmp_path}/train,heldout={tmp_path}/held")
  arguments = "run", loaded, ["nope", "drope"], [16, 32], [Counting("one")], data, tmp_path / "results.jsonl"
  with pytest.raises(ConfigError, match=r"no split 'fit'.*--c=0.1.*--methods=nope.*heldout=OTHER,fit=") as error:
    evaluate(*arguments)
  assert str(error.value).startswith(data.dataset) and not (tmp_path / "results.jsonl").exists()
  evaluate(*arguments, 0.1)
