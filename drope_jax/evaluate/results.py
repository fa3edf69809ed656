"""results.jsonl: a record a measured figure, appended as it is measured.

One *measurement* (a run under a method on a task at a context, with a seed and settings) gives several figures, its
metrics. With any other settings, as more samples or another c, it is another measurement, and stands beside the first;
where one figure is wanted, as in a report, the last one counts.

| metric                | value                                                                                      |
|-----------------------|--------------------------------------------------------------------------------------------|
| "loss"                | mean loss in nats per token over all positions                                             |
| "loss@128-192"        | the same over positions 128 .. 191 (see perplexity.py for what a position is)              |
| "bits_per_byte"       | the loss over all positions in bits, per byte of the text they spell                       |
| "accuracy"            | share of samples answered exactly, 0 to 1                                                  |
| "accuracy@depth=0.25" | the same for needles near that depth: 0 is the haystack's start, 1 its end                 |
| "string_match_all"    | RULER: the share of the references that an answer holds, "all_or_nothing": all of them     |
| "score"               | LongBench: the data set's own score, 0 to 1; "score@tokens=0-4096": of prompts so long     |
| "accuracy_norm"       | multiple choice by log-likelihood per character; "accuracy" is without it                  |
| "latest", "first"     | order probe: which of the assignments is likeliest; "p_latest": its probability among them |
| "gain"                | copy probes: nats a token that copying saves; "gain@distance=64": from so far back         |
| "beta"                | the factor on the attention logits that was used                                           |
| "loss@beta=1.20"      | task "temperature": the loss on the split for fitting, with that factor                    |
| "c"                   | task "temperature": the coefficient fitted to the best factors of all lengths              |
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from drope_jax.config import ConfigError, from_dict

LOSS = "loss"
BITS_PER_BYTE = "bits_per_byte"
ACCURACY = "accuracy"
BETA = "beta"
BY_DEPTH = "@depth="


def loss_between(start: int, stop: int) -> str:
  """The metric of the mean loss over positions start .. stop-1."""
  return f"{LOSS}@{start}-{stop}"


def at_depth(metric: str, depth: float) -> str:
  """The metric of the same score over needles near `depth`."""
  return f"{metric}{BY_DEPTH}{depth:g}"


class ResultsError(RuntimeError):
  """A results file that cannot be read or a figure that cannot be written; the message names the file and line."""


class Measurement(NamedTuple):
  """What one measurement is known by; its metrics are written together."""

  run: str
  method: str
  task: str
  context: int
  seed: int
  settings: str = ""  # JSON, see Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """One figure."""

  run: str  # the run whose checkpoint was measured
  method: str  # see methods.py
  task: str  # "perplexity", "needles", ...
  context: int  # tokens of a sequence
  extension: float  # context / training context
  metric: str
  value: float
  n: int  # samples behind the value: tokens of a loss, prompts of an accuracy
  seed: int  # of the evaluation data
  low: float | None = None  # of the 95 % bootstrap interval over samples; None: none was made
  high: float | None = None
  command: str = ""  # that measured it
  settings: dict | None = None  # what else decides the figure: the weights, beta, the samples; None: an old record

  @property
  def measurement(self) -> Measurement:
    settings = "" if self.settings is None else as_text(self.settings)
    return Measurement(self.run, self.method, self.task, self.context, self.seed, settings)


def as_text(settings: dict[str, Any]) -> str:
  """Settings as JSON that is the same for the same settings."""
  return json.dumps(settings, sort_keys=True)


def append(path: Path, results: Iterable[Result]) -> None:
  """Appends the figures of one measurement in one write, so that an interruption leaves all of them or none.

  Raises:
    ValueError: if a value is not finite (JSON has no such number), or the file ends within a record.
  """
  results = list(results)
  for result in results:
    if not math.isfinite(result.value):
      raise ValueError(f"{result.metric} of {result.measurement} is {result.value}; a result must be finite")
  lines = "".join(json.dumps(dataclasses.asdict(result)) + "\n" for result in results)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a+b") as file:  # writes go to the end, wherever was read
    if file.tell():
      file.seek(-1, os.SEEK_END)
      if file.read(1) != b"\n":
        raise ValueError(f"{path}: the last line is not complete; remove it to go on")
    file.write(lines.encode())


def read(path: Path) -> list[Result]:
  """All figures of a file, in the order they were measured; none if there is no file.

  Raises:
    ValueError: naming the file and the line of a record that cannot be read.
  """
  if not path.exists():
    return []
  results = []
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    try:
      results.append(from_dict(Result, json.loads(line)))
    except (json.JSONDecodeError, ConfigError, TypeError) as error:
      raise ValueError(f"{path}:{number}: not a result ({error})") from error
  return results


def measured(path: Path) -> set[Measurement]:
  """What a file already holds, so that a rerun can skip it."""
  return {result.measurement for result in read(path)}
