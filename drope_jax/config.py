"""Every setting of a model and of a run, as dataclasses.

`ModelConfig` defines the function, `ComputeConfig` how it is computed; a recalibration takes the first from a
checkpoint and chooses the second itself. Context length is in neither: it belongs to data and to evaluation.

The classes are mutable so that config files can set fields in place; `serialization.checked` rebuilds the config
afterwards, so that every check below applies to what will actually run.
"""

import dataclasses
from typing import Any

from drope_jax.data.sources import Source
from drope_jax.errors import MAY_BE_INFINITE, check, check_at_least, check_choice, check_finite
from drope_jax.model_config import ComputeConfig, MeshConfig, ModelConfig, QKNorm
from drope_jax.objective import NextToken, Objective
from drope_jax.optimizers import AdamW, Optimizer
from drope_jax.transitions import Drop, Transition
from drope_jax.values import Value, members


def _check_member(config: Any, field: str, kind: type[Value]) -> None:
  value = getattr(config, field)
  allowed = ", ".join(members(kind))
  check(isinstance(value, kind), f"{type(config).__name__}.{field} is {value!r}; allowed: {allowed}")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class DataConfig:
  """What a run trains on: documents, cut into rows of `context` + 1 tokens."""

  directory: str = ""  # path of the documents, of any kind that data/sources/at.py recognises
  split: str = "train"  # which split of `directory`, if it has splits
  source: Source | None = None  # instead of `directory`: an explicit source, for other columns, splits or mixtures
  tokenizer: str = "byte"  # "byte", the path of a tokenizer.json, or "init": the tokenizer of InitConfig.checkpoint
  context: int  # T, in tokens; the training context
  batch_size: int  # B, rows per optimizer step over all hosts
  document_mask: bool = False  # whether attention stops at document boundaries (the paper: it does not)
  bos: bool = False  # whether each document begins with BOS (as Llama 2, Mistral and Gemma were trained)
  min_tokens: int = 0  # shorter documents are skipped; EOS and BOS do not count
  max_tokens: int | None = None  # longer documents are skipped; None: no limit
  # How rows are cut. "interleave": from several documents that are read in turns. "windows": from flat token shards;
  # the position in the stream is then one integer, and batches do not depend on the number of hosts (data/windows.py).
  packing: str = "interleave"
  # Documents that are read in turns, over all hosts. None: chosen when the run starts, and recorded in its config.
  interleave: int | None = None
  # Seed of the order of documents and rows. None: TrainConfig.seed, but after `init` a higher seed than that run had;
  # it is recorded in the config.
  seed: int | None = None
  num_workers: int = 0  # grain worker processes; 0 reads in the training process

  def __post_init__(self) -> None:
    check_at_least(self, 1, "context", "batch_size")
    check_at_least(self, 0, "num_workers", "min_tokens")
    for field, least in (("max_tokens", max(1, self.min_tokens)), ("interleave", 1), ("seed", 0)):
      if getattr(self, field) is not None:
        check_at_least(self, least, field)
    check(self.seed is None or self.seed < 2**32, f"DataConfig.seed is {self.seed}; it must lie in [0, 2**32)")
    check_choice(self, "packing", ("interleave", "windows"))
    source, kinds = self.source, ", ".join(members(Source))
    check(source is None or isinstance(source, Source), f"DataConfig.source is {source!r}; allowed: {kinds}, None")
    check(
      not (self.directory and source),
      f"DataConfig has both directory ({self.directory}) and source ({source}); name one of them",
    )

  @property
  def dataset(self) -> Source | str:
    """Where the documents are, whichever field says so; empty if neither does."""
    return self.source or self.directory


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class OptimConfig:
  """The optimizer, its learning-rate schedule, and how gradients reach it."""

  peak_lr: float  # the highest learning rate, after the warmup
  optimizer: Optimizer = dataclasses.field(default_factory=AdamW)  # turns gradients into updates
  schedule: str = "cosine"  # "cosine", "wsd" (warmup, stable, linear decay) or "constant"; all warm up linearly
  warmup_steps: int = 0  # from a learning rate of 0 up to the peak
  decay_steps: int = 0  # "wsd" only: steps of the final decay
  floor: float | None = None  # final learning rate as a fraction of the peak; None: 0.1. Not for "constant"
  # Gradients are clipped to this global norm; inf: no clipping.
  clip_norm: float = dataclasses.field(default=1.0, metadata=MAY_BE_INFINITE)
  accumulation: int = 1  # micro-batches per optimizer step, weighted by their numbers of target tokens

  def __post_init__(self) -> None:
    check_finite(self)
    _check_member(self, "optimizer", Optimizer)
    check_choice(self, "schedule", ("cosine", "wsd", "constant"))
    check_at_least(self, 0, "peak_lr", "warmup_steps", "decay_steps")
    check_at_least(self, 1, "accumulation")
    if self.floor is not None:
      check(0 <= self.floor <= 1, f"OptimConfig.floor is {self.floor}; it must lie in [0, 1]")
      check(
        self.schedule != "constant", f"OptimConfig.floor is {self.floor}; schedule 'constant' never falls: leave it out"
      )
    check(self.clip_norm > 0, f"OptimConfig.clip_norm is {self.clip_norm}; it must be positive")
    check(
      (self.decay_steps > 0) == (self.schedule == "wsd"),
      f"OptimConfig.decay_steps is {self.decay_steps}; schedule 'wsd' needs it positive, the others leave it 0",
    )


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class InitConfig:
  """Weights from another run: the start of a recalibration, or of its control with the embedding kept."""

  checkpoint: str  # the other run's workdir
  # The checkpoint's model; filled in by the run. `drope_jax.aot` needs it if there is no checkpoint yet.
  model: ModelConfig | None = None
  source: str | None = None  # SavedStep.identity of the checkpoint; filled in by the run, so that it may be moved
  step: int | None = None  # which step; None: its last complete one
  transition: Transition = dataclasses.field(default_factory=Drop)  # what happens to its positional embedding
  qk_norm: QKNorm | None = None  # insert this norm, with weights of one
  token_shift: bool = False  # add this part (additions.py), which changes nothing until it is trained
  logn_scale: bool = False  # add this part, likewise
  keep_optimizer: bool = False  # carry the optimizer's moments over; the schedule starts again either way

  def __post_init__(self) -> None:
    check_finite(self)
    check(bool(self.checkpoint), "InitConfig.checkpoint is empty; it must be the workdir of a run or an imported model")
    _check_member(self, "transition", Transition)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class TrainConfig:
  """One run: from scratch if only `model` is given; with `init`, the model is derived from the checkpoint's."""

  model: ModelConfig | None = None  # trained from scratch; with `init` leave it None
  init: InitConfig | None = None  # the checkpoint to start from
  data: DataConfig  # documents, context and batch size
  objective: Objective = dataclasses.field(default_factory=NextToken)  # what is minimised
  optim: OptimConfig  # optimizer and learning-rate schedule
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)  # how the devices are arranged
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)  # dtype, kernels, rematerialisation
  steps: int  # optimizer steps in total
  seed: int = 0  # of the initial weights and of the order of the data
  log_every: int = 10  # steps between records of metrics.jsonl
  checkpoint_every: int = 500  # steps between checkpoints
  keep_latest: int = 2  # number of latest checkpoints to keep, in addition to those of keep_every
  keep_every: int | None = None  # checkpoints of steps that are multiples of this are kept for good; None: none
  log_norms: bool = False  # whether records include the norms of the parameters and of their updates
  eval_every: int | None = None  # steps between losses on the split `heldout`, also at start and end; None: no losses
  eval_documents: int = 16  # documents of the split `heldout` that those losses are measured on
  eval_extensions: tuple[int, ...] = (1,)  # multiples of the training context at which they are measured
  # Updates of the whole run that may be skipped because a loss, gradient or update is not finite: such a step leaves
  # the weights and the optimizer's state unchanged. One more ends the run.
  skip_updates: int = 0
  profile_steps: int = 0  # steps to trace into `profile/` of the workdir, after the first two of a start
  # In addition to metrics.jsonl: "tensorboard" (if tensorboardX is installed), "wandb".
  trackers: tuple[str, ...] = ("tensorboard",)

  def __post_init__(self) -> None:
    check_finite(self)
    check(
      self.model is not None or self.init is not None,
      "TrainConfig needs model (train from scratch) or init (start from a checkpoint's weights)",
    )
    check(
      self.data.tokenizer != "init" or self.init is not None,
      "DataConfig.tokenizer is 'init', which needs TrainConfig.init; name a tokenizer.json, or 'byte'",
    )
    check(0 <= self.seed < 2**32, f"TrainConfig.seed is {self.seed}; it must lie in [0, 2**32)")
    _check_member(self, "objective", Objective)
    check(
      self.objective.frozen() != "init" or self.init is not None,
      f"TrainConfig.objective is {self.objective}, whose teacher is that of TrainConfig.init; there is none",
    )
    check_at_least(self, 1, "steps", "log_every", "checkpoint_every", "keep_latest", "eval_documents")
    check_at_least(self, 0, "profile_steps", "skip_updates")
    for field in ("keep_every", "eval_every"):
      if getattr(self, field) is not None:
        check_at_least(self, 1, field)
    extensions = self.eval_extensions
    check(
      bool(extensions) and min(extensions, default=0) >= 1 and len(set(extensions)) == len(extensions),
      f"TrainConfig.eval_extensions is {extensions}; it must hold different numbers, each at least 1",
    )
    check(
      self.data.batch_size % self.optim.accumulation == 0,
      f"OptimConfig.accumulation is {self.optim.accumulation}; "
      f"it must divide DataConfig.batch_size ({self.data.batch_size})",
    )
    check(
      self.optim.warmup_steps + self.optim.decay_steps <= self.steps,
      f"OptimConfig.warmup_steps + decay_steps is {self.optim.warmup_steps + self.optim.decay_steps}; "
      f"it must not exceed TrainConfig.steps ({self.steps}); lower --config.optim.warmup_steps or decay_steps",
    )
    for tracker in self.trackers:
      check(tracker in ("tensorboard", "wandb"), f"TrainConfig.trackers has {tracker!r}; allowed: tensorboard, wandb")
