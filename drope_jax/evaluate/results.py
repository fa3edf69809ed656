"""results.jsonl: one record per measured figure, appended as it is measured.

One *measurement* (a run under a method on a task at a context, with a seed and settings) has several figures, one per
metric. With other settings, such as more samples or another c, it is another measurement, which is recorded as well; if
a single figure is needed, as in a report, the last one is used.

A figure whose `by` is null is a metric as a whole. Others are parts of a breakdown: `by` is the quantity that it is
broken down by, and `at` the part, a number or an interval [start, stop). The tasks of this library have a loss by
"position" (tokens), a score by "depth" (of the needle: 0 is the haystack's start, 1 its end), by "distance" (of a copy,
tokens), by "tokens" or "words" (of the prompt), and the loss by "beta" on which the temperature is fitted.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from drope_jax.errors import ResultsError
from drope_jax.evaluate.figures import At, Figure
from drope_jax.files import append_json_lines, is_torn, lines_of
from drope_jax.serialization import from_dict
from drope_jax.upgrades import upgraded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
  """The key of a measurement, whose figures are written together."""

  run: str
  method: str
  task: str
  context: int
  seed: int
  settings: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)  # JSON, see Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """One figure."""

  run: str  # the run whose checkpoint was measured
  method: str  # see methods.py
  task: str  # "perplexity", "needles", ...
  context: int  # tokens of a sequence
  extension: float  # context / training context
  metric: str
  by: str | None = None  # see figures.Figure on these
  at: Any = None  # of type At
  value: float
  n: int  # samples behind the value: tokens of a loss, prompts of an accuracy
  seed: int  # of the evaluation data
  low: float | None = None  # lower end of the 95 % bootstrap interval over samples; None: no interval
  high: float | None = None  # upper end
  better: str | None = None  # "higher", "lower"; None: neither
  values: tuple[float, ...] | None = dataclasses.field(default=None, repr=False)  # one per sample
  command: str = ""  # the command that measured it
  settings: dict | None = None  # what else the figure depends on: weights, beta, samples; None: an old record

  @property
  def measurement(self) -> Measurement:
    return Measurement(
      run=self.run,
      method=self.method,
      task=self.task,
      context=self.context,
      seed=self.seed,
      settings=self.settings,
    )

  @property
  def figure(self) -> Figure:
    return Figure(**{name: getattr(self, name) for name in Figure._fields})


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings as they are after a round trip through JSON."""
  return json.loads(json.dumps(settings))


def append(path: Path, results: Iterable[Result]) -> None:
  """Appends the figures of one measurement in one write, so that an interruption leaves all of them or none.

  A last line without a newline, cut off by an interruption, is removed first.

  Raises:
    ResultsError: if a value is not finite (JSON has no such number).
  """
  results = list(results)
  for result in results:
    if not math.isfinite(result.value):
      raise ResultsError(
        f"{path}: {result.metric} of {result.run}, {result.method}, {result.task} at {result.context} tokens is "
        f"{result.value}; a result must be finite, and none of this measurement is written"
      )
  append_json_lines(map(dataclasses.asdict, results), path)


def read(path: Path) -> list[Result]:
  """All figures of a file, in the order they were measured; none if there is no file.

  A last line without a newline, cut off by an interruption, is ignored.

  Raises:
    ResultsError: naming the file and the line of a record that cannot be read.
  """
  if not path.exists():
    return []
  results = []
  for line in lines_of(path):
    if not line.ended:
      continue
    try:
      results.append(_result(line.record()))
    except (ValueError, TypeError) as error:  # in the JSON, its encoding, or a field
      raise ResultsError(f"{path}:{line.number}: not a result ({error})") from error
  return results


def _result(record: Any) -> Result:
  """A record of this or an earlier version. Raises ValueError for what is not one."""
  if not isinstance(record, dict):
    raise ValueError(f"{record!r} is not an object")
  fields = upgraded("Result", record)
  at = fields.pop("at", None)
  result = dataclasses.replace(from_dict(Result, fields), at=_at(at))
  if result.context < 1 or not 0 < result.extension < math.inf:
    raise ValueError(f"Result.context is {result.context} and extension {result.extension}; both must be positive")
  return result


def _at(value: Any) -> At:
  """The `at` of a figure, from JSON."""
  is_interval = isinstance(value, list) and len(value) == 2 and _is_number(value[0])
  if value is None or _is_number(value):
    return value
  if is_interval and (value[1] is None or _is_number(value[1])):
    return value[0], value[1]
  raise ValueError(f"Result.at is {value!r}; it must be a number, or [start, stop]")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def measured(path: Path) -> set[Measurement]:
  """The measurements that a file already holds, so that a rerun can skip them.

  If the last line was cut off, the measurement of the line before it may be incomplete, and is not returned.
  """
  found = [result.measurement for result in read(path)]
  return set(found) - set(found[-1:] if is_torn(path) else [])
