"""Checks all speed goals on a CPU, our side and torch's in turns: which are met, and by how much.

`python -m experiments.benchmarks.cpu_goals --json=FILE [--only=NAME,NAME] [--rounds=N] [--before=CHECKOUT]`

It takes about 12 minutes on two cores, all of which it needs; the long text, which comes last, takes eight. Each
measurement is printed and kept as soon as it is there: a comparison of training steps, of generation or of the loss of
a long text, the answers of many processes of which none may be slow, and the seconds until a command has trained one
step. A goal is met if the median reaches it. Memory is the peak of each side's process, compiling included; that of
start-up is not measured.
`--before` is a checkout of an earlier version (`git worktree add ../before 725dc9e`), next to which start-up counts.
"""

import time
from collections.abc import Callable, Iterator

from absl import flags

from drope_jax import cli
from drope_jax.errors import ConfigError
from drope_jax.serialization import library_versions
from experiments.benchmarks.goals import HEADER, Figure, generation, line, long_text, record, start_up, starts, training
from experiments.benchmarks.measuring import Records, check_free, hardware

STARTS = flags.DEFINE_integer("starts", 12, "Processes that answer, one after the other.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", None, "Rounds of every comparison; by default 3 to 8.", lower_bound=1)
TEXT_ROUNDS = flags.DEFINE_integer("text_rounds", 3, "Rounds of the long text, of three minutes each.", lower_bound=1)
BEFORE = cli.define_path("before", None, "Checkout of an earlier version, whose start-up is measured too.")
JSON = cli.define_path("json", None, "Also write the figures to this file, which must not exist.", local=True)
JSONL = cli.define_path(
  "jsonl", None, "Also append each figure to this file, as one line: several runs may share it.", local=True
)


def _rounds(usual: int) -> int:
  return usual if ROUNDS.value is None else ROUNDS.value


MEASUREMENTS: dict[str, Callable[[], Iterator[Figure]]] = {
  "train_1m": lambda: training("1m", _rounds(8), 4, {"torch": 1.5, "torch_compiled": 1.25}),
  "decode_1m": lambda: generation("1m", _rounds(5), {"prefill": 1.0, "decode": 2.0}),
  "decode_30m": lambda: generation("30m", _rounds(4), {"prefill": 1.0, "decode": 1.2}),
  "train_30m": lambda: training("30m", _rounds(4), 2, {"torch": 1.0, "torch_compiled": 1.0}),
  "start_up": lambda: start_up(BEFORE.value, _rounds(3)),
  "starts": lambda: starts(STARTS.value),
  "text": lambda: long_text(TEXT_ROUNDS.value),
}

ONLY = cli.define_list("only", list(MEASUREMENTS), f"Any of {', '.join(MEASUREMENTS)}, in this order.")


def main() -> None:
  for name in ONLY.value:
    if name not in MEASUREMENTS:
      raise ConfigError(f"--only has {name!r}; allowed: {', '.join(MEASUREMENTS)}")
  check_free(JSON.value, JSONL.value)
  about = {"command": cli.command_line(), "hardware": hardware(), "versions": library_versions()}
  records = Records(JSON.value, JSONL.value, about)
  print(f"{about['command']}\n{about['hardware']}\n\n{HEADER}", flush=True)
  seconds = {}
  for name in ONLY.value:
    begin = time.monotonic()
    for figure in MEASUREMENTS[name]():
      print(line(figure), flush=True)
      records.add(record(figure))
    seconds[name] = time.monotonic() - begin
  print("\nseconds: " + ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.items()))


if __name__ == "__main__":
  cli.run(main)
