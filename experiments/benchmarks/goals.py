"""The goals of speed on a CPU: what is measured for each, and how a figure is shown and kept (cpu_goals.py)."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from drope_jax.data.corpus import build_corpus
from drope_jax.errors import ConfigError
from drope_jax.serialization import to_dict
from experiments.benchmarks.measuring import Side, Spread, Worker, in_turns, ratios, spread
from experiments.benchmarks.shapes import shape_named
from experiments.benchmarks.sides import MODULES, training_jobs

TEXT = 16_384  # tokens of the long text
PROMPT, ANSWER = 256, 128  # tokens


class Goal(NamedTuple):
  """A bound that a measurement must reach, or must not exceed."""

  what: str
  bound: float | None  # None: it is measured, and nothing is asked of it
  at_least: bool = True

  def met(self, found: Spread) -> bool | None:
    if self.bound is None:
      return None
    return found.median >= self.bound if self.at_least else found.median <= self.bound


class Figure(NamedTuple):
  """A measured figure of a goal, with what its ratio was made of."""

  goal: Goal
  found: Spread
  rounds: int  # that `found` is of
  memory: dict[str, int]  # by side: the peak of its process, in bytes, compiling included
  details: dict[str, Any]


def training(shape_name: str, rounds: int, steps: int, goals: dict[str, float]) -> Iterator[Figure]:
  """Speed of a training step relative to both of torch's."""
  shape = shape_named(shape_name)
  sides = checked(
    in_turns(training_jobs(shape, ["ours", *goals], "cpu", {"scan_layers": False}), rounds, {"steps": steps})
  )
  speeds = {
    name: [shape.batch_size * shape.context / seconds for seconds in side.values("seconds")]
    for name, side in sides.items()
  }
  for name, bound in goals.items():
    details = {side: {"tokens_per_second": spread(speeds[side])._asdict()} for side in ("ours", name)}
    found = ratios(speeds["ours"], speeds[name])
    yield Figure(
      Goal(f"training step, {shape_name}, × {name}", bound), found, rounds, peaks(sides, "ours", name), details
    )


def generation(shape_name: str, rounds: int, goals: dict[str, float]) -> Iterator[Figure]:
  """Speed of reading a prompt and of answering, relative to transformers."""
  sides = checked(
    in_turns({name: (f"{module}:generation", one_prompt(shape_name)) for name, module in MODULES.items()}, rounds, {})
  )
  for part, bound in goals.items():
    own, theirs = (sides[name].values(part) for name in MODULES)
    details = {name: {"seconds": spread(side.values(part))._asdict()} for name, side in sides.items()}
    goal = Goal(f"{part}, {shape_name}, × torch", bound)
    yield Figure(goal, ratios(theirs, own), rounds, peaks(sides, *MODULES), details)


def starts(count: int, shape_name: str = "1m") -> Iterator[Figure]:
  """Of `count` processes, the slowest at answering relative to their median."""
  speeds, faults, memory = [], [], []
  for _ in range(count):
    with Worker(f"{MODULES['ours']}:generation", **one_prompt(shape_name)) as worker:
      rounds = [worker.measure() for _ in range(3)]
    speeds.append(ANSWER / min(one["decode"] for one in rounds))
    faults.append([one["page_faults"] for one in rounds])
    memory += [one["memory"] for one in rounds]
  found = spread(speeds)
  details = {"tokens_per_second": speeds, "page_faults": faults}
  goal = Goal(f"decode, {shape_name}, slowest of {count} starts / median", 0.8)
  yield Figure(goal, once(found.least / found.median), count, {"ours": max(memory)}, details)


def one_prompt(shape_name: str) -> dict[str, Any]:
  """Arguments of the workers that generate."""
  return {"model": to_dict(shape_named(shape_name).model), "batch_size": 1, "prompt": PROMPT, "new_tokens": ANSWER}


def long_text(rounds: int, shape_name: str = "smollm2_135m", length: int = TEXT) -> Iterator[Figure]:
  """Speed and memory of the loss of one text, relative to transformers."""
  arguments = {"model": to_dict(shape_named(shape_name).model), "directory": None, "length": length}
  sides = checked(
    in_turns({name: (f"{module}:loss_of_a_text", arguments) for name, module in MODULES.items()}, rounds, {})
  )
  memory, what = peaks(sides, *MODULES), f"loss of {length:,} tokens, {shape_name}, × torch"
  details = {name: {"seconds": spread(side.values("seconds"))._asdict()} for name, side in sides.items()}
  own, theirs = (sides[name].values("seconds") for name in MODULES)
  yield Figure(Goal(what, 1.2), ratios(theirs, own), rounds, memory, details)
  share = once(memory["ours"] / memory["torch"])
  yield Figure(Goal(f"{what}, memory", 0.5, at_least=False), share, rounds, memory, details)


