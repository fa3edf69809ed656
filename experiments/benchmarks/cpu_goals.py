"""Checks all speed goals on a CPU, our side and torch's in turns: which are met, and by how much.

`python -m experiments.benchmarks.cpu_goals --jsonl=FILE [--only=NAME,NAME] [--starts=12] [--before=CHECKOUT]`

This takes about 15 minutes on two otherwise idle cores. Measurements are printed and kept as they come: training steps,
generation and the loss of a long text against torch, generation in many processes, none of which may be slow, and the
seconds that a command takes to train one step. A goal is met if the median reaches it. `--before` is a checkout of an
earlier version (`git worktree add ../before 725dc9e`) to compare the start-up time with.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from drope_jax import cli
from drope_jax.data.corpus import build_corpus
from drope_jax.errors import ConfigError
from drope_jax.files import check_file
from drope_jax.serialization import library_versions, to_dict
from experiments.benchmarks.measuring import SIDES, Side, Spread, Worker, hardware, in_turns, ratios, spread
from experiments.benchmarks.shapes import shape_named
from experiments.benchmarks.train_step import jobs

TEXT = 16_384  # tokens of the long text
PROMPT, ANSWER = 256, 128  # tokens


class Goal(NamedTuple):
  """A bound that a measurement must reach, or must not exceed."""

  what: str
  bound: float
  at_least: bool = True

  def met(self, found: Spread) -> bool:
    return found.median >= self.bound if self.at_least else found.median <= self.bound


class Figure(NamedTuple):
  """A measurement for a goal, with the values that its ratio was made from."""

  goal: Goal
  found: Spread
  details: dict[str, Any]


def training(shape_name: str, rounds: int, steps: int, goals: dict[str, float]) -> Iterator[Figure]:
  """Speed of a training step relative to torch's, compiled and not."""
  shape = shape_named(shape_name)
  sides = checked(in_turns(jobs(shape, ["ours", *goals], "cpu", {"scan_layers": False}), rounds, {"steps": steps}))
  speeds = {
    name: [shape.batch_size * shape.context / seconds for seconds in side.values("seconds")]
    for name, side in sides.items()
  }
  for name, bound in goals.items():
    details = {side: {"tokens_per_second": spread(speeds[side])._asdict()} for side in ("ours", name)}
    yield Figure(Goal(f"training step, {shape_name}, × {name}", bound), ratios(speeds["ours"], speeds[name]), details)


def generation(shape_name: str, rounds: int, goals: dict[str, float]) -> Iterator[Figure]:
  """Speed of reading a prompt and of answering, relative to transformers."""
  arguments = {"model": to_dict(shape_named(shape_name).model), "batch_size": 1, "prompt": PROMPT, "new_tokens": ANSWER}
  sides = checked(in_turns({name: (f"{module}:generation", arguments) for name, module in SIDES.items()}, rounds, {}))
  for part, bound in goals.items():
    own, theirs = (sides[name].values(part) for name in SIDES)
    details = {name: {"seconds": spread(side.values(part))._asdict()} for name, side in sides.items()}
    yield Figure(Goal(f"{part}, {shape_name}, × torch", bound), ratios(theirs, own), details)


def starts(count: int, shape_name: str = "1m") -> Iterator[Figure]:
  """Generation speed in the slowest of `count` processes, relative to their median."""
  arguments = {"model": to_dict(shape_named(shape_name).model), "batch_size": 1, "prompt": PROMPT, "new_tokens": ANSWER}
  speeds, faults = [], []
  for _ in range(count):
    with Worker(f"{SIDES['ours']}:generation", **arguments) as worker:
      rounds = [worker.measure() for _ in range(3)]
    speeds.append(ANSWER / min(one["decode"] for one in rounds))
    faults.append([one["page_faults"] for one in rounds])
  found = spread(speeds)
  share = found.least / found.median
  details = {"tokens_per_second": speeds, "page_faults": faults}
  yield Figure(Goal(f"decode, {shape_name}, slowest of {count} starts / median", 0.8), Spread(*(share,) * 3), details)


