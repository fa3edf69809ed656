"""A run that is killed again and again: `python killed_training.py CORPUS DIR SEED KILLS`.

This process imports the library once and forks a process for each start, which saves the time of importing. Of every
four starts, three are killed on the way to their first step or shortly after; the fourth has made some steps, all of
which are saved. DIR/killed is then trained to its end, and DIR/undisturbed in one go. Prints one line of JSON: how
often a start was killed while writing a checkpoint, and the step that each kill found.
"""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import grain  # noqa: F401
import jax
import orbax.checkpoint  # noqa: F401
import tensorflow_datasets  # noqa: F401
from support.objectives import Pull
from support.tiny_run import records, tiny_model, tiny_run

from drope_jax import metrics
from drope_jax.config import TrainConfig
from drope_jax.train import train


class Start:
  """A process that trains, and sends a byte for each record that it writes."""

  def __init__(self, config: TrainConfig, workdir: Path):
    self._records, out = os.pipe()
    self._pid = os.fork()
    if not self._pid:
      _train(config, workdir, lambda: os.write(out, b"."))
    os.close(out)

  def wait_for_records(self, count: int, seconds: float | None = None) -> None:
    """Until it has written so many, or ended, or `seconds` are over."""
    until = None if seconds is None else time.monotonic() + seconds
    for _ in range(count):
      left = None if until is None else max(until - time.monotonic(), 0)
      if not select.select([self._records], [], [], left)[0] or not os.read(self._records, 1):
        return

  def end(self, number: int | None) -> int:
    """Sends it this signal, if there is one; returns minus the signal that ended it, or its exit status."""
    if number is not None:
      os.kill(self._pid, number)
    os.close(self._records)
    return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _train(config: TrainConfig, workdir: Path, written: Callable[[], object]) -> None:
  """Does not return."""
  write = metrics.JsonLines.write

  def watched(self: metrics.JsonLines, record: dict) -> None:
    write(self, record)
    written()

  metrics.JsonLines.write = watched  # type: ignore[method-assign]
  status = 70
  try:
    status = 0 if train(config, workdir).finished else 1
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(status)


def main(corpus: str, directory: Path, seed: int, kills: int) -> None:
  assert not jax._src.xla_bridge.backends_are_initialized()  # which makes forking safe
  model = tiny_model(num_layers=1)
  config = tiny_run(corpus, model=model, objective=Pull(), steps=6 + 3 * kills, checkpoint_every=1, keep_latest=2)
  assert Start(config, directory / "undisturbed").end(None) == 0
  moments, found, writing = random.Random(seed), [], 0
  killed, startup = directory / "killed", 0.0
  for number in range(kills):
    began, start = time.time(), Start(config, killed)
    if number % 4 == 0:
      start.wait_for_records(1)
      startup = time.time() - began
      start.wait_for_records(moments.randint(2, 3))  # the third is written when the first step is saved
      time.sleep(moments.uniform(0, 0.1))
    else:
      start.wait_for_records(3, moments.uniform(0, startup))  # a quick start must not make all the steps
    assert start.end(signal.SIGKILL) in (-signal.SIGKILL, 0)  # 0: it had just finished
    writing += any(path.stat().st_mtime > began for path in killed.glob("checkpoints/*tmp*"))
    steps = [record["step"] for record in records(killed)] if (killed / "metrics.jsonl").exists() else []
    found.append(max(steps, default=0))
  assert Start(config, killed).end(None) == 0
  print(json.dumps({"writing": writing, "found": found, "steps": config.steps}))


if __name__ == "__main__":
  main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
