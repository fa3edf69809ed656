"""What a study consists of, as data: its runs, the arms that they form, the rows of its tables, and its own figures.

The files in experiments/studies/ declare studies, experiments/study.py runs them, and reports read arms and rows again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drope_jax.config import ModelConfig, TrainConfig
from drope_jax.data.sources import source_at
from drope_jax.data.tokenizers import Tokenizer, load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.evaluate.methods import is_as_trained
from drope_jax.transitions import Keep, Transition


@dataclasses.dataclass(frozen=True)
class Arm:
  """A chain of runs, each started from the weights of the one before; one line of the loss plot."""

  label: str  # in the report
  runs: tuple[str, ...]  # the config of the last says what the arm is, such as a control or a drop


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the result tables: a run's last checkpoint, measured with an inference-time method."""

  run: str  # a name in Study.runs
  method: str  # as in --methods of experiments.evaluate
  label: str  # in the report

  @property
  def plain(self) -> bool:
    """Whether the model is evaluated as it was trained."""
    return is_as_trained(self.method)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that is measured under a transition, without training; it takes the place of a run."""

  checkpoint: str  # an imported model, or the workdir of a run, which may be an earlier one of the same study
  transition: Transition = Keep()
  model: ModelConfig | None = None  # that the checkpoint holds, for studies that are planned before it exists

  def settled(self, directory: Path) -> "Pretrained":
    """Itself, with a transition that may depend on the weights; called when the weights exist.

    Args:
      directory: of the run, where results that take long to compute can be kept.
    """
    return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalPlan:
  """Fields of an EvalData whose files need not exist yet; calling it makes the EvalData."""

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


@dataclasses.dataclass(frozen=True)
class Figures:
  """Pictures that a study draws itself, besides those of every report; report.md shows them too."""

  captions: Mapping[str, str]  # by the names of the files, without their endings
  # Into a directory, in these formats; called when all runs are done. It writes its numbers first: a study whose
  # pictures are there is not drawn again.
  draw: Callable[[Path, Sequence[str]], None]
  check: Callable[[Tokenizer], None] = lambda tokenizer: None  # raises for what could not be drawn, before any training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What to prepare, train and measure."""

  title: str  # of the report
  seed: int  # of the runs and of the samples that are drawn
  train_context: int  # tokens
  prepare: Callable[[], None]  # makes the dataset, unless it exists
  runs: Mapping[str, TrainConfig | Pretrained]  # in order: a run may start from the weights of an earlier one
  arms: Sequence[Arm]  # the lines of the loss plot
  rows: Sequence[Row]  # the rows of the tables
  lengths: Sequence[int]  # in tokens
  # See drope_jax.evaluate.tasks.make_tasks. The first, usually the loss, is quick: it is measured for all runs before
  # the others, so that a study which is stopped has it for each row.
  tasks: Sequence[str]
  eval_data: Callable[[], EvalData]  # the data to measure on; see EvalPlan
  figures: Figures | None = None  # of its own, besides those of every report
  spread: str = ""  # for the report: a sentence on how much other seeds differ, if that is known


def figures_directory(workdir: Path) -> Path:
  """Where a study draws its own figures, apart from the pictures of its report."""
  return workdir / "figures"


def run_directory(workdir: Path, run: str) -> Path:
  """The workdir of a run of a study."""
  return workdir / "runs" / run


def teacher_of(run: TrainConfig) -> str | None:
  """The checkpoint of the frozen weights that a run's objective needs, unless the run itself starts from it."""
  whose = run.objective.frozen()
  return None if whose == "init" else whose


def _checkpoints_of(run: TrainConfig | Pretrained) -> list[str]:
  """The checkpoints that a run needs: the one that it starts from or measures, and that of its teacher."""
  if isinstance(run, Pretrained):
    return [run.checkpoint]
  return [path for path in (run.init and run.init.checkpoint, teacher_of(run)) if path]


def needed_runs(study: Study, workdir: Path, only: Sequence[str]) -> list[str]:
  """The named runs and those that they start from or learn from, in the order of the study; all runs if none is named.

  Raises:
    ConfigError: the study has no run of that name.
  """
  for name in only:
    if name not in study.runs:
      raise ConfigError(f"--only has {name!r}; allowed: {', '.join(study.runs) or 'nothing, as there are no runs'}")
  by_path = {str(run_directory(workdir, name)): name for name in study.runs}
  needed, waiting = set(), list(only or study.runs)
  while waiting:
    name = waiting.pop()
    needed.add(name)
    found = [by_path[path] for path in _checkpoints_of(study.runs[name]) if path in by_path]
    waiting += [one for one in found if one not in needed]
  return [name for name in study.runs if name in needed]


def require(settings: Any, **commands: str) -> None:
  """Raises ConfigError if the path in one of these fields does not exist, naming the command that makes it."""
  for field, command in commands.items():
    path = getattr(settings, field)
    if not _is_there(path):
      made = f"`python -m {command.replace('DIR', path)}` makes it"
      raise ConfigError(f"{type(settings).__name__}.{field}: {path} is not there; {made}")


def _is_there(path: str) -> bool:
  if Path(path).exists():
    return True
  try:
    source_at(path)  # a glob pattern, a bucket or a TFDS name
  except ConfigError:
    return False
  return True


def reading(settings: Any, path: str) -> Any:
  """The settings with the documents at `path` for all runs and the evaluation, as `--data` asks for.

  This calls the settings' method `reading`; if they have none, it sets their field `data`.

  Raises:
    ConfigError: there is nothing at `path`, or the settings have neither.
  """
  source_at(path)
  if hasattr(settings, "reading"):
    return settings.reading(path)
  if "data" not in {field.name for field in dataclasses.fields(settings)}:
    name = type(settings).__name__
    raise ConfigError(f"--data: {name} has no field `data` and no method `reading`, so it chooses its data itself")
  return dataclasses.replace(settings, data=path)


def check_at_least_one(settings: Any, *fields: str) -> None:
  """Raises ConfigError for a field that is below 1, or a tuple that is empty or contains a number below 1."""
  for field in fields:
    value = getattr(settings, field)
    if isinstance(value, tuple):
      if not value or min(value) < 1:
        raise ConfigError(f"{type(settings).__name__}.{field} is {value}; it needs numbers from 1 on")
    elif value < 1:
      raise ConfigError(f"{type(settings).__name__}.{field} is {value}; it must be at least 1")
