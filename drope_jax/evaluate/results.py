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

from drope_jax.errors import ResultsError
from drope_jax.serialization import from_dict

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
  lines = "".join(json.dumps(dataclasses.asdict(result)) + "\n" for result in results)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a+b") as file:  # writes go to the end, wherever was read
    if _torn(path):
      file.seek(0)
      file.truncate(file.read().rfind(b"\n") + 1)
    file.write(lines.encode())


def read(path: Path) -> list[Result]:
  """All figures of a file, in the order they were measured; none if there is no file.

  A last line without its newline was cut off by an interruption, and is left out.

  Raises:
    ResultsError: naming the file and the line of a record that cannot be read.
  """
  if not path.exists():
    return []
  results = []
  *lines, _ = path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, start=1):
    try:
      results.append(from_dict(Result, json.loads(line)))
    except (ValueError, TypeError) as error:  # of JSON, of its encoding, of a field
      raise ResultsError(f"{path}:{number}: not a result ({error})") from error
  return results


def measured(path: Path) -> set[Measurement]:
  """What a file already holds, so that a rerun can skip it.

  What stands before a last line that was cut off may be of the same measurement, whose figures are then not all there.
  """
  found = [result.measurement for result in read(path)]
  return set(found) - set(found[-1:] if _torn(path) else [])


def _torn(path: Path) -> bool:
  """Whether a file ends within a line."""
  if not path.exists() or not path.stat().st_size:
    return False
  with path.open("rb") as file:
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
