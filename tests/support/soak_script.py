"""A long run in a process of its own, watched: `python soak_script.py CORPUS WORKDIR STEPS`.

Prints one line of JSON, a list of [step, MiB in memory, open files, threads] for each thousand steps. They are counted
when the last save, at step 750 of the thousand, has ended, and before the next evaluation begins.
"""

import gc
import json
import os
import sys
from pathlib import Path

from support.tiny_run import tiny_model, tiny_run

from drope_jax import metrics
from drope_jax.train import train


def resident() -> float:
  """MiB of this process."""
  line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
  return int(line.split()[1]) / 1024


def main(corpus: str, workdir: Path, steps: int) -> None:
  config = tiny_run(
    corpus,
    model=tiny_model(d_model=8, num_layers=1, d_ff=8),
    steps=steps,
    log_every=20,
    checkpoint_every=250,
    eval_every=1_000,
    eval_documents=1,
  )
  seen: list[tuple[int, float, int, int]] = []
  write = metrics.JsonLines.write

  def watched(self: metrics.JsonLines, record: dict) -> None:
    write(self, record)
    if record["step"] % 1_000 == 980 and metrics.is_training(record):
      gc.collect()
      files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
      seen.append((record["step"], resident(), files, threads))

  metrics.JsonLines.write = watched  # type: ignore[method-assign]
  assert train(config, workdir) == (steps, True)
  print(json.dumps(seen))


if __name__ == "__main__":
  main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
