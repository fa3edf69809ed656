"""Any checkpoint, any method, any length: loss by position and needles.

`python -m experiments.evaluate --checkpoint=DIR --out=DIR [--methods=rope,yarn --lengths=1x,4x --tasks=needles]`

Figures are appended to OUT/results.jsonl (see drope_jax/evaluate/results.py); what is there is not measured again.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drope_jax import checkpoint
from drope_jax.config import ConfigError
from drope_jax.evaluate.measure import TASKS, evaluate, load_data
from drope_jax.evaluate.methods import allowed_methods
from experiments import cli

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an imported model.", required=True)
DATASET = flags.DEFINE_string("dataset", None, "Corpus to measure on; that of the run by default.")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; its last by default.")
METHODS = flags.DEFINE_list(
  "methods", None, "Of drope_jax/evaluate/methods.py; default: all that the checkpoint allows."
)
LENGTHS = flags.DEFINE_list("lengths", ["1x", "2x", "4x", "8x"], "Tokens, or multiples of the training context.")
TASK_LIST = flags.DEFINE_list("tasks", list(TASKS), f"Any of {', '.join(TASKS)}.")
COEFFICIENT = flags.DEFINE_float("c", None, "c of beta = 1 + c ln s; fitted on the split `fit` by default.")
DOCUMENTS = flags.DEFINE_integer("documents", 24, "Held-out documents to measure the loss on.")
NEEDLES = flags.DEFINE_integer("needles_per_depth", 40, "Needle samples for each of five depths.")
SEED = flags.DEFINE_integer("seed", 0, "Of the needle samples.")
OUT = flags.DEFINE_string("out", None, "Directory of results.jsonl.", required=True)


def parse_lengths(texts: Sequence[str], train_context: int) -> list[int]:
  """Lengths in tokens of texts such as "4x" (times the training context) or "512"."""
  lengths = []
  for text in texts:
    number, times = text.removesuffix("x"), train_context if text.endswith("x") else 1
    if not number.isdigit() or int(number) < 1:
      raise ConfigError(f"--lengths has {text!r}; allowed: tokens, as 512, or multiples of the training context, as 4x")
    lengths.append(int(number) * times)
  return lengths


def main() -> None:
  loaded = checkpoint.load(CHECKPOINT.value, STEP.value)
  lengths = parse_lengths(LENGTHS.value, loaded.context)
  dataset = DATASET.value or (loaded.config.data.directory if loaded.config else None)
  if dataset is None:
    raise ConfigError(f"--dataset is needed: {CHECKPOINT.value} is an imported model, no run says what to measure on")
  data = load_data(
    dataset,
    CHECKPOINT.value,
    max(lengths),
    documents_per_task=DOCUMENTS.value,
    needles_per_depth=NEEDLES.value,
    seed=SEED.value,
  )
  out = Path(OUT.value)
  methods = METHODS.value or allowed_methods(loaded.model)
  name = Path(CHECKPOINT.value).resolve().name
  evaluate(name, loaded, methods, lengths, TASK_LIST.value, data, out / "results.jsonl", COEFFICIENT.value)


if __name__ == "__main__":
  cli.run(main)
