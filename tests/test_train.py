"""One run: what a step computes, where the weights come from, and that stopping at any moment changes nothing."""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from support.tiny_run import contents, losses, records, tiny_corpus, tiny_model, tiny_run

from drope_jax import checkpoint, metrics
from drope_jax import train as train_module
from drope_jax.checkpoint import TrainState
from drope_jax.config import ComputeConfig, InitConfig, QKNorm
from drope_jax.data.corpus import build_corpus
from drope_jax.data.pipeline import train_batches
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.model import init_params
from drope_jax.positions import ALiBi, Layer, LayerPattern, RoPE
from drope_jax.train import make_train_step, train
from drope_jax.transitions import Keep

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def config(corpus):
  return tiny_run(corpus)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
  """The workdir of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("runs") / "finished"
  outcome = train(config, workdir)
  assert outcome == (10, True)
  return workdir


def when_step_is_logged(monkeypatch, step, action):
  """Does `action` once, when the record of `step` is written."""
  write = metrics.JsonLines.write

  def watched(self, record):
    write(self, record)
    if record["step"] == step:
      monkeypatch.setattr(metrics.JsonLines, "write", write)
      action()

  monkeypatch.setattr(metrics.JsonLines, "write", watched)


def terminate():
  assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "nobody listens: this would end the tests"
  os.kill(os.getpid(), signal.SIGTERM)


def crash():
  raise InterruptedError("the machine is gone")


def equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_step_is_compiled_once(config, tmp_path, monkeypatch):
  steps = []
  original = train_module.jit_train_step
  monkeypatch.setattr(train_module, "jit_train_step", lambda *args: steps.append(original(*args)) or steps[-1])
  train(config, tmp_path / "run")
  assert [step._cache_size() for step in steps] == [1]


def test_the_state_is_reused_by_the_step(config, tmp_path, monkeypatch):
  """Donated: the arrays that went in are gone, so that weights and moments lie in memory once.

  (After a checkpoint twice for a step: it is written from them in the background.)
  """
  config = dataclasses.replace(config, checkpoint_every=config.steps)
  given, original = [], train_module.jit_train_step

  def watched(*args):
    step = original(*args)
    return lambda state, batch: given.append(state) or step(state, batch)

  monkeypatch.setattr(train_module, "jit_train_step", watched)
  train(config, tmp_path / "run")
  assert len(given) == config.steps
  matrices = [leaf for state in given for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
  assert matrices and all(leaf.is_deleted() for leaf in matrices)


# --- the records ------------------------------------------------------------------------------------------------------


def test_the_loss_falls(finished):
  values = [loss for _, loss in losses(finished)]
  assert abs(values[0] - np.log(264)) < 0.2
  assert values[-1] < values[0] - 1


def test_a_record_has_the_keys_of_the_contract(finished):
  found = records(finished)
  assert [record["step"] for record in found] == list(range(1, 11))
  assert [record["tokens"] for record in found] == [step * 8 * 16 for step in range(1, 11)]
  keys = ["step", "tokens", "loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "seconds"]
  assert all(list(record) == keys for record in found)
  assert found[0]["tokens_per_second"] is None  # it would measure the compiler
  assert all(record["tokens_per_second"] > 0 for record in found[1:])
  assert found[0]["learning_rate"] == pytest.approx(1e-2 / 3)
  assert [record["seconds"] for record in found] == sorted(record["seconds"] for record in found)


def test_records_between_are_averaged(config, finished, tmp_path):
  every = [loss for _, loss in losses(finished)]
  train(dataclasses.replace(config, log_every=4), tmp_path)
  means = {1: every[0], 4: np.mean(every[1:4]), 5: every[4], 8: np.mean(every[5:8]), 10: np.mean(every[8:])}
  assert dict(losses(tmp_path)) == pytest.approx(means, rel=1e-6)  # a record at every checkpoint, too


def test_a_workdir_has_what_the_contract_names(finished):
  files = {path.name for path in finished.iterdir()}
  assert files == {"config.json", "metrics.jsonl", "checkpoints", "tokenizer_config.json"}


# --- stopping and going on --------------------------------------------------------------------------------------------


def test_a_finished_run_returns_at_once_and_changes_no_file(config, finished, monkeypatch):
  before = contents(finished)
  monkeypatch.setattr(train_module, "make_train_step", lambda *_: pytest.fail("it trains"))
  assert train(config, finished) == (10, True)
  assert contents(finished) == before


def test_sigterm_saves_and_the_same_call_goes_on_exactly(config, finished, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 3, terminate)
  before = signal.getsignal(signal.SIGTERM)
  stopped = train(config, tmp_path)
  assert stopped.finished is False and stopped.step == 4  # step 4 was on its way when step 3 was logged
  assert checkpoint.load(tmp_path).step == 4
  assert signal.getsignal(signal.SIGTERM) is before
  assert train(config, tmp_path) == (10, True)
  assert losses(tmp_path) == losses(finished)
  equal(checkpoint.load(tmp_path).params, checkpoint.load(finished).params)


@contextlib.contextmanager
def already_asked_to_stop():
  yield lambda step: True


def test_sigterm_before_the_first_step_of_a_start_changes_nothing(config, finished, tmp_path, monkeypatch):
  monkeypatch.setattr(train_module.distributed, "sigterm", already_asked_to_stop)
  assert train(config, tmp_path) == (0, False)
  monkeypatch.undo()
  when_step_is_logged(monkeypatch, 3, terminate)
  assert train(config, tmp_path) == (4, False)
  before = contents(tmp_path)
  monkeypatch.setattr(train_module.distributed, "sigterm", already_asked_to_stop)
  assert train(config, tmp_path) == (4, False)
  assert contents(tmp_path) == before
  monkeypatch.undo()
  assert train(config, tmp_path) == (10, True)
  assert losses(tmp_path) == losses(finished)


def test_steps_with_nothing_to_predict_leave_no_record(tmp_path):
  corpus = str(build_corpus(tmp_path / "corpus", {"train": [""] * 40}))  # with its EOS, each is a token by itself
  config = tiny_run(corpus, data={"document_mask": True, "context": 4}, steps=3)
  assert train(config, tmp_path / "run") == (3, True)
  assert records(tmp_path / "run") == []


def test_a_crash_costs_the_steps_since_the_checkpoint_and_nothing_else(config, finished, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 8, crash)
  with pytest.raises(InterruptedError):
    train(config, tmp_path)
  assert [step for step, _ in losses(tmp_path)] == list(range(1, 9))
  assert checkpoint.load(tmp_path).step == 5
  assert train(config, tmp_path) == (10, True)
  assert losses(tmp_path) == losses(finished)  # no step twice, and the same losses to the bit
  equal(checkpoint.load(tmp_path).params, checkpoint.load(finished).params)
  assert records(tmp_path)[-1]["tokens"] == records(finished)[-1]["tokens"]


def test_a_loss_that_is_not_finite_ends_the_run_and_earlier_checkpoints_stay(config, tmp_path, monkeypatch):
  original = train_module.make_optimizer
  poison = optax.scale_by_schedule(lambda count: jnp.where(count < 6, 1.0, jnp.nan))  # the update of step 7
  monkeypatch.setattr(train_module, "make_optimizer", lambda *args: optax.chain(original(*args), poison))
  with pytest.raises(FloatingPointError, match=f"step 8 is nan; {tmp_path} keeps its earlier checkpoints"):
    train(config, tmp_path)
  loaded = checkpoint.load(tmp_path)
  assert loaded.step == 5
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.params))


def test_a_gradient_that_is_not_finite_is_not_saved_with_a_fine_loss(config, tmp_path, monkeypatch):
  original = train_module.make_train_step

  def make_train_step(*args):
    def step(state, batch):
      state, report = original(*args)(state, batch)
      count = optax.tree_utils.tree_get(state.opt_state, "ScaleByAdamState").count
      return state, {**report, "grad_norm": jnp.where(count == 10, jnp.inf, report["grad_norm"])}

    return step

  monkeypatch.setattr(train_module, "make_train_step", make_train_step)
  with pytest.raises(FloatingPointError, match="the gradient norm at step 10 is inf"):
    train(config, tmp_path)
  assert checkpoint.load(tmp_path).step == 5


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"optim": {"peak_lr": 0.5}}, r"optim.peak_lr: 0.01 there, 0.5 here"),
    ({"model": tiny_model(num_layers=3)}, r"model.num_layers: 2 there, 3 here"),
    ({"data": {"batch_size": 4}}, r"data.batch_size: 8 there, 4 here"),
    ({"seed": 3}, r"seed: 0 there, 3 here"),
    ({"steps": 20}, r"steps: 10 there, 20 here"),
  ],
)
def test_a_workdir_of_another_run_is_refused_and_left_alone(corpus, finished, changed, message):
  before = contents(finished)
  with pytest.raises(CheckpointError, match=f"{finished} belongs to another run: {message}"):
    train(tiny_run(corpus, **changed), finished)
  assert contents(finished) == before


def test_how_it_is_computed_may_change_on_the_way(config, finished, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 3, terminate)
  train(config, tmp_path)
  other = dataclasses.replace(config, compute=ComputeConfig(scan_layers=False, loss_chunk=5), checkpoint_every=3)
  assert train(other, tmp_path) == (10, True)
  np.testing.assert_allclose(losses(tmp_path), losses(finished), rtol=1e-5)


def test_what_changes_speed_and_memory_alone_may_change_on_the_way(corpus, finished, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 3, terminate)
  train(tiny_run(corpus), tmp_path)
  other = tiny_run(corpus, data={"num_workers": 1}, optim={"accumulation": 2})
  assert train(other, tmp_path) == (10, True)
  np.testing.assert_allclose(losses(tmp_path), losses(finished), rtol=1e-5)


def test_a_run_that_fails_leaves_no_reading_process_behind(corpus, tmp_path, monkeypatch):
  when_step_is_logged(monkeypatch, 3, crash)
  with pytest.raises(InterruptedError) as failed:  # whose traceback would keep the iterator alive
    train(tiny_run(corpus, data={"num_workers": 1}), tmp_path)
  assert not multiprocessing.active_children(), failed


def test_a_checkpoint_of_another_run_is_refused_by_its_meta(config, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  path = workdir / "checkpoints" / "10" / "meta" / "metadata"
  meta = json.loads(path.read_text())
  meta["config"]["optim"]["beta2"] = 0.5
  path.write_text(json.dumps(meta))
  with pytest.raises(
    CheckpointError, match=r"checkpoints/10 belongs to another run: optim.beta2: 0.5 there, 0.95 here"
  ):
    train(config, workdir)


def test_other_library_versions_are_told(config, finished, tmp_path, caplog):
  workdir = shutil.copytree(finished, tmp_path / "run")
  path = workdir / "checkpoints" / "10" / "meta" / "metadata"
  meta = json.loads(path.read_text())
  meta["versions"]["optax"] = "0.0.1"
  path.write_text(json.dumps(meta))
  with caplog.at_level("INFO", logger="drope_jax"):
    assert train(config, workdir) == (10, True)
  assert "was written with other versions: optax: '0.0.1' there" in caplog.text


def test_config_json_keeps_the_versions_that_the_run_began_with(config, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / "run")
  path = workdir / "config.json"
  path.write_text(path.read_text().replace(f'"jax": "{jax.__version__}"', '"jax": "0.0.1"'))
  before = contents(workdir)
  train(config, workdir)
  assert contents(workdir) == before
  train(dataclasses.replace(config, log_every=7), workdir)
  written = json.loads(path.read_text())
  assert (written["versions"]["jax"], written["log_every"]) == ("0.0.1", 7)


@pytest.mark.parametrize("length", [0, 7, 200])
def test_a_config_json_that_was_cut_off_is_written_anew(config, finished, tmp_path, length):
  workdir = shutil.copytree(finished, tmp_path / "run")
  path = workdir / "config.json"
  whole = path.read_text()
  path.write_text(whole[:length])
  assert train(config, workdir) == (10, True)
  assert path.read_text() == whole


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"trackers": ("wandb",)}, "TrainConfig.trackers has 'wandb', which is not installed"),
    ({"compute": ComputeConfig(attention="splash")}, "ComputeConfig.attention is 'splash', which runs on tpu; this is"),
    ({"compute": ComputeConfig(attention="cudnn")}, "ComputeConfig.attention is 'cudnn', which runs on gpu; this is"),
  ],
)
def test_what_this_machine_has_not_is_refused_before_anything_is_written(
  corpus, tmp_path, monkeypatch, changes, message
):
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=message):
    train(tiny_run(corpus, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data": {"document_mask": True}}, r"cannot take segments \(DataConfig.document_mask\)"),
    (
      {"model": tiny_model(head_dim=8, positions=LayerPattern((Layer(), Layer(ALiBi()))))},
      "cannot take a bias",
    ),
    ({"model": tiny_model(head_dim=4)}, "cannot take heads of 4"),
    ({"compute": {"dtype": "float32"}}, r"cannot take float32 \(only bfloat16 and float16\)"),
  ],
)
def test_what_a_kernel_cannot_take_is_refused_before_anything_is_written(
  corpus, tmp_path, monkeypatch, changes, message
):
  monkeypatch.setattr(train_module, "target_platform", lambda: "gpu")
  with pytest.raises(ConfigError, match=f"ComputeConfig.attention is 'cudnn', which {message}"):
    compute = {"attention": "cudnn", "dtype": "bfloat16", **changes.pop("compute", {})}
    run = tiny_run(corpus, **{"model": tiny_model(head_dim=8), "compute": ComputeConfig(**compute), **changes})
    train(run, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_directory_of_other_things_is_refused(config, tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(CheckpointError, match=f"{tmp_path} is not empty and holds no config.json"):
    train(config, tmp_path)
  assert contents(tmp_path) == {"thesis.tex": b"precious"}


def test_a_vocabulary_too_small_for_the_tokenizer(corpus, tmp_path):
  with pytest.raises(ConfigError, match=r"ModelConfig.vocab_size is 256; the tokenizer byte has 257"):
    train(tiny_run(corpus, model=tiny_model(vocab_size=256)), tmp_path / "run")
  assert not (tmp_path / "run").exists()


# --- weights of another run -------------------------------------------------------------------------------------------


def stands_still(corpus, init):
  """One step from `init` at a learning rate of zero: its checkpoint holds what the run began with."""
  return tiny_run(corpus, init=init, optim={"peak_lr": 0.0, "warmup_steps": 0}, steps=1)


def optimizer_state(workdir, step):
  with checkpoint.open_manager(workdir) as manager:
    args = ocp.args.Composite(opt_state=ocp.args.StandardRestore())
    flat = jax.tree.leaves_with_path(manager.restore(step, args=args)["opt_state"])
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


@pytest.mark.parametrize("qk_norm", [None, QKNorm(), QKNorm(scope="head", queries=False)])
def test_init_takes_the_weights_drops_the_positions_and_inserts_qk_norm(corpus, finished, tmp_path, qk_norm):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished), qk_norm=qk_norm)), tmp_path)
  source, found = checkpoint.load(finished), checkpoint.load(tmp_path)
  assert source.model.positions == RoPE()
  assert found.model == dataclasses.replace(source.model, positions=None, qk_norm=qk_norm)
  layers = dict(found.params["layers"])
  new = {name: layers.pop(name) for name in layers.keys() - source.params["layers"].keys()}
  assert len(new) == (0 if qk_norm is None else qk_norm.queries + qk_norm.keys)
  assert all((weight == 1).all() for weight in new.values())
  equal({**found.params, "layers": layers}, source.params)
  assert found.step == 1 and found.tokens == 8 * 16  # counted anew


def test_init_keeps_the_positions_when_asked_to(corpus, finished, tmp_path):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished), transition=Keep())), tmp_path)
  assert checkpoint.load(tmp_path).model == checkpoint.load(finished).model
  # The first batch of another order of the same corpus: the loss goes on where it was, not where it began.
  assert losses(tmp_path)[0][1] < losses(finished)[5][1]


def test_init_from_an_earlier_step(corpus, finished, tmp_path):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished), step=5)), tmp_path)
  equal(checkpoint.load(tmp_path).params, checkpoint.load(finished, 5).params)
  assert not np.array_equal(
    checkpoint.load(tmp_path).params["embedding"], checkpoint.load(finished, 10).params["embedding"]
  )


def test_the_optimizer_is_fresh_or_its_moments_are_carried_over(corpus, finished, tmp_path):
  init = InitConfig(checkpoint=str(finished), qk_norm=QKNorm())
  for name, keep in (("fresh", False), ("kept", True)):
    train(stands_still(corpus, dataclasses.replace(init, keep_optimizer=keep)), tmp_path / name)
  source = optimizer_state(finished, 10)
  fresh, kept = optimizer_state(tmp_path / "fresh", 1), optimizer_state(tmp_path / "kept", 1)
  assert fresh.keys() == kept.keys()
  mu = [name for name in source if "/mu/" in name]
  assert len(mu) == 11 and all(np.any(source[name]) for name in mu)
  for name in mu:  # one step on: mu = beta1 * mu + (1 - beta1) * gradient, with the same gradient in both
    np.testing.assert_allclose(kept[name] - fresh[name], 0.9 * source[name], atol=1e-6)
  inserted = [name for name in fresh if name.endswith(("mu/layers/q_norm", "mu/layers/k_norm"))]
  assert len(inserted) == 2
  for name in inserted:
    np.testing.assert_array_equal(kept[name], fresh[name])
  counts = sorted(int(kept[name]) for name in kept if name.endswith("count"))
  assert counts == [1, 11]  # of the schedule, which starts anew, and of Adam's bias correction
  assert {int(fresh[name]) for name in fresh if name.endswith("count")} == {1}


def test_its_own_checkpoint_wins_over_init(corpus, finished, tmp_path, monkeypatch):
  config = tiny_run(corpus, init=InitConfig(checkpoint=str(finished)))
  train(config, tmp_path / "straight")
  when_step_is_logged(monkeypatch, 3, terminate)
  assert train(config, tmp_path / "stopped") == (4, False)
  assert train(config, tmp_path / "stopped") == (10, True)
  assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
  equal(checkpoint.load(tmp_path / "stopped").params, checkpoint.load(tmp_path / "straight").params)


def test_a_model_that_is_not_that_of_init(corpus, finished, tmp_path):
  dropped = tiny_model(positions=None)
  config = tiny_run(corpus, init=InitConfig(checkpoint=str(finished)), model=dataclasses.replace(dropped, d_ff=32))
  with pytest.raises(ConfigError, match=r"TrainConfig.model is not that of .*: d_ff: 24 there, 32 here"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  assert train_module.resolve(dataclasses.replace(config, model=dropped)).model == dropped


def test_there_must_be_something_to_start_from(corpus, tmp_path):
  with pytest.raises(CheckpointError, match="/nowhere/at/all: not the workdir of a run"):
    train(tiny_run(corpus, init=InitConfig(checkpoint="/nowhere/at/all")), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_dropped_run_has_nothing_left_to_drop(corpus, finished, tmp_path):
  train(stands_still(corpus, InitConfig(checkpoint=str(finished))), tmp_path / "dropped")
  with pytest.raises(ConfigError, match="no positional embedding to drop"):
    train(stands_still(corpus, InitConfig(checkpoint=str(tmp_path / "dropped"))), tmp_path / "twice")


def test_the_source_is_not_touched(corpus, finished, tmp_path):
  source = shutil.copytree(finished, tmp_path / "source")
  before = contents(source)
  train(stands_still(corpus, InitConfig(checkpoint=str(source), keep_optimizer=True)), tmp_path / "run")
  assert contents(source) == before


# --- the step ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
  return jax.jit(functools.partial(init_params, tiny_model(init_std=0.2)))(jax.random.key(0))


def steps(config, optimizer, params, batches):
  """The state after a step on each of `batches`, and the reports."""
  step = jax.jit(make_train_step(config, optimizer))
  state, reports = TrainState(params, optimizer.init(params)), []
  for batch in batches:
    state, report = step(state, batch)
    reports.append(jax.device_get(report))
  return state, reports


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_changes_nothing(corpus, params, document_mask, accumulation):
  whole = tiny_run(corpus, data={"document_mask": document_mask})
  batch = next(train_batches(whole.data, seed=0))
  if document_mask:
    real = (batch["segments"][:, 1:] == batch["segments"][:, :-1]).sum(axis=1)
    assert len({int(real[part::accumulation].sum()) for part in range(accumulation)}) > 1  # they weigh differently
  # With plain descent at rate 1 the new weights show the gradient; Adam would hide its length.
  one, (report,) = steps(whole, optax.sgd(1.0), params, [batch])
  config = tiny_run(corpus, data={"document_mask": document_mask}, optim={"accumulation": accumulation})
  several, (accumulated,) = steps(config, optax.sgd(1.0), params, [batch])
  assert float(abs(one.params["embedding"] - params["embedding"]).max()) > 1e-2
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, several.params)
  assert accumulated["tokens"] == report["tokens"]
  assert accumulated["loss"] == pytest.approx(report["loss"], rel=1e-6)
  assert accumulated["grad_norm"] == pytest.approx(report["grad_norm"], rel=1e-5)


@pytest.fixture(scope="module")
def plain_losses(corpus, params):
  return three_losses(corpus, params)


def three_losses(corpus, params, **compute):
  config = tiny_run(corpus, compute=ComputeConfig(**{"dtype": "float32", **compute}))
  stream = train_batches(config.data, seed=0)
  state, reports = steps(config, optax.sgd(0.5), params, [next(stream) for _ in range(3)])
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
  return [float(report["loss"]) for report in reports]


@pytest.mark.parametrize(
  "compute", [{"remat": "full"}, {"remat": "dots", "scan_layers": False}, {"scan_layers": False}]
)
def test_how_layers_run_changes_no_loss(corpus, params, plain_losses, compute):
  assert three_losses(corpus, params, **compute) == pytest.approx(plain_losses, rel=1e-5)


def test_bfloat16_computes_on_float32_weights(corpus, params, plain_losses):
  found = three_losses(corpus, params, dtype="bfloat16")
  assert found != plain_losses
  assert found == pytest.approx(plain_losses, rel=1e-2)
