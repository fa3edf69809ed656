"""What the tests of training share: a corpus, and runs so small that most of their time is compilation."""

import dataclasses
import json
import random
from pathlib import Path

from drope_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents

WORDS = [
  "the",
  "model",
  "drops",
  "its",
  "positions",
  "and",
  "reads",
  "a",
  "longer",
  "text",
  "than",
  "it",
  "has",
  "seen",
]


def tiny_model(**changes) -> ModelConfig:
  sizes = {"d_model": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "d_ff": 24}
  return ModelConfig(**{"vocab_size": 264, **sizes, **changes})  # 264: divisible by the meshes, above the bytes' 257


def tiny_corpus(directory: Path, seed: int = 0) -> str:
  """Documents of 10 to 60 bytes: some end within a row of 17 tokens, others do not."""
  rng = random.Random(seed)
  texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 10))) for _ in range(80)]
  return str(build_corpus(directory, {"train": texts}))


def evaluated_corpus(unevaluated: str, directory: Path) -> str:
  """A `tiny_corpus`, with splits `heldout` and `fit` added whose documents are long enough to measure on."""
  training = list(documents(unevaluated, "train"))
  prose = ["\n".join(training[part::8]) for part in range(8)]
  return str(build_corpus(directory, {"train": training, "heldout": prose[:4], "fit": prose[4:]}))


def tiny_run(corpus: str, *, data=None, optim=None, **changes) -> TrainConfig:
  """A run of 10 steps with a record per step and checkpoints at steps 5 and 10."""
  fields = {"steps": 10, "log_every": 1, "checkpoint_every": 5, "trackers": ()}
  if "init" not in changes:
    fields["model"] = tiny_model()
  return TrainConfig(
    data=DataConfig(**{"directory": corpus, "context": 16, "batch_size": 8, **(data or {})}),
    optim=OptimConfig(**{"peak_lr": 1e-2, "warmup_steps": 2, **(optim or {})}),
    **{**fields, **changes},
  )


def records(workdir: Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[tuple[int, float]]:
  return [(record["step"], record["loss"]) for record in records(workdir)]


def contents(directory: Path) -> dict[str, bytes]:
  """Every file below `directory`."""
  return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def with_model(config: TrainConfig, **changes) -> TrainConfig:
  assert config.model is not None
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
