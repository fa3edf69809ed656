"""Log-likelihood of continuations, and the probes that rest on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.stub_model import LIKELIHOOD, guessing, put, saying, scorer

from drope_jax.config import ModelConfig
from drope_jax.data.recall import Lines
from drope_jax.data.tokenizers import ByteTokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.likelihood import Scored, score_continuations
from drope_jax.evaluate.methods import Inference
from drope_jax.evaluate.subject import Subject
from drope_jax.evaluate.tasks.copying import SIZES, Copy
from drope_jax.evaluate.tasks.order import Order
from drope_jax.model import hidden_states, unembed
from drope_jax.parameters import map_specs
from drope_jax.positions import RoPE
from drope_jax.scalings import DynamicYaRN

TOKENIZER = ByteTokenizer()
LINES = Lines(TOKENIZER, ["The weather was fine that day.", "Nobody had seen the ship leave."])
CONFIG = ModelConfig(
  vocab_size=31,
  d_model=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=2,
  head_dim=8,
  d_ff=24,
  positions=RoPE(scaling=DynamicYaRN(5)),
)
RNG = np.random.default_rng(0)
PARAMS = map_specs(lambda spec: jnp.asarray(RNG.normal(not spec.decay, 0.5, spec.shape), jnp.float32), CONFIG)
SUBJECT = Subject(params=PARAMS, how=Inference(CONFIG, logit_scale=1.3), tokenizer=TOKENIZER, train_context=5)
PAIRS = [(RNG.integers(0, 31, size), RNG.integers(0, 31, more)) for size, more in ((3, 1), (9, 4), (8, 4), (1, 4))]


@jax.jit
def log_probs(tokens_T):
  x_BTD, *_ = hidden_states(PARAMS, CONFIG, tokens_T[None], logit_scale=1.3)
  return jax.nn.log_softmax(unembed(PARAMS, x_BTD)[0])


def expected(context, continuation, crop=None) -> Scored:
  tokens = np.concatenate([context, continuation])
  tokens = tokens if crop is None else tokens[-(crop + 1) :]
  rows = np.asarray(log_probs(tokens[:-1]))[-len(continuation) :]
  return Scored(rows[np.arange(len(rows)), continuation].sum(), bool((rows.argmax(-1) == continuation).all()))


@pytest.mark.parametrize("batch_tokens", [1, 24, 1000])
def test_scores_are_the_models_whatever_the_batch_and_its_padding(batch_tokens):
  subject = dataclasses.replace(SUBJECT, batch_tokens=batch_tokens)
  scored = score_continuations(subject, PAIRS)
  for one, pair in zip(scored, PAIRS, strict=True):
    want = expected(*pair)
    assert one.log_prob == pytest.approx(want.log_prob, rel=1e-4) and one.greedy == want.greedy


def test_what_is_greedy_is_said_to_be():
  context = PAIRS[1][0]
  likeliest = int(np.asarray(log_probs(context))[-1].argmax())
  first, second = score_continuations(SUBJECT, [(context, np.array([likeliest])), (context, np.array([5]))])
  assert first.greedy and not second.greedy and first.log_prob > second.log_prob


def test_a_crop_hides_what_lies_before_it():
  subject = dataclasses.replace(SUBJECT, how=Inference(CONFIG, logit_scale=1.3, crop=6))
  scored = score_continuations(subject, PAIRS[:3])
  for one, pair in zip(scored, PAIRS[:3], strict=True):
    assert one.log_prob == pytest.approx(expected(*pair, crop=6).log_prob, rel=1e-4)
  with pytest.raises(ValueError, match=r"pairs\[0\] has a continuation of 7 tokens; a crop of 6"):
    score_continuations(subject, [(PAIRS[0][0], np.arange(7))])


def test_empty_pairs_are_named():
  with pytest.raises(ValueError, match=r"pairs\[1\] has an empty prompt"):
    score_continuations(SUBJECT, [PAIRS[0], (np.array([], int), np.array([1]))])


# --- the probes, with models whose answers are known -----------------------------------------------


def values_of(task, subject, length):
  return {figure.metric: figure.value for figure in task.measure(subject, length) if figure.by is None}


@pytest.mark.parametrize(("place", "latest"), [(-1, 1.0), (0, 0.0)])
def test_order_tells_recency_from_primacy(monkeypatch, place, latest):
  def assigned(text):
    *lines, asked = text.split("\n")
    name, _, said = asked.partition(" =")
    wanted = [line.removeprefix(f"{name} =") for line in lines if line.startswith(f"{name} =")]
    return wanted[place][len(said) :] if wanted and wanted[place].startswith(said) else ""

  subject = put(monkeypatch, saying(assigned, TOKENIZER), TOKENIZER, module=LIKELIHOOD)
  figures = values_of(Order(lines=LINES, num_samples=20), subject, 400)
  assert figures["latest"] == latest and figures["p_latest"] == pytest.approx(latest)
  assert figures["first"] == 1 - latest and figures["p_first"] == pytest.approx(1 - latest)


def test_order_gives_a_guess_a_quarter(monkeypatch):
  subject = put(monkeypatch, guessing(TOKENIZER), TOKENIZER, module=LIKELIHOOD)
  figures = values_of(Order(lines=LINES, num_samples=200), subject, 200)
  assert abs(figures["latest"] - 0.25) < 0.1 and abs(figures["first"] - 0.25) < 0.1  # 3.3 standard errors


def test_an_order_sample_assigns_one_variable_and_asks_for_it():
  task = Order(lines=LINES)
  depths = []
  for index in range(30):
    sample = task.sample(500, index)
    lines = TOKENIZER.decode(sample.tokens).split("\n")
    values = [TOKENIZER.decode(value) for value in sample.values]
    name = lines[-1].removesuffix(" =")
    assigned = [line for line in lines[:-1] if " = " in line]
    assert assigned == [f"{name} ={value}" for value in values] and len(set(values)) == 4
    assert 500 - 40 < len(sample.tokens) + max(map(len, sample.values)) <= 500
    assert TOKENIZER.decode(task.sample(500, index).tokens) == "\n".join(lines)
    depths.append(sample.depth)
  assert min(depths) < 0.6 and max(depths) > 0.9
  with pytest.raises(ConfigError, match="do not fit into 40 tokens"):
    task.check(40, None)


@pytest.fixture
def copies():
  return {
    name: Copy(name=name, cue=cue, predicted=predicted, alphabet=tuple(range(1, 200)), num_samples=60)
    for name, (cue, predicted) in SIZES.items()
  }


@pytest.mark.parametrize("name", ["induction", "copy"])
def test_a_piece_stands_once_at_its_distance(copies, name):
  task = copies[name]
  assert task.distances(300) == [16, 32, 64, 128, 256]
  for distance in task.distances(300):
    context, copied, fresh = task.sample(300, distance, 3)
    assert len(context) == 300 - task.predicted and len(copied) == len(fresh) == task.predicted
    begin = len(context) - task.cue
    assert (np.flatnonzero(context == context[begin]) == [begin - distance, begin]).all()
    source = context[begin - distance : begin - distance + task.cue + task.predicted]
    assert (source == [*context[begin:], *copied]).all()
    assert not (fresh == copied).all()


@pytest.mark.parametrize("name", ["induction", "copy"])
def test_one_that_copies_from_the_last_64_tokens_gains_there_alone(monkeypatch, copies, name):
  cue = copies[name].cue

  def logits(tokens):
    """After what follows its last `cue` tokens among the 64 last ones; where they do not recur, of no preference."""
    seen, last = tokens[-64:], tokens[-cue:]
    follow = [seen[i + cue] for i in range(len(seen) - cue) if seen[i : i + cue] == last]
    return 9.0 * (np.arange(257) == (follow[-1] if follow else -1))

  subject = put(monkeypatch, scorer(logits), TOKENIZER, module=LIKELIHOOD)
  figures = {(one.metric, one.at): one.value for one in copies[name].measure(subject, 300) if one.by == "distance"}
  for distance in (16, 32, 64, 128, 256):
    near, predicted = distance < 64, copies[name].predicted
    loss = np.log(1 + 256 * np.exp(-9.0)) if near else np.log(257)
    # Its first token but one is as unlikely as the copied one is likely; those after it have no cue.
    fresh = (loss + 9.0 + (predicted - 1) * np.log(257)) / predicted if near else np.log(257)
    assert figures["loss", distance] == pytest.approx(loss, abs=1e-4)
    assert figures["gain", distance] == pytest.approx(fresh - loss, rel=0.02, abs=1e-4)
    if near:
      assert figures["accuracy", distance] == 1.0
    else:
      assert figures["accuracy", distance] < 0.1


def test_a_real_model_runs_the_whole_path(copies):
  config = dataclasses.replace(CONFIG, vocab_size=257, positions=None)
  params = map_specs(lambda spec: jnp.asarray(RNG.normal(not spec.decay, 0.1, spec.shape), jnp.float32), config)
  subject = dataclasses.replace(SUBJECT, params=params, how=Inference(config))
  figures = dataclasses.replace(copies["induction"], num_samples=12).measure(subject, 64)
  assert [figure.metric for figure in figures[:3]] == ["accuracy", "loss", "gain"]
  assert figures[1].value == pytest.approx(np.log(257), abs=1.5) and abs(figures[2].value) < 1.0
