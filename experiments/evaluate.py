"""Any checkpoint, any method, any length, any task.

`python -m experiments.evaluate --checkpoint=DIR --out=DIR [--methods=rope,yarn --lengths=1x,4x --tasks=needles]`

Figures are appended to OUT/results.jsonl (see drope_jax/evaluate/results.py), each with its number of samples and a
95 % bootstrap interval; what is there is not measured again, unless with other settings. Generated answers are kept in
OUT/samples/.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drope_jax import checkpoint, cli
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import tasks
from drope_jax.evaluate.catalog import ALLOWED, DEFAULT, EvalData, make_tasks
from drope_jax.evaluate.measure import evaluate
from drope_jax.evaluate.methods import allowed_methods
from drope_jax.sharding import make_mesh, parse_mesh, using

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an imported model.", required=True)
DATASET = flags.DEFINE_string("dataset", None, "Corpus to measure on; that of the run by default.")
flags.DEFINE_alias("data", "dataset")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; its last by default.")
METHODS = flags.DEFINE_list(
  "methods",
  None,
  "Of drope_jax/evaluate/methods.py, as rope,yarn,yarn:8,yarn+0.1; default: all that the checkpoint allows.",
)
LENGTHS = flags.DEFINE_list("lengths", ["1x", "2x", "4x", "8x"], "Tokens, or multiples of the training context.")
TASK_LIST = flags.DEFINE_list("tasks", list(DEFAULT), f"Any of {ALLOWED}.")
COEFFICIENT = flags.DEFINE_float("c", None, "c of beta = 1 + c ln s of method drope; by default fitted on split fit.")
DOCUMENTS = flags.DEFINE_integer("documents", 24, "Held-out documents to measure the loss on.")
CONCATENATE = flags.DEFINE_bool(
  "concatenate", False, "Join documents, EOS between them, for the loss and the fit of c; else only long ones are read."
)
NEEDLES = flags.DEFINE_integer("needles_per_depth", 40, "Needle samples for each of five depths.")
SAMPLES = flags.DEFINE_integer("samples", 100, "Samples of each RULER task and probe.")
HAYSTACK = flags.DEFINE_string(
  "haystack",
  None,
  "Text for RULER and the probes: a folder of .txt files, a file, or a dataset, DIR (its split heldout) or DIR:SPLIT; "
  "default: prose from Python itself.",
)
LIMIT = flags.DEFINE_integer("limit", None, "Samples of each data set (LongBench, multiple choice); default: all.")
LONGBENCH = flags.DEFINE_string("longbench", None, "Folder of LongBench's released files, as musique.jsonl.")
CHOICES = flags.DEFINE_string("multiple_choice", None, "Folder of arc_easy.jsonl, piqa.jsonl, ...")
BATCH_TOKENS = flags.DEFINE_integer(
  "batch_tokens", tasks.BATCH_TOKENS, "Tokens on the device at one time; changes no figure."
)
BOS = flags.DEFINE_bool("bos", False, "Begin texts and prompts with the tokenizer's BOS, as the model was trained.")
MESH = flags.DEFINE_list(
  "mesh",
  [],
  "Devices along the axes of sharding.py, as data=4,context=2, or a preset: spreads samples, or their length.",
)
SEED = flags.DEFINE_integer("seed", 0, "Of the samples that are drawn: needles, RULER and probes.")
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
  mesh = make_mesh(parse_mesh(MESH.value)) if MESH.value else None
  with using(mesh):
    _evaluate(checkpoint.load(CHECKPOINT.value, STEP.value, mesh))


def _evaluate(loaded: checkpoint.Checkpoint) -> None:
  lengths = parse_lengths(LENGTHS.value, loaded.context)
  data = EvalData(
    tokenizer=load_tokenizer(CHECKPOINT.value),
    longest=max(lengths),
    dataset=DATASET.value or (loaded.config.data.source or loaded.config.data.directory if loaded.config else ""),
    num_documents=DOCUMENTS.value,
    concatenate=CONCATENATE.value,
    needles_per_depth=NEEDLES.value,
    num_samples=SAMPLES.value,
    limit=LIMIT.value,
    longbench=Path(LONGBENCH.value) if LONGBENCH.value else None,
    multiple_choice=Path(CHOICES.value) if CHOICES.value else None,
    haystack=Path(HAYSTACK.value) if HAYSTACK.value else None,
    seed=SEED.value,
  )
  evaluate(
    Path(CHECKPOINT.value).resolve().name,
    loaded,
    METHODS.value or allowed_methods(loaded.model),
    lengths,
    make_tasks(TASK_LIST.value, data),
    data,
    Path(OUT.value) / "results.jsonl",
    COEFFICIENT.value,
    command=cli.command_line(),
    batch_tokens=BATCH_TOKENS.value,
    bos=BOS.value,
  )


if __name__ == "__main__":
  cli.run(main)
