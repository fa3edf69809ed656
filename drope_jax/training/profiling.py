"""A JAX trace of a few steps of a run, for TensorBoard's profiler or Perfetto."""

import logging
from typing import Any

import jax
from etils import epath

logger = logging.getLogger(__name__)

_WARMUP = 2  # first steps of a start, which are not traced because the first one compiles


class Profiler:
  """Traces `steps` steps of this start into `directory`; does nothing for 0."""

  def __init__(self, directory: epath.Path, steps: int):
    self._directory, self._steps = directory, steps
    self._seen, self._tracing = 0, False

  def after_step(self, report: Any) -> None:
    """Must be called after each step is dispatched, with a result of that step."""
    self._seen += 1
    if self._steps and self._seen == _WARMUP:
      jax.block_until_ready(report)  # so that the trace does not contain earlier steps
      jax.profiler.start_trace(str(self._directory))
      self._tracing = True
    elif self._tracing and self._seen == _WARMUP + self._steps:
      jax.block_until_ready(report)
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is being recorded."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      logger.info("profile: %d steps in %s", min(self._seen - _WARMUP, self._steps), self._directory)
