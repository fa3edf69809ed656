"""What a study will cost: parameters, tokens and FLOPs of every run, and an estimate of the time on this machine."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.evaluate.coefficient import BETAS
from drope_jax.evaluate.tasks import task_groups
from drope_jax.evaluate.tasks.copying import SIZES as COPIES
from drope_jax.evaluate.tasks.needles import Needles
from drope_jax.evaluate.tasks.order import Order
from drope_jax.metrics import flops_per_token, objective_flops_per_token
from drope_jax.parameters import count_parameters
from experiments.factor_search import Searched
from experiments.plan import EvalPlan, Pretrained, Study, run_directory

# Measured training speed by jax's device_kind: (FLOPs per token, tokens per second of a device). The first pair of each
# is a small study: a quickstart on two quiet cores (`python -m experiments.quickstart --config.seed=2`, median of its
# records), and partial_drop:small on an H200 (the 306 s of a seed without evaluation and compilation). The second pairs
# (29.9M on two cores, 494M) are from docs/results/speed.md. FLOP/s of other models are interpolated in logarithms, and
# constant beyond the ends. Two studies side by side, each pinned to one of the two cores (`taskset -c 0` and `-c 1`),
# train at 18,800 tokens/s each (partial_drop:mini, seeds 0 and 1): one seed takes 1.8 times as long, two seeds 0.9
# times.
SPEEDS: Mapping[str, Sequence[tuple[float, float]]] = {
  "cpu": [(6.39e6, 34_000), (1.92e8, 889)],
  "NVIDIA H200": [(1.04e8, 1_300_000), (3.23e9, 145_000)],
}
MACHINES = {"mini": "cpu", "small": "NVIDIA H200"}  # by size of a study: the device it is made for
SHOWN = {"cpu": "2 CPU cores", "NVIDIA H200": "one H200"}  # how the machines of SPEEDS are called
COMPILING = {"cpu": 3.0, "NVIDIA H200": 8.0}  # seconds per run and per row, for compiling and checkpoints; rough
# Units of show_time: name, length in seconds, and the number of seconds from which the next unit is used.
UNITS = (
  ("min", 60, 2 * 3600),
  ("hours", 3600, 2 * 86_400),
  ("days", 86_400, 730 * 86_400),
  ("years", 365 * 86_400, math.inf),
)


class RunCost(NamedTuple):
  """The cost of training one run."""

  name: str
  start: str  # name of the run or checkpoint it starts from, or "scratch"
  parameters: int
  per_token: float  # training FLOPs per token (PaLM)
  steps: int
  tokens: int
  flops: float  # of all steps, including a teacher's forward passes


def run_costs(study: Study, models: Mapping[str, ModelConfig]) -> list[RunCost]:
  """The costs of all runs that are trained; `models` as returned by models.run_models."""
  found = []
  for name, run in study.runs.items():
    if not isinstance(run, TrainConfig):
      continue
    per_token = flops_per_token(models[name], run.data.context)
    tokens = run.steps * run.data.batch_size * run.data.context
    steps = range(0, run.steps, max(run.steps // 1000, 1))  # a sample: a teacher may see only a part of the steps
    taught = objective_flops_per_token(run.objective, models[name], None, run.data.context, steps, run.steps)
    start = "scratch" if run.init is None else run.init.checkpoint.rstrip("/").rpartition("/")[2]
    size = count_parameters(models[name])
    found.append(RunCost(name, start, size, per_token, run.steps, tokens, tokens * taught))
  return found


def evaluation_flops(study: Study, models: Mapping[str, ModelConfig]) -> float:
  """FLOPs of measuring all rows. An estimate: it takes samples to fill their length and answers to be short."""
  plan = study.eval_data
  if not isinstance(plan, EvalPlan):
    return math.nan
  total = 0.0
  for row in study.rows:
    for length in study.lengths:
      samples = sum(_samples(task, plan) for task in study.tasks)
      if row.method == "drope" and length > study.train_context:
        samples += len(BETAS) * plan.num_documents
      total += samples * length * flops_per_token(models[row.run], length) / 3
  return total + sum(_search_flops(models[name], run, study) for name, run in study.runs.items())


def _search_flops(model: ModelConfig, run: TrainConfig | Pretrained, study: Study) -> float:
  """FLOPs of a factor search, which reads all prompts once per candidate; 0 for a run without a search."""
  if not isinstance(run, Searched):
    return 0.0
  length = round(run.factor * study.train_context)
  prompts = run.how.generations * run.how.population * run.how.samples
  return prompts * length * flops_per_token(model, length) / 3


def _samples(task: str, plan: EvalPlan) -> int:
  """Sequences that a task reads at each length."""
  if task in task_groups():
    return sum(_samples(one, plan) for one in task_groups()[task])
  counts = {
    "perplexity": plan.num_documents,
    "sliding_perplexity": plan.num_documents,
    "needles": len(Needles.depths) * plan.needles_per_depth,
    "order": Order.assignments * plan.num_samples,
    **{name: 2 * plan.num_samples for name in COPIES},
  }
  return counts.get(task, plan.limit or plan.num_samples)


def seconds(flops: float, per_token: float, device_kind: str, devices: float = 1) -> float:
  """How long training FLOPs take according to SPEEDS; NaN on a device that has not been measured."""
  known = SPEEDS.get(device_kind)
  if known is None:
    return math.nan
  rates = [math.log(cost * speed) for cost, speed in known]
  rate = np.interp(math.log(per_token), [math.log(cost) for cost, _ in known], rates)
  return flops / math.exp(rate) / devices


def estimate(study: Study, models: Mapping[str, ModelConfig], device_kind: str | None = None) -> float:
  """Seconds that a whole study takes, on the devices of this machine or on one device of the given kind.

  Runs train on all devices, and are measured on one, as without `--mesh`.
  """
  kind, devices = _devices_here() if device_kind is None else (device_kind, 1.0)
  costs = run_costs(study, models)
  per_token = max((cost.per_token for cost in costs), default=0.0) or max(
    flops_per_token(model, study.train_context) for model in models.values()
  )
  training = sum(seconds(cost.flops, cost.per_token, kind, devices) for cost in costs)
  measuring = seconds(evaluation_flops(study, models), per_token, kind)
  return training + measuring + COMPILING.get(kind, math.nan) * (len(costs) + len(study.rows))


def _devices_here() -> tuple[str, float]:
  """The device_kind of this machine, and its number of such devices; in SPEEDS a CPU is one, however it is divided."""
  kind = jax.devices()[0].device_kind
  return kind, 1.0 if kind == "cpu" else float(jax.device_count())


def exponent(number: float, digits: int = 2) -> str:
  """A number as `5.42e19`."""
  return f"{number:.{digits}e}".replace("e+0", "e").replace("e+", "e")


def aligned_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table with padded columns, readable as plain text; the first column is text, the others are numbers."""
  lines = [list(header), *map(list, rows)]
  widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

  def shown(cells: Sequence[str]) -> str:
    padded = [cells[0].ljust(widths[0])]
    padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "| " + " | ".join(padded) + " |"

  rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
  return "\n".join([shown(lines[0]), "| " + " | ".join(rule) + " |", *map(shown, lines[1:])])


