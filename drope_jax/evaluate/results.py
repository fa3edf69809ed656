"""results.jsonl: one record per measured figure, appended as it is measured.

One *measurement* (a run under a method on a task at a context, with a seed and settings) gives several figures, its
metrics. With any other settings, as more samples or another c, it is another measurement, and stands beside the first;
where one figure is wanted, as in a report, the last one counts.

A figure whose `by` is null is the whole of its metric. Others are parts of it: `by` says what it is divided by, and
`at` which part it is, a number or an interval [start, stop). The tasks of this library have a loss by "position"
(tokens), a score by "depth" (of the needle: 0 is the haystack's start, 1 its end), by "distance" (of a copy, tokens),
by "tokens" or "words" (of the prompt), and the loss by "beta" on which the temperature is fitted.
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
  """What one measurement is known by; its figures are written together."""

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
  low: float | None = None  # of the 95 % bootstrap interval over samples; None: none was made
  high: float | None = None
  better: str | None = None  # "higher", "lower"; None: neither
  values: tuple[float, ...] | None = dataclasses.field(default=None, repr=False)  # of each sample
  command: str = ""  # that measured it
  settings: dict | None = None  # what else decides the figure: the weights, beta, the samples; None: an old record

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
  """Settings as they are read again from JSON."""
  return json.loads(json.dumps(settings))


def append(path: Path, results: Iterable[Result]) -> None:
  """Appends the figures of one measurement in one write, so that an interruption leaves all of them or none.

  A last line without its newline was cut off by an interruption: it is taken away first.

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

  A last line without its newline was cut off by an interruption, and is left out.

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
    except (ValueError, TypeError) as error:  # of JSON, of its encoding, of a field
      raise ResultsError(f"{path}:{line.number}: not a result ({error})") from error
  return results


def _result(record: Any) -> Result:
  """A record of this or an earlier version. Raises ValueError for what is not one."""
  if not isinstance(record, dict):
    raise ValueError(f"{record!r} is not an object")
  fields = upgraded("Result", record)
  at = fields.pop("at", None)
  return dataclasses.replace(from_dict(Result, fields), at=_at(at))


def _at(value: Any) -> At:
  """Which part a figure is, from JSON."""
  is_interval = isinstance(value, list) and len(value) == 2 and _is_number(value[0])
  if value is None or _is_number(value):
    return value
  if is_interval and (value[1] is None or _is_number(value[1])):
    return value[0], value[1]
  raise ValueError(f"Result.at is {value!r}; it must be a number, or [start, stop]")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def measured(path: Path) -> set[Measurement]:
  """What a file already holds, so that a rerun can skip it.

  If the last line was cut off, the one before it may be of the same measurement, whose figures are then incomplete.
  """
  found = [result.measurement for result in read(path)]
  return set(found) - set(found[-1:] if is_torn(path) else [])
