"""A progress line of an evaluation, with an estimate of the remaining time."""

import logging
import sys
import time
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)
WIDTH = 24  # characters of the bar
EVERY = 30.0  # seconds between lines, if there is no terminal


class Progress:
  """The progress of parts of different weight that are done one after another.

  On a terminal the line is overwritten; elsewhere it is logged every half minute.

  Args:
    weights: of the parts, proportional to their duration.
    write: writes to the terminal; None: there is no terminal.
  """

  def __init__(
    self,
    weights: Sequence[float],
    write: Callable[[str], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._weights, self._write, self._clock = list(weights), write, clock
    self._part, self._label = -1, ""
    self._started = self._said = clock()

  @classmethod
  def to_terminal(cls, weights: Sequence[float]) -> "Progress":
    return cls(weights, sys.stderr.write if sys.stderr.isatty() else None)

  def plan(self, weights: Sequence[float]) -> None:
    """Replaces the parts that follow the current one."""
    self._weights[self._part + 1 :] = weights

  def begin(self, label: str) -> None:
    """Begins the next part."""
    self._part, self._label = self._part + 1, label
    self(0.0)

  def __call__(self, share: float) -> None:
    """Reports that `share` of the current part is done."""
    if self._write:
      done = self._done(share)
      bar = "#" * round(WIDTH * done)
      self._write(f"\r[{bar:.<{WIDTH}}] {done:4.0%}  {self._label}  {self.remaining(share)}\x1b[K")
      if share >= 1:
        self._write("\r\x1b[K")  # clears the line for the next log message
    elif self._clock() - self._said > EVERY:
      self._said = self._clock()
      logger.info("%.0f %%  %s  %s", 100 * self._done(share), self._label, self.remaining(share))

  def remaining(self, share: float = 1.0) -> str:
    """The estimated remaining time, as text; empty while it is unknown, and at the end."""
    done = self._done(share)
    if not 0.01 < done < 1:
      return ""
    seconds = (self._clock() - self._started) * (1 - done) / done
    if seconds < 90:
      return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"

  def _done(self, share: float) -> float:
    return (sum(self._weights[: self._part]) + share * self._weights[self._part]) / (sum(self._weights) or 1.0)