def size_table(studies: Iterable[tuple[str, Study, Mapping[str, ModelConfig]]]) -> str:
  """One line per size of a study, for its docstring; minutes are estimates per seed on the machine of that size."""
  lines = []
  for size, study, models in studies:
    costs = run_costs(study, models)
    parameters = sorted({cost.parameters for cost in costs})
    shown = f"{parameters[0]:,}" + (f" to {parameters[-1]:,}" if len(parameters) > 1 else "")
    tokens, flops = sum(cost.tokens for cost in costs), sum(cost.flops for cost in costs)
    machine = MACHINES.get(size.partition("_")[0])
    minutes = "" if machine is None else f"{estimate(study, models, machine) / 60:.0f} ({SHOWN[machine]})"
    counts = [f"{study.train_context:,}", str(len(costs)), str(len(study.rows))]
    lines.append([size, shown, *counts, f"{tokens / 1e6:,.1f}M", exponent(flops), minutes])
  return aligned_table(["size", "parameters", "T", "runs", "rows", "tokens", "FLOPs (PaLM)", "minutes (on)"], lines)


def run_table(study: Study, models: Mapping[str, ModelConfig], workdir: Path, states: Mapping[str, str]) -> str:
  """One line per run that is trained, for `--dry_run`; `states`: by run, how much of it is done."""
  starts = [run.init.checkpoint if isinstance(run, TrainConfig) and run.init else None for run in study.runs.values()]
  (kind, devices), lines = _devices_here(), []
  for cost in run_costs(study, models):
    feeds = starts.count(str(run_directory(workdir, cost.name)))
    numbers = [f"{cost.parameters:,}", f"{cost.steps:,}", f"{cost.tokens / 1e6:,.2f}M", exponent(cost.flops)]
    time = show_time(seconds(cost.flops, cost.per_token, kind, devices))
    lines.append([cost.name, cost.start, *numbers, time, str(feeds), states.get(cost.name, "to do")])
  return aligned_table(
    ["run", "starts from", "parameters", "steps", "tokens", "FLOPs (PaLM)", "time", "feeds runs", "state"], lines
  )


def show_time(took: float) -> str:
  """Seconds as minutes, hours, days or years, whichever reads best."""
  if math.isnan(took):
    return "unknown"
  name, unit, _ = next(known for known in UNITS if took < known[2])
  return f"{took / unit:,.1f} {name}"


def here() -> str:
  """The machine that a dry run estimates times for."""
  kind, count = jax.devices()[0].device_kind, jax.device_count()
  return SHOWN[kind] if kind == "cpu" or (kind in SHOWN and count == 1) else f"{count} x {kind}"
