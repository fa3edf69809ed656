"""Measures any checkpoint with any method, at any length, on any task.

  python -m experiments.evaluate --checkpoint=runs/rope --out=measured --methods=rope,yarn --lengths=1x,4x

Figures are appended to OUT/results.jsonl (see drope_jax/evaluate/results.py), each with its number of samples and a
95 % bootstrap interval. A figure that is there is measured again only if its settings change. Generated answers are
kept in OUT/samples/.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drope_jax import checkpoint, cli
from drope_jax.cli.flags import import_modules
from drope_jax.data.prepare import check_outside
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.measure import evaluate, weights_of
from drope_jax.evaluate.methods import allowed_methods
from drope_jax.evaluate.subject import BATCH_TOKENS as DEFAULT_BATCH_TOKENS
from drope_jax.evaluate.tasks import DEFAULT, allowed_names, make_tasks
from drope_jax.files import check_folder
from drope_jax.sharding import make_mesh, using
from drope_jax.values import is_recorded_name
from drope_jax.workdir import run_name, sole_writer

CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a run, or an imported model.", required=True)
DATASET = cli.define_path("dataset", None, "Corpus to measure on; default: the corpus of the run.")
flags.DEFINE_alias("data", "dataset")
STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; its last by default.", lower_bound=0)
METHODS = cli.define_list(
  "methods",
  None,
  "Of drope_jax/evaluate/methods.py, as rope,yarn,yarn:8,yarn+0.1; default: all that suit the checkpoint.",
)
LENGTHS = cli.define_list("lengths", ["1x", "2x", "4x", "8x"], "Tokens, or multiples of the training context.")
TASK_LIST = cli.define_list("tasks", DEFAULT, f"Any of {allowed_names()}; a task of your own as module:Class.")
COEFFICIENT = cli.define_float("c", None, "c of beta = 1 + c ln s for method drope; default: fitted on split fit.")
DOCUMENTS = flags.DEFINE_integer("documents", 24, "Held-out documents to measure the loss on.", lower_bound=1)
CONCATENATE = flags.DEFINE_bool(
  "concatenate",
  False,
  "Join documents with EOS for the loss and the fit of c; otherwise only documents that are long enough are read.",
)
NEEDLES = flags.DEFINE_integer("needles_per_depth", 40, "Needle samples for each of five depths.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 100, "Samples of each RULER task and probe.", lower_bound=1)
HAYSTACK = cli.define_path(
  "haystack",
  None,
  "Text for RULER and the probes: a folder of .txt files, a file, or any dataset of data/sources/at.py; for a TFDS "
  "dataset DIR (its split heldout) or DIR:SPLIT; default: the prose of Python's own documentation.",
)
LIMIT = flags.DEFINE_integer(
  "limit", None, "Samples per data set (LongBench, multiple choice); default: all.", lower_bound=1
)
LONGBENCH = cli.define_path(
  "longbench", None, "Folder of LongBench's released files, such as musique.jsonl.", local=True
)
CHOICES = cli.define_path("multiple_choice", None, "Folder of arc_easy.jsonl, piqa.jsonl, ...", local=True)
BATCH_TOKENS = flags.DEFINE_integer(
  "batch_tokens", DEFAULT_BATCH_TOKENS, "Tokens on the device at a time; does not change any figure.", lower_bound=1
)
BOS = flags.DEFINE_bool("bos", None, "Begin texts and prompts with the tokenizer's BOS; default: as in training.")
MESH = cli.define_mesh("Devices, which share the samples or the length of each sample")
SEED = cli.define_seed("For drawing samples: needles, RULER and probes.")
OUT = cli.define_path("out", None, "Directory of results.jsonl.", required=True, local=True)


def parse_lengths(texts: Sequence[str], train_context: int) -> list[int]:
  """Lengths in tokens of texts such as "4x" (times the training context) or "512"."""
  lengths = []
  for text in texts:
    number, times = text.removesuffix("x"), train_context if text.endswith("x") else 1
    if not re.fullmatch("[0-9]+", number) or int(number) < 1:
      raise ConfigError(f"--lengths has {text!r}; allowed: tokens, as 512, or multiples of the training context, as 4x")
    lengths.append(int(number) * times)
  return lengths


def main() -> None:
  check_folder(Path(OUT.value), "--out")
  import_modules(name.partition(":")[0] for name in TASK_LIST.value if is_recorded_name(name))
  arranged = cli.mesh_config(MESH)
  mesh = None if arranged is None else make_mesh(arranged)
  with using(mesh), sole_writer(OUT.value, "results"):
    _evaluate(checkpoint.load(CHECKPOINT.value, STEP.value, mesh))


def _check_name(name: str, loaded: checkpoint.Checkpoint, out: Path) -> None:
  """Raises ConfigError if `out` has figures of another model of this name, which those of this one would replace."""
  settings = [result.settings or {} for result in results.read(out) if result.run == name]
  there = {one.get("weights") for one in settings if one.get("step") == loaded.step}
  if there and there != {weights_of(loaded)["weights"]}:
    raise ConfigError(
      f"--out: {out} has figures of another {name!r}, whose weights at step {loaded.step} are others; choose another "
      "folder, or another name for one of the two"
    )


def _evaluate(loaded: checkpoint.Checkpoint) -> None:
  lengths = parse_lengths(LENGTHS.value, loaded.context)
  dataset = DATASET.value or (loaded.config.data.dataset if loaded.config else "")
  check_outside(dataset, OUT.value, "--out")
  name, out = run_name(CHECKPOINT.value), Path(OUT.value) / "results.jsonl"
  _check_name(name, loaded, out)
  data = EvalData(
    tokenizer=load_tokenizer(CHECKPOINT.value),
    longest=max(lengths),
    dataset=dataset,
    num_documents=DOCUMENTS.value,
    concatenate=CONCATENATE.value,
    needles_per_depth=NEEDLES.value,
    num_samples=SAMPLES.value,
    limit=LIMIT.value,
    longbench=Path(LONGBENCH.value) if LONGBENCH.value else None,
    multiple_choice=Path(CHOICES.value) if CHOICES.value else None,
    haystack=HAYSTACK.value,
    seed=SEED.value,
  )
  evaluate(
    name,
    loaded,
    METHODS.value or allowed_methods(loaded.model),
    lengths,
    make_tasks(TASK_LIST.value, data),
    data,
    out,
    COEFFICIENT.value,
    command=cli.command_line(),
    batch_tokens=BATCH_TOKENS.value,
    bos=BOS.value if BOS.value is not None else bool(loaded.config and loaded.config.data.bos),
  )


if __name__ == "__main__":
  cli.run(main, computes=True, saves_memory="half of --batch_tokens, or of the longest of --lengths")
