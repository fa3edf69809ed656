"""FLOPs by hand, and the sinks of metric records."""

import json
import sys
import types

import jax
import pytest
from etils import epath
from support.full_disk import files_of_at_most
from support.tiny_run import tiny_model

from drope_jax import files, metrics
from drope_jax.errors import ConfigError, FileError


def test_flops_of_a_token_by_hand():
  model = tiny_model()
  q_o, k_v, mlp, unembedding = 2 * 16 * 4 * 4, 2 * 16 * 2 * 4, 3 * 16 * 24, 264 * 16
  expected = 6 * (2 * (q_o + k_v + mlp) + unembedding) + 12 * 2 * 4 * 4 * 100
  assert metrics.flops_per_token(model, context=100) == expected


def test_the_unembedding_counts_once_and_the_lookup_never():
  tied, untied = (metrics.flops_per_token(tiny_model(tie_embeddings=tied), 10) for tied in (True, False))
  assert tied == untied


def test_causal_convention_halves_attention_alone():
  palm, causal = (metrics.flops_per_token(tiny_model(), 100, convention) for convention in ("palm", "causal"))
  assert palm - causal == 6 * 2 * 4 * 4 * 100
  with pytest.raises(ValueError, match="convention is 'mine'; allowed: palm, causal"):
    metrics.flops_per_token(tiny_model(), 100, "mine")


def test_mfu_is_of_all_devices_and_none_where_the_peak_is_not_known(monkeypatch):
  monkeypatch.setattr(metrics, "PEAK_FLOPS", {})
  assert metrics.mfu(1e3, 1e6) is None
  monkeypatch.setattr(metrics, "PEAK_FLOPS", {jax.devices()[0].device_kind: 1e10})
  assert metrics.mfu(1e3, 1e6) == pytest.approx(0.1 / jax.device_count())


def test_records_after_the_step_of_a_resumed_run_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 5, 6, 10)) + '{"step": 11, "lo')
  sink = metrics.JsonLines(path, step=6)
  sink.write({"step": 7})
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 5, 6, 7]  # before it is closed
  sink.close()


def test_a_crash_while_the_records_are_replaced_leaves_the_old_ones(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 2000)))
  before = path.read_bytes()

  def killed(*_):
    raise InterruptedError("kill -9")

  monkeypatch.setattr(files.Path, "replace", killed)
  with pytest.raises(FileError):
    metrics.JsonLines(path, step=1000)
  assert path.read_bytes() == before


def test_a_full_disk_is_named_by_its_file(tmp_path):
  sink = metrics.JsonLines(tmp_path / "metrics.jsonl", 0)
  with (
    files_of_at_most(100),
    pytest.raises(FileError, match=r"metrics.jsonl: cannot be written \(File too large\)"),
  ):
    sink.write({"step": 1, "what": "x" * 200})


def test_in_a_bucket_where_nothing_can_be_appended_the_file_is_written_anew(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "is_local", lambda path: False)
  path_type = type(epath.Path(tmp_path))
  open_path = path_type.open

  def no_appending(self, mode="r", *arguments, **settings):
    assert "a" not in mode
    return open_path(self, mode, *arguments, **settings)

  monkeypatch.setattr(path_type, "open", no_appending)
  path = tmp_path / "metrics.jsonl"
  for step, expected in ((0, [1, 2, 3]), (2, [1, 2, 3])):
    sink = metrics.JsonLines(path, step)
    for number in range(step + 1, 4):
      sink.write({"step": number})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == expected  # before it is closed
    sink.close()


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
  (only,) = metrics.open_trackers(("tensorboard",), tmp_path, {}, 0)  # left out without a word: it is a default
  assert isinstance(only, metrics.JsonLines)
  metrics.check_trackers(("tensorboard",))
  with pytest.raises(ConfigError, match="'wandb', which is not installed"):
    metrics.check_trackers(("tensorboard", "wandb"))


@pytest.fixture
def stub(monkeypatch):
  """Puts a module in the place of one that need not be installed; returns the calls of its function."""

  def put(module, function):
    calls = []

    class Sink:
      def log(self, record, step):
        calls.append((record, step))

      def add_scalar(self, name, value, step):
        calls.append((name, value, step))

      def finish(self):
        calls.append("finished")

      close = finish

    def begin(*arguments, **settings):
      calls.append((*arguments, settings))
      return Sink()

    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: begin}))
    return calls

  return put


def test_wandb_goes_on_in_the_run_that_it_began(tmp_path, stub):
  calls = stub("wandb", "init")
  for step in (0, 5):
    *_, tracker = metrics.open_trackers(("wandb",), epath.Path(tmp_path), {"seed": 3}, step)
    tracker.write({"step": step + 1, "loss": 2.0, "mfu": None})
    tracker.close()
  (first,), *written, (second,) = calls[0], *calls[1:3], calls[3]
  assert written == [({"step": 1, "loss": 2.0}, 1), "finished"]
  assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text().strip() != ""
  assert first["resume"] == "allow" and first["config"] == {"seed": 3} and first["name"] == tmp_path.name


def test_tensorboard_forgets_the_steps_after_that_of_a_resumed_run(tmp_path, stub, monkeypatch):
  monkeypatch.setattr(metrics, "_can_write_events", lambda workdir: True)
  calls = stub("tensorboardX", "SummaryWriter")
  for step in (0, 5):
    *_, tracker = metrics.open_trackers(("tensorboard",), tmp_path, {}, step)
    tracker.write({"step": step + 1, "loss": 2.0, "mfu": None})
  directory = str(tmp_path / "tensorboard")
  assert calls == [
    (directory, {"purge_step": 0}),
    ("loss", 2.0, 1),
    (directory, {"purge_step": 6}),
    ("loss", 2.0, 6),
  ]


def test_tensorboard_gets_every_number(tmp_path):
  pytest.importorskip("tensorboardX")
  trackers = metrics.open_trackers(("tensorboard",), tmp_path, {}, 0)
  for tracker in trackers:
    tracker.write({"step": 3, "loss": 2.0, "mfu": None})
    tracker.close()
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert b"loss" in events.read_bytes() and b"mfu" not in events.read_bytes()


def test_progress_line():
  record = {"step": 40, "loss": 3.2141, "grad_norm": 0.91, "learning_rate": 1e-3}
  record |= {"tokens_per_second": 12345.0, "mfu": 0.4}
  line = metrics.progress_line(record, 800, 62.3)
  assert line == "step 40/800  loss 3.214  grad 0.91  lr 1.0e-03  12.3k tok/s  MFU 40.0% (PaLM)  ETA 0:01:02"
  first = metrics.progress_line({**record, "tokens_per_second": None, "mfu": None}, 800, None)
  assert first == "step 40/800  loss 3.214  grad 0.91  lr 1.0e-03"


def test_before_the_first_checkpoint_no_record_counts(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 0, "kind": "eval", "loss": 5.0}\n{"step": 1, "loss": 4.9}\n')
  metrics.JsonLines(path, 0).close()
  assert path.read_text() == ""


def test_numbers_that_json_lacks_are_null(tmp_path):
  written = metrics.JsonLines(tmp_path / "metrics.jsonl", 0)
  written.write({"step": 1, "loss": float("nan"), "loss_by_group": [float("inf"), 3.0], "kind": "eval"})
  written.close()

  def refuse(constant):
    raise AssertionError(constant)

  record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
  assert record == {"step": 1, "loss": None, "loss_by_group": [None, 3.0], "kind": "eval"}
