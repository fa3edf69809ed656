"""A summary as two small files: NAME.csv, one line per figure and seed, and NAME.json, how the study was made.

Columns of the CSV: run, method, task, context (tokens), metric, by, at, seed, value, n, low, high. `by` and `at` say
which part of a figure it is (drope_jax/evaluate/results.py), and are empty for the whole figure; `low` and `high` are
the ends of the 95 % interval over the samples of that seed. The task "heldout" is the loss in context during training:
by step of a recalibration and, in studies that compare runs from scratch, by tokens of the whole arm that the run ends.
With one seed, the metric "loss_less_control" is its difference from the control's, with the paired interval over
documents.
"""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from drope_jax.errors import ConfigError, ReportError
from drope_jax.evaluate.figures import At, Figure
from drope_jax.files import replace_whole, write_json
from drope_jax.serialization import from_dict
from experiments.plan import Row
from experiments.reporting.stored import read_json
from experiments.reporting.summary import Making, Place, Summary

COLUMNS = ("run", "method", "task", "context", "metric", "by", "at", "seed", "value", "n", "low", "high")
MOST_BYTES = 200_000  # of a CSV that is kept in the repository


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Contents:
  """The contents of NAME.json."""

  making: Making
  train_context: int
  seeds: tuple[int, ...]
  rows: tuple[Row, ...]
  kinds: dict
  controls: dict  # run -> label
  better: dict  # metric -> "higher", "lower" or null
  sweeps: tuple[dict, ...] = ()  # of run -> peak learning rate; earlier versions did not store them


def csv_text(summary: Summary) -> str:
  """The text of NAME.csv: one line per figure and seed, numbers to six digits."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(COLUMNS)
  for place, figures in summary.figures.items():
    at = "" if place.at is None else json.dumps(place.at)
    where = (place.run, place.method, place.task, place.context, place.metric, place.by or "", at)
    for seed, one in zip(summary.seeds, figures, strict=True):
      writer.writerow([*where, seed, f"{one.value:.6g}", one.n, *map(_number, (one.low, one.high))])
  return text.getvalue()


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.6g}"


def write_summary(summary: Summary, directory: Path, name: str) -> None:
  """Writes NAME.csv and NAME.json. Raises ReportError if the CSV is too large to be kept in the repository."""
  text = csv_text(summary)
  if len(text.encode()) > MOST_BYTES:
    raise ReportError(f"{name}.csv has {len(text.encode()):,} bytes; at most {MOST_BYTES:,} are kept in the repository")
  description = _Contents(
    making=summary.making,
    train_context=summary.train_context,
    seeds=summary.seeds,
    rows=summary.rows,
    kinds=dict(summary.kinds),
    controls=dict(summary.controls),
    sweeps=tuple(map(dict, summary.sweeps)),
    better={place.metric: figures[0].better for place, figures in summary.figures.items()},
  )
  directory.mkdir(parents=True, exist_ok=True)
  replace_whole(directory / f"{name}.csv", text)
  write_json(dataclasses.asdict(description), directory / f"{name}.json")


def read_summary(path: Path) -> Summary:
  """Reads NAME.json, at `path`, and NAME.csv beside it. Raises ReportError naming what cannot be read."""
  try:
    description: _Contents = from_dict(_Contents, read_json(path), path.stem)
  except ConfigError as error:
    raise ReportError(f"{path}: {error}") from error
  table = path.with_suffix(".csv")
  figures: dict[Place, dict[int, Figure]] = {}
  try:
    with table.open(newline="", encoding="utf-8") as file:
      for number, line in enumerate(csv.DictReader(file), 2):
        try:
          place, seed, figure = _figure(line, description.better)
        except (KeyError, TypeError, ValueError) as error:
          raise ReportError(f"{table}:{number}: not a figure ({error})") from error
        figures.setdefault(place, {})[seed] = figure
  except OSError as error:
    raise ReportError(f"{table}: cannot be read ({error.strerror})") from error
  for place, by_seed in figures.items():
    if set(by_seed) != set(description.seeds):
      raise ReportError(f"{table}: {place.metric} of {place.run}, {place.method} has seeds {sorted(by_seed)}")
  return Summary(
    making=description.making,
    train_context=description.train_context,
    seeds=description.seeds,
    rows=description.rows,
    kinds=description.kinds,
    controls=description.controls,
    figures={place: tuple(by_seed[seed] for seed in description.seeds) for place, by_seed in figures.items()},
    sweeps=description.sweeps,
  )


def _figure(line: dict[str, Any], better: dict[str, Any]) -> tuple[Place, int, Figure]:
  by, at = line["by"] or None, _at(line["at"])
  place = Place(line["run"], line["method"], line["task"], int(line["context"]), line["metric"], by, at)
  low, high = (float(line[name]) if line[name] else None for name in ("low", "high"))
  value, n = float(line["value"]), int(line["n"])
  if not all(math.isfinite(one) for one in (value, low, high) if one is not None):
    raise ValueError(f"{place.metric} is {line['value']} ({line['low']} to {line['high']}); numbers must be finite")
  return place, int(line["seed"]), Figure(place.metric, value, n, low, high, by, at, better[place.metric])


def _at(text: str) -> At:
  if not text:
    return None
  found = json.loads(text)
  return (found[0], found[1]) if isinstance(found, list) else found
