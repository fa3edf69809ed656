"""Made-up records of a study, for tests of reports."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drope_jax.config import DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.evaluate import results
from drope_jax.evaluate.results import Result
from drope_jax.objective import NextToken, Objective
from drope_jax.positions import RoPE
from drope_jax.serialization import save_config
from drope_jax.transitions import Drop, Keep
from experiments.reporting.records import Records, read_study

CONTEXT = 128
CONTEXTS = (128, 256, 512, 1024)
MODEL = ModelConfig(
  vocab_size=1024, d_model=128, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384, positions=None
)
ARMS = [
  {"label": "RoPE, continued", "runs": ["rope", "rope_continued"]},
  {"label": "DroPE", "runs": ["rope", "drope"]},
  {"label": "NoPE from scratch", "runs": ["nope"]},
]
ROWS = [
  ("rope_continued", "rope", "RoPE, continued"),
  ("rope_continued", "yarn", "RoPE + YaRN"),
  ("rope_continued", "crop", "RoPE, cropped"),
  ("drope", "nope", "DroPE, β = 1"),
  ("drope", "drope", "DroPE"),
  ("nope", "nope", "NoPE from scratch"),
]
# Loss at the four lengths, similar to those of a prototype.
LOSSES = {
  "RoPE, continued": (2.89, 3.00, 3.39, 3.91),
  "RoPE + YaRN": (2.89, 2.98, 3.12, 3.35),
  "RoPE, cropped": (2.89, 2.93, 2.95, 2.97),
  "DroPE, β = 1": (3.27, 3.39, 3.59, 3.84),
  "DroPE": (3.27, 3.36, 3.47, 3.60),
  "NoPE from scratch": (3.25, 3.32, 3.50, 3.71),
}
ACCURACIES = {
  "RoPE, continued": (1.0, 0.62, 0.3, 0.12),
  "RoPE + YaRN": (1.0, 1.0, 0.97, 0.9),
  "RoPE, cropped": (1.0, 0.5, 0.25, 0.13),
  "DroPE, β = 1": (0.9, 0.7, 0.5, 0.3),
  "DroPE": (0.9, 0.8, 0.66, 0.44),
  "NoPE from scratch": (0.88, 0.75, 0.5, 0.31),
}


def write_run(
  directory: Path,
  *,
  steps: int = 400,
  loss: float = 3.0,
  init: InitConfig | None = None,
  heldout: Mapping[int, Sequence[tuple[int, float]]] | None = None,
  positions: Any = None,
  objective: Objective | None = None,
  peak_lr: float = 1e-3,
) -> None:
  """Writes a run's config.json and metrics.jsonl; `heldout`: (step, loss) by extension."""
  directory.mkdir(parents=True)
  model = dataclasses.replace(MODEL, positions=positions)
  if init is not None and init.model is None:  # a run records what its checkpoint held
    init = dataclasses.replace(init, model=dataclasses.replace(model, positions=RoPE()))
  data, optim = DataConfig(directory="corpus", context=CONTEXT, batch_size=32), OptimConfig(peak_lr=peak_lr)
  settings = {"model": model, "init": init, "data": data, "optim": optim, "objective": objective or NextToken()}
  save_config(TrainConfig(**settings, steps=steps), directory / "config.json")
  records: list[dict[str, Any]] = []
  for step in range(10, steps + 1, 10):
    noise = 0.03 * math.sin(step * 12.9898 + len(directory.name))
    now = loss + 3 * math.exp(-12 * step / steps) + noise
    record = {"step": step, "tokens": step * 4096, "loss": now, "grad_norm": 0.5, "learning_rate": 1e-3}
    records.append(record | {"tokens_per_second": 21_000.0, "mfu": None, "seconds": step * 0.2})
  for extension, points in (heldout or {}).items():
    at = {"kind": "eval", "split": "heldout", "extension": extension, "context": extension * CONTEXT}
    records += [{"step": step, **at, "loss": measured, "documents": 16} for step, measured in points]
  records.sort(key=lambda record: record["step"])
  (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_study(workdir: Path) -> None:
  """Writes study.json and the runs of a study that was trained but not evaluated."""
  description = {
    "title": "Dropping positional embeddings, in small",
    "command": "python -m experiments.quickstart --workdir=runs/quickstart",
    "seed": 0,
    "train_context": CONTEXT,
    "machine": "2 CPU cores, 4 GiB",
    "versions": {"jax": "0.9.0", "flax": "0.12.0"},
    "seconds": 512.3,
    "arms": ARMS,
    "rows": [dict(zip(("run", "method", "label"), row, strict=True)) for row in ROWS],
  }
  (workdir / "study.json").write_text(json.dumps(description))
  runs = workdir / "runs"
  write_run(runs / "rope", steps=800, positions=RoPE())
  kept, dropped = (InitConfig(checkpoint="runs/rope", transition=how) for how in (Keep(), Drop()))
  curve = {1: [(0, 2.95), (200, 2.9), (400, 2.85)]}
  write_run(runs / "rope_continued", init=kept, heldout=curve, positions=RoPE())
  write_run(runs / "drope", init=dropped, heldout={1: [(0, 6.2), (200, 3.4), (400, 3.2)], 8: [(400, 3.5)]})
  write_run(runs / "nope", steps=1200)


def figures(losses: Mapping[str, Any], accuracies: Mapping[str, Any]) -> list[Result]:
  """The figures of an evaluation; rows missing from a mapping, and values of None, were not measured."""
  found: list[Result] = []
  for run, method, label in ROWS:
    for i, context in enumerate(CONTEXTS):
      common = {"run": run, "method": method, "context": context, "extension": context / CONTEXT, "seed": 0}
      loss, accuracy = (values.get(label, (None,) * 4)[i] for values in (losses, accuracies))
      if loss is not None:
        text = {"task": "perplexity", "better": "lower", "n": 100_000, **common}
        found.append(Result(metric="loss", value=loss, low=loss - 0.05, high=loss + 0.05, **text))
        found.append(Result(metric="bits_per_byte", value=loss / 3, low=loss / 3 - 0.02, high=loss / 3 + 0.02, **text))
        for start in range(0, context, 64):
          found.append(Result(metric="loss", by="position", at=(start, start + 64), value=loss - start / 5000, **text))
      if accuracy is not None:
        needles = {"task": "needles", "metric": "accuracy", "better": "higher", "n": 200, **common}
        width = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 200)
        found.append(Result(value=accuracy, low=accuracy - width, high=accuracy + width, **needles))
        found += [
          Result(value=accuracy * (1 - depth / 2), by="depth", at=depth, **needles) for depth in (0.0, 0.5, 1.0)
        ]
  return found


def temperature_fit(best: Mapping[int, float], betas: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8)) -> list[Result]:
  """The records of a fit with these best factors, by length."""
  found = []
  common: dict[str, Any] = {"run": "drope", "method": "drope", "task": "temperature", "seed": 0, "n": 5000}
  for context, beta in best.items():
    here = {**common, "context": context, "extension": context / CONTEXT}
    losses = {one: 3.4 + (one - beta) ** 2 for one in betas}
    found += [Result(metric="loss", by="beta", at=one, value=loss, **here) for one, loss in losses.items()]
    found.append(Result(metric="beta", value=beta, **here))
  return [*found, Result(metric="c", value=0.29, context=CONTEXT, extension=1.0, **common)]


def study_of(workdir: Path, found: Sequence[Result]) -> Records:
  """The records of the study in `workdir` with these figures added."""
  results.append(workdir / "results.jsonl", found)
  return read_study(workdir)


def cells(table: str) -> dict[str, list[str]]:
  """The cells of a Markdown table, by the first of each line."""
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
  return {row[0]: row[1:] for row in rows}
