"""One run: what a step computes, where the weights come from, and that stopping at any moment changes nothing."""

import contextlib
import dataclasses
import json
import multiprocessing
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.checkpoints import edit_meta
from support.interrupting import crash, terminate, when_step_is_logged
from support.tiny_run import contents, losses, records, tiny_model, tiny_run

from drope_jax import checkpoint, metrics
from drope_jax import train as train_module
from drope_jax.config import ComputeConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.positions import ALiBi, Layer, LayerPattern
from drope_jax.train import train
from drope_jax.training import preflight


@pytest.fixture(scope="module")
def config(corpus):
  return tiny_run(corpus)


def equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
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
    return lambda state, *others: given.append(state) or step(state, *others)

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
  keys = ["step", "tokens", "loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "seconds", "data_seconds"]
  assert all(list(record) == keys for record in found)
  assert found[0]["tokens_per_second"] is None  # it would measure the compiler
  assert all(record["tokens_per_second"] > 0 for record in found[1:])
  assert found[0]["learning_rate"] == pytest.approx(1e-2 / 3)
  assert [record["seconds"] for record in found] == sorted(record["seconds"] for record in found)
  assert all(0 < record["data_seconds"] < found[-1]["seconds"] for record in found)


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
  monkeypatch.setattr(train_module, "jit_train_step", lambda *_: pytest.fail("it trains"))
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
  original = train_module.jit_train_step

  def jit_train_step(*args):
    compiled = original(*args)

    def step(state, batch, number, frozen):
      state, report = compiled(state, batch, number, frozen)
      return state, {**report, "grad_norm": np.inf if number == 9 else report["grad_norm"]}

    return step

  monkeypatch.setattr(train_module, "jit_train_step", jit_train_step)
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


@pytest.mark.slow
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
  edit_meta(workdir, 10, lambda meta: meta["config"]["optim"]["optimizer"].update(beta2=0.5))
  with pytest.raises(
    CheckpointError, match=r"checkpoints/10 belongs to another run: optim.optimizer.beta2: 0.5 there, 0.95 here"
  ):
    train(config, workdir)


def test_other_library_versions_are_told(config, finished, tmp_path, caplog):
  workdir = shutil.copytree(finished, tmp_path / "run")
  edit_meta(workdir, 10, lambda meta: meta["versions"].update(optax="0.0.1"))
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
  monkeypatch.setattr(preflight, "target_platform", lambda: "gpu")
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
