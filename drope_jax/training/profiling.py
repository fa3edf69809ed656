"""A JAX trace of a few steps of a run, for TensorBoard's profiler or Perfetto."""

import logging
from typing import Any

import jax
from etils import epath

logger = logging.getLogger(__name__)

_WARMUP = 2  # steps of a start that are not traced: the first of them compiles


class Profiler:
  """Traces steps of this start into `directory`; with `steps` of 0 it does nothing."""

  def __init__(self, directory: epath.Path, steps: int):
    self._directory, self._steps = directory, steps
    self._seen, self._tracing = 0, False

  def after_step(self, report: Any) -> None:
    """To be called after each step is dispatched, with something that it computes."""
    self._seen += 1
    if self._steps and self._seen == _WARMUP:
      jax.block_until_ready(report)  # so that the trace holds no earlier step
      jax.profiler.start_trace(str(self._directory))
      self._tracing = True
    elif self._tracing and self._seen == _WARMUP + self._steps:
      jax.block_until_ready(report)
      self.close()

  def close(self) -> None:
    """Writes what was traced so far."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      logger.info("profile: %d steps in %s", min(self._seen - _WARMUP, self._steps), self._directory)
