"""Studies at size `small` with their budgets cut: same models, arms, tasks, dtype and schedules, in minutes on CPUs.

`PYTHONPATH=tests python -m support.cut_studies OUT [STUDY ...]` runs each study (default: all that have this size) to
its report in OUT/STUDY, and appends a line to OUT/cut_studies.jsonl. Runs are shared in OUT/runs. A study that has its
line is not run again.
"""

import importlib
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from drope_jax.data import docstrings
from drope_jax.data.corpus import build_corpus, is_built
from experiments.studies.branching import BranchingStudy

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "experiments" / "studies"
CUT = {
  "trunk_steps": 2,
  "tail_steps": 2,
  "batch_size": 2,
  "documents": 2,
  "budgets": 1,
  "needles_per_depth": 1,
  "samples": 2,
}
CUT_OF_STUDY = {
  "recalibration_budget": {"steps": (1, 2)},
  "table10_extension": {"generations": 1},
  "fig7_positional_head": {"rows": 2},
  "fig8_semantic_head": {"prompts": 2},
}
QUICKLY_COMPILED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # most programs run a few times
_LONG = 20_000  # characters of a document of prose; a held-out piece of 12,000 is longer than the longest row


def with_size(size: str) -> list[str]:
  """The names of the studies that have a size and train at it."""
  modules = {path.stem: importlib.import_module(f"experiments.studies.{path.stem}") for path in STUDIES.glob("*.py")}
  sized = {name: module for name, module in modules.items() if size in getattr(module, "SIZES", ())}
  return sorted(name for name, module in sized.items() if isinstance(module.get_config(size), BranchingStudy))


def whole(name: str) -> BranchingStudy:
  """The settings of a study at `small`."""
  return importlib.import_module(f"experiments.studies.{name}").get_config("small")


def prose(directory: Path, packages: Sequence[str] = docstrings.PACKAGES) -> Path:
  """A dataset of docstrings in long documents, with the splits of `experiments.prose`."""
  if not is_built(directory):
    text = "\n\n".join(docstrings.gather(packages))
    documents = [text[start : start + _LONG] for start in range(0, len(text) - _LONG, _LONG)]
    build_corpus(directory, {"heldout": documents[:4], "fit": documents[4:8], "train": documents[8:]})
  return directory


def arguments(name: str, out: Path) -> list[str]:
  """Of `python -m experiments.study`, for a study whose budgets are cut; its prose is in OUT/prose."""
  cut = CUT | CUT_OF_STUDY.get(name, {}) | {"data": out / "data", "text": out / "prose"}
  overrides = [f"--config.{field}={value}" for field, value in cut.items()]
  folders = [f"--workdir={out / name}", f"--runs={out / 'runs'}"]
  return [f"--config=experiments/studies/{name}.py:small", *folders, *overrides]


def not_measured(name: str, out: Path) -> Iterator[str]:
  """What the tables of a cut study lack: a row without a finite figure of a task at a length."""
  study = json.loads((out / name / "study.json").read_text())
  records = [json.loads(line) for line in (out / name / "results.jsonl").read_text().splitlines()]
  figures = [r for r in records if r["by"] is None and r["metric"] != "beta"]
  settings = whole(name)
  for row in study["rows"]:
    for extension in settings.extensions:
      for task in settings.tasks:
        where = (row["run"], row["method"], task, round(extension * settings.context))
        values = [r["value"] for r in figures if (r["run"], r["method"], r["task"], r["context"]) == where]
        if not values or not all(value is not None and math.isfinite(value) for value in values):
          yield f"{where}: {values}"


def _cpu_seconds() -> float:
  """Of the processes that have been run."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def run(name: str, out: Path) -> dict[str, object]:
  """Runs a cut study by its command; what came of it."""
  before = _cpu_seconds()
  line = [sys.executable, "-m", "experiments.study", *arguments(name, out)]
  ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **QUICKLY_COMPILED})
  record = {"study": name, "cpu_seconds": round(_cpu_seconds() - before), "status": ended.returncode}
  if ended.returncode:
    return record | {"ok": False, "error": ended.stderr.splitlines()[-1:]}
  study = json.loads((out / name / "study.json").read_text())
  lacking = list(not_measured(name, out))
  return record | {
    "runs": len(whole(name).study(out).runs),
    "rows": len(study["rows"]),
    "ok": not lacking and (out / name / "report.md").exists(),
    "lacking": lacking,
  }


def main(out: Path, names: Sequence[str]) -> None:
  out.mkdir(parents=True, exist_ok=True)
  prose(out / "prose")
  path = out / "cut_studies.jsonl"
  done = {json.loads(line)["study"] for line in path.read_text().splitlines()} if path.exists() else set()
  for name in names or with_size("small"):
    if name not in done:
      with path.open("a") as file:
        print(json.dumps(run(name, out)), file=file, flush=True)


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve(), sys.argv[2:])
