"""Ways to interrupt a run."""

import os
import signal

from drope_jax import metrics


def when_step_is_logged(monkeypatch, step, action):
  """Calls `action` once, when the training record of `step` is written."""
  write = metrics.JsonLines.write

  def watched(self, record):
    write(self, record)
    if record["step"] == step and metrics.is_training(record):
      monkeypatch.setattr(metrics.JsonLines, "write", write)
      action()

  monkeypatch.setattr(metrics.JsonLines, "write", watched)


def terminate(number=signal.SIGTERM):
  assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler), "this would end the tests"
  os.kill(os.getpid(), number)


def crash():
  raise InterruptedError("the machine is gone")
