"""How a study was made, from its records: command, machine, date and size, without that machine's paths."""

import datetime
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from drope_jax.errors import ReportError
from experiments.reporting.records import Records
from experiments.reporting.stored import read_json
from experiments.reporting.summary import Making


def making_of(studies: Sequence[Records], name: str, commit: str = "") -> Making:
  """How a study was made, from the records of its seeds.

  Args:
    name: of the study, for the workdir in its command.
    commit: of this repository; default: as recorded.
  """
  first = min(studies, key=lambda study: study.seed)
  seconds = [study.seconds for study in studies if study.seconds]
  tokens = [run.tokens for run in first.runs.values() if run.tokens is not None]
  sizes = [run.parameters for run in first.runs.values() if run.parameters is not None]
  said = [read_json(study.directory / "study.json") for study in studies]
  commits = sorted({one["commit"] for one in said if one.get("commit")})
  machines = dict.fromkeys(study.machine for study in studies if study.machine)
  return Making(
    title=first.title,
    command=shareable(first.command, name, sorted(study.seed for study in studies)),
    machine="; ".join(machines),
    date=max(one.get("date") or _date(study.directory) for one, study in zip(said, studies, strict=True)),
    commit=commit or ", ".join(commits),
    versions={key: first.versions[key] for key in ("python", "jax", "flax") if key in first.versions},
    seconds=statistics.mean(seconds) if seconds else None,
    parameters=sizes[0] if sizes else None,
    tokens=float(sum(tokens)) if tokens else None,
  )


def shareable(command: str, name: str, seeds: Sequence[int]) -> str:
  """The command as others would type it: a workdir named after the study, no absolute paths, and all seeds at once."""
  numbers = ",".join(map(str, seeds))
  text = re.sub(r" --runs=\S+", "", command)
  text = re.sub(r"--workdir=\S+", f"--workdir=runs/{name}", text)
  text = re.sub(r"(?<=[=,])/(?:[^\s,=]*/)?([^/\s,=]+)", r"\1", text)  # --data= may name several
  if "experiments.study" not in text:
    others = "".join(f"\n{text.replace(f'runs/{name}', f'runs/seed{seed}')} --seed={seed}" for seed in seeds if seed)
    return text + others if "--seed" not in text else text
  text = re.sub(r" --(config\.)?seed=\d+", "", text)
  return re.sub(r" --seeds=\S+", "", text) + (f" --seeds={numbers}" if len(seeds) > 1 or seeds[0] else "")


def _date(workdir: Path) -> str:
  """The date of the last figure, for a study.json without a date."""
  path = workdir / "results.jsonl"
  try:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat()
  except OSError as error:
    raise ReportError(f"{path}: cannot be read ({error.strerror})") from error
