"""What a record says of the steps since the last one."""

import contextlib
import math
import time

import numpy as np
import pytest
from support.tiny_run import records, tiny_run

from drope_jax.training.health import Ruined
from drope_jax.training.log import TrainLog
from drope_jax.training.run import resolve

LR = 1e-2


def report(loss=3.0, tokens=128, skipped=None, grad_norm=1.0, **metrics):
  given = {} if skipped is None else {"skipped": np.bool_(skipped)}
  numbers = {"loss": np.float32(loss), "grad_norm": np.float32(grad_norm), "tokens": np.float32(tokens)}
  return {**numbers, "metrics": {name: np.float32(value) for name, value in metrics.items()}, "norms": {}, **given}


@contextlib.contextmanager
def logging(workdir, **settings):
  log = TrainLog(resolve(tiny_run("corpus", optim={"warmup_steps": 5}, **settings)), workdir, 0, 0, 0.0)
  with contextlib.closing(log):
    yield log


def test_a_metric_is_averaged_over_the_steps_that_computed_it(tmp_path):
  """As where the weight of a distillation falls to zero within a window."""
  with logging(tmp_path) as log:
    for one in (report(kl=1.0, tokens=100), report(kl=4.0, tokens=50), report(kl=math.nan, tokens=100)):
      log.add(one)
    log.write(3)
    log.add(report(kl=math.nan))
    log.write(4)
  assert [record["kl"] for record in records(tmp_path)] == [pytest.approx(2.0), None]


def test_skipped_steps_count_as_read_and_for_nothing_else(tmp_path):
  with logging(tmp_path, skip_updates=3) as log:
    for one in (report(2.0, skipped=False), report(math.nan, skipped=True), report(4.0, skipped=False)):
      log.add(one)
    log.write(3)
    log.add(report(grad_norm=math.inf, skipped=True))
    log.write(4)  # nothing to record
    log.add(report(5.0, skipped=False))
    log.write(5)
  first, second = records(tmp_path)
  assert (first["loss"], first["tokens"], first["skipped_updates"]) == (3.0, 3 * 128, 1)
  assert (second["loss"], second["tokens"], second["skipped_updates"]) == (5.0, 5 * 128, 2)
  assert first["learning_rate"] == pytest.approx(LR * 2 / 6)  # of the second update
  assert second["learning_rate"] == pytest.approx(LR * 3 / 6)


@pytest.mark.parametrize("without_record", [{"loss": math.nan, "skipped": True}, {"tokens": 0, "skipped": False}])
def test_a_record_has_the_speed_of_its_own_steps(tmp_path, without_record):
  with logging(tmp_path, skip_updates=3) as log:
    log.add(report(skipped=False))
    log.write(1)
    log.add(report(**without_record))
    time.sleep(0.3)
    log.write(2)
    log.add(report(skipped=False))
    log.write(3)
  assert [record["step"] for record in records(tmp_path)] == [1, 3]
  assert records(tmp_path)[-1]["tokens_per_second"] > 128 / 0.3


def test_the_first_bad_step_of_a_window_is_named(tmp_path):
  with logging(tmp_path) as log:
    for loss in (3.0, 3.0, math.nan, math.nan):
      log.add(report(loss))
    with pytest.raises(Ruined, match="loss at step 3 is nan") as error:
      log.write(4)
  assert error.value.step == 3 and len(log.reports) == 4


def test_a_record_says_how_long_its_own_steps_waited_for_data(tmp_path):
  def data():
    for wait in (0.0, 0.2, 0.3, 0.0):
      time.sleep(wait)
      yield {}

  batches = data()
  with logging(tmp_path) as log:
    for step in range(4):
      log.wait_for(batches)  # as the loop does, before the record of the steps before
      if step in (1, 3):
        log.write(step)
      log.add(report())
    log.write(4)
  waits = [record["data_seconds"] for record in records(tmp_path)]
  assert waits[1] >= 0.25 > max(waits[0], waits[2])
