"""The records of a run: how long its steps waited for data."""

import time

import numpy as np
from support.tiny_run import records, tiny_corpus, tiny_run

from drope_jax.training.log import TrainLog
from drope_jax.training.run import resolve

REPORT = {"loss": np.float32(1), "grad_norm": np.float32(1), "tokens": np.float32(9), "metrics": {}, "norms": {}}


def test_a_record_says_how_long_its_own_steps_waited_for_data(tmp_path):
  def data():
    for wait in (0.0, 0.2, 0.3, 0.0):
      time.sleep(wait)
      yield {}

  config = tiny_run(tiny_corpus(tmp_path / "corpus"), steps=4)
  log, batches = TrainLog(resolve(config), tmp_path, 0, 0, 0.0), data()
  for step in range(4):
    log.wait_for(batches)  # as the loop does, before the record of the steps before
    if step in (1, 3):
      log.write(step)
    log.add(REPORT)
  log.write(4)
  log.close()
  waits = [record["data_seconds"] for record in records(tmp_path)]
  assert waits[1] >= 0.25 > max(waits[0], waits[2])