def long_text() -> Iterator[Figure]:
  """Speed and memory of the loss of one text, relative to transformers; the sides run one after the other."""
  arguments = {"model": to_dict(shape_named("smollm2_135m").model), "directory": None, "length": TEXT}
  sides: dict[str, Side] = {}
  for name, module in SIDES.items():
    sides |= checked(in_turns({name: (f"{module}:loss_of_a_text", arguments)}, 1, {}))
  seconds, memory = ({name: side.values(field)[0] for name, side in sides.items()} for field in ("seconds", "memory"))
  details = {name: {"seconds": seconds[name], "memory": memory[name]} for name in SIDES}
  for what, values, goal in (("", seconds, (1.2, True)), (", memory", memory, (0.5, False))):
    ratio = values["torch"] / values["ours"] if goal[1] else values["ours"] / values["torch"]
    text = f"loss of {TEXT:,} tokens, smollm2_135m, × torch{what}"
    yield Figure(Goal(text, *goal), Spread(*(ratio,) * 3), details)


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


def start_up(before: str | None, rounds: int = 3) -> Iterator[Figure]:
  """Seconds to import the library, and seconds of a command that trains the 0.98M model for one step and saves it.

  The first run, which compiles, is left out. With `before`, a checkout of an earlier version, the two take turns.
  """
  sides = {"now": Path(__file__).parents[2]} | ({} if before is None else {"before": Path(before)})
  with tempfile.TemporaryDirectory() as folder:
    directory = build_corpus(Path(folder) / "data", {"train": [__doc__] * 400})
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
    yield Figure(Goal(f"{what}, seconds", math.inf, at_least=False), spread(found["now"]), details)
    if before is not None:
      yield Figure(Goal(f"{what}, × before", 0.5, at_least=False), ratios(found["now"], found["before"]), details)


def checked(sides: dict[str, Side]) -> dict[str, Side]:
  """The sides. Raises ConfigError if one could not be measured."""
  for name, side in sides.items():
    if side.failure is not None:
      raise ConfigError(f"{name} did not run: {side.failure}")
  return sides


STARTS = flags.DEFINE_integer("starts", 12, "Number of processes that generate, one after the other.", lower_bound=2)
BEFORE = cli.define_path("before", None, "Checkout of an earlier version to compare start-up with.")
JSONL = cli.define_path("jsonl", None, "File to which one record per figure is appended.", local=True)

MEASUREMENTS: dict[str, Callable[[], Iterator[Figure]]] = {
  "train_1m": lambda: training("1m", 8, 4, {"torch": 1.5, "torch_compiled": 1.25}),
  "decode_1m": lambda: generation("1m", 5, {"prefill": 1.0, "decode": 2.0}),
  "decode_30m": lambda: generation("30m", 4, {"prefill": 1.0, "decode": 1.2}),
  "train_30m": lambda: training("30m", 4, 2, {"torch": 1.0, "torch_compiled": 1.0}),
  "start_up": lambda: start_up(BEFORE.value),
  "starts": lambda: starts(STARTS.value),
  "text": long_text,
}

ONLY = cli.define_list("only", list(MEASUREMENTS), f"Any of {', '.join(MEASUREMENTS)}, in this order.")


def line(figure: Figure) -> str:
  """A row of the table."""
  without = math.isinf(figure.goal.bound)
  goal = "" if without else f"{'≥' if figure.goal.at_least else '≤'} {figure.goal.bound:g}"
  met = "" if without else "met" if figure.goal.met(figure.found) else "missed"
  return f"| {figure.goal.what} | {goal} | {figure.found.show(2)} | {met} |"


def main() -> None:
  for name in ONLY.value:
    if name not in MEASUREMENTS:
      raise ConfigError(f"--only has {name!r}; allowed: {', '.join(MEASUREMENTS)}")
  if JSONL.value is not None:
    check_file(Path(JSONL.value), "--jsonl")
  about = {"command": cli.command_line(), "hardware": hardware(), "versions": library_versions()}
  print(f"{about['command']}\n{about['hardware']}\n")
  print("| what | goal | found (least to greatest) | |\n|:--|--:|--:|:--|", flush=True)
  for name in ONLY.value:
    for figure in MEASUREMENTS[name]():
      print(line(figure), flush=True)
      record = {**figure.goal._asdict(), **figure.found._asdict(), "met": figure.goal.met(figure.found)}
      if JSONL.value is not None:
        with open(JSONL.value, "a") as file:
          file.write(json.dumps({**record, **figure.details, **about}) + "\n")


if __name__ == "__main__":
  cli.run(main)