def peaks(sides: dict[str, Side], *names: str) -> dict[str, int]:
  """Bytes: the memory peak of the process of each side."""
  return {name: int(max(sides[name].values("memory"))) for name in names}


def once(value: float) -> Spread:
  """A figure that is not one of several rounds."""
  return Spread(value, value, value)


TRAINED_ON = "A model reads a text, and then the positions of its words are dropped. " * 8
ONE_STEP = """
from drope_jax.config import ComputeConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config():
  sizes = dict(d_model=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32, d_ff=384)
  return TrainConfig(
    model=ModelConfig(vocab_size=1024, **sizes),
    data=DataConfig(directory={directory!r}, context=128, batch_size=32),
    optim=OptimConfig(peak_lr=1e-3, schedule="constant"),
    compute=ComputeConfig(scan_layers=False),
    steps=1,
    trackers=(),
  )
"""


def start_up(before: str | None, rounds: int) -> Iterator[Figure]:
  """Seconds of importing the library, and of a command that trains one step of the 0.98M model and saves it.

  Its first run, which compiles, is left out. With `before`, a checkout of an earlier version, the two take turns.
  """
  sides = {"now": Path(__file__).parents[2]} | ({} if before is None else {"before": Path(before)})
  with tempfile.TemporaryDirectory() as folder:
    directory = build_corpus(Path(folder) / "data", {"train": [TRAINED_ON] * 400})
    config = Path(folder) / "one_step.py"
    config.write_text(ONE_STEP.format(directory=str(directory)))

    def seconds(side: str, *command: str) -> float:
      environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache_{side}"}
      environment.pop("PYTHONPATH", None)
      begin = time.perf_counter()
      subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=sides[side], env=environment)
      return time.perf_counter() - begin

    def one_step(side: str, number: int) -> float:
      return seconds(side, "-m", "experiments.train", f"--config={config}", f"--workdir={folder}/{side}_{number}")

    imports = {side: [seconds(side, "-c", "import drope_jax") for _ in range(rounds)] for side in sides}
    first = {side: one_step(side, 0) for side in sides}
    steps: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
      for side in sides:
        steps[side].append(one_step(side, number))
  for what, found in (("import drope_jax", imports), ("one step trained and saved", steps)):
    details = {side: {"seconds": spread(values)._asdict(), "first": first[side]} for side, values in found.items()}
    yield Figure(Goal(f"{what}, seconds", None, at_least=False), spread(found["now"]), rounds, {}, details)
    if before is not None:
      ratio = ratios(found["now"], found["before"])
      yield Figure(Goal(f"{what}, × before", 0.5, at_least=False), ratio, rounds, {}, details)


def checked(sides: dict[str, Side]) -> dict[str, Side]:
  """The sides. Raises ConfigError if one could not be measured."""
  for name, side in sides.items():
    if side.failure is not None:
      raise ConfigError(f"{name} did not run: {side.failure}")
  return sides


HEADER = "| what | goal | found (least to greatest) | | memory peak |\n|:--|--:|--:|:--|--:|"


def line(figure: Figure) -> str:
  """A row of the table."""
  goal = "" if figure.goal.bound is None else f"{'≥' if figure.goal.at_least else '≤'} {figure.goal.bound:g}"
  met = {None: "", True: "met", False: "missed"}[figure.goal.met(figure.found)]
  found, single = figure.found.show(2), figure.found.least == figure.found.greatest
  if single:
    found = f"{figure.found.median:,.2f}" + (" (one round)" if figure.rounds == 1 else "")
  memory = ", ".join(f"{name.replace('_', ' ')} {peak / 2**30:.2f} GiB" for name, peak in figure.memory.items())
  return f"| {figure.goal.what} | {goal} | {found} | {met} | {memory} |"


def record(figure: Figure) -> dict[str, Any]:
  """What is kept of a figure."""
  goal, more = figure.goal, {"rounds": figure.rounds, "memory": figure.memory}
  return {**goal._asdict(), **figure.found._asdict(), "met": goal.met(figure.found), **more, **figure.details}
