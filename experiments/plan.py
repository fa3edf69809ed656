"""What a study is made of, as declarations: its runs, the arms that they form, and the rows of its tables.

The files in experiments/studies/ return them, experiments/study.py carries them out, and the report reads them again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.data.sources import source_at
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import is_as_trained
from drope_jax.transitions import Keep, Transition


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that follow one another, each from the weights of the one before; one line of the loss plot."""

  label: str  # as the report calls it
  runs: tuple[str, ...]  # what the arm is, a control or a drop, follows from the config of the last


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the result tables: a run's last checkpoint under an inference-time method."""

  run: str  # a name of Study.runs
  method: str  # as --methods of experiments.evaluate
  label: str  # as the report calls it

  @property
  def plain(self) -> bool:
    """Whether the model is evaluated as it was trained."""
    return is_as_trained(self.method)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that stands in the place of a run: it is measured without training, under a transition."""

  checkpoint: str  # an imported model, or the workdir of a run, which may be an earlier one of the same study
  transition: Transition = Keep()
  model: ModelConfig | None = None  # what the checkpoint holds, for what may be asked before it is there

  def settled(self, directory: Path) -> "Pretrained":
    """This one with a transition that may depend on the weights, asked for when they are there.

    Args:
      directory: the run's own, to keep there what it takes long to find out.
    """
    return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalPlan:
  """What a study measures on, said before it is there: a call gives the EvalData, whose fields these are."""

  tokenizer: str  # as DataConfig.tokenizer
  dataset: str
  longest: int  # tokens
  num_documents: int = 24
  needles_per_depth: int = 40
  num_samples: int = 100
  limit: int | None = None
  block: int | None = None
  longbench: Path | None = None
  multiple_choice: Path | None = None
  seed: int = 0

  def __call__(self) -> EvalData:
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return EvalData(**fields | {"tokenizer": load_tokenizer(self.tokenizer)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What to prepare, train and measure."""

  title: str  # of the report
  seed: int  # of the runs and of what is measured
  train_context: int  # tokens
  prepare: Callable[[], None]  # makes the dataset below WORKDIR/data, if it is not there
  runs: Mapping[str, TrainConfig | Pretrained]  # in order: a run may start from the weights of an earlier one
  arms: Sequence[Arm]  # the lines of the loss plot
  rows: Sequence[Row]  # the rows of the tables
  lengths: Sequence[int]  # in tokens
  tasks: Sequence[str]  # see drope_jax.evaluate.tasks.make_tasks
  eval_data: Callable[[], EvalData]  # what it measures on; see EvalPlan
  spread: str = ""  # for the report: a sentence on how much other seeds differ, if that is known


def run_directory(workdir: Path, run: str) -> Path:
  """The workdir of a run of a study."""
  return workdir / "runs" / run


def needed_runs(study: Study, workdir: Path, only: Sequence[str]) -> list[str]:
  """These runs and those that they start from, in the order of the study; all of them if none is named."""
  for name in only:
    if name not in study.runs:
      raise ConfigError(f"--only has {name!r}; allowed: {', '.join(study.runs)}")
  by_path = {str(run_directory(workdir, name)): name for name in study.runs}
  needed, waiting = set(), list(only or study.runs)
  while waiting:
    name = waiting.pop()
    needed.add(name)
    run = study.runs[name]
    start = run.checkpoint if isinstance(run, Pretrained) else run.init.checkpoint if run.init else None
    if start in by_path and by_path[start] not in needed:
      waiting.append(by_path[start])
  return [name for name in study.runs if name in needed]


def require(settings: Any, **commands: str) -> None:
  """Raises ConfigError if the path in one of the named fields is not there, with the command that makes it."""
  for field, command in commands.items():
    path = getattr(settings, field)
    if not _is_there(path):
      raise ConfigError(f"{type(settings).__name__}.{field}: {path} is not there; `python -m {command}`")


def _is_there(path: str) -> bool:
  if Path(path).exists():
    return True
  try:
    source_at(path)  # a pattern, a bucket, a name of TFDS
  except ConfigError:
    return False
  return True


def reading(settings: Any, path: str) -> Any:
  """The settings with the documents at `path` for all runs and for the evaluation: what `--data` means.

  Settings say how by a method of this name; without one, their field `data` is set.

  Raises:
    ConfigError: nothing lies at `path`, or the study does not say what its data is.
  """
  source_at(path)
  if hasattr(settings, "reading"):
    return settings.reading(path)
  if "data" not in {field.name for field in dataclasses.fields(settings)}:
    name = type(settings).__name__
    raise ConfigError(f"--data: {name} has no field `data` and no method `reading`, so it chooses its data itself")
  return dataclasses.replace(settings, data=path)


def check_at_least_one(settings: Any, *fields: str) -> None:
  """Raises ConfigError naming the first of these fields that is below 1, or that holds nothing or a number below 1."""
  for field in fields:
    value = getattr(settings, field)
    if isinstance(value, tuple):
      if not value or min(value) < 1:
        raise ConfigError(f"{type(settings).__name__}.{field} is {value}; it needs whole numbers from 1 on")
    elif value < 1:
      raise ConfigError(f"{type(settings).__name__}.{field} is {value}; it must be at least 1")
