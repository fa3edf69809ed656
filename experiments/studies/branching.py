"""What most studies share: a trunk with RoPE, runs that branch off from it, their data, and what is measured.

A study lists its `Branch`es; `BranchingStudy` turns them into runs, arms and rows. sizes.py has the settings of each
size. All runs that start from the trunk see the same batches in the same order, with a fresh optimizer by default.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from drope_jax.config import (
  ComputeConfig,
  DataConfig,
  InitConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  QKNorm,
  TrainConfig,
)
from drope_jax.data.corpus import is_built
from drope_jax.data.sources import TFDS, Splits, Tokens
from drope_jax.data.sources.tokens import META
from drope_jax.data.token_shards import write_shards
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.positions import Positions
from drope_jax.transitions import Keep, Transition
from experiments import recall_corpus
from experiments.models import run_models
from experiments.plan import Arm, EvalPlan, Pretrained, Row, Study, check_at_least_one, require, run_directory
from experiments.studies import quickstart
from experiments.studies.quickstart import DOCSTRINGS

SCHEDULES = ("cosine", "wsd")
TRUNK = "trunk"
TOKENS = "tokens"  # the folder of a tokenised corpus, beside the corpus
KEPT, DROPPED, PARTIAL = ("rope", "ntk", "yarn"), ("nope", "drope"), ("rope", "yarn")  # methods of models of each kind
_SUFFIXES = {
  "pi": " + PI",
  "ntk": " + NTK",
  "yarn": " + YaRN",
  "dynamic_ntk": " + dynamic NTK",
  "dynamic_yarn": " + dynamic YaRN",
  "crop": ", cropped",
  "nope": ", β = 1",
  "drope": ", fitted β",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
  """A run of a study, and how it is measured."""

  run: str  # its name
  label: str
  methods: tuple[str, ...] = ()  # one row each
  start: str | None = TRUNK  # the run whose weights it starts from; None: scratch
  transition: Transition = dataclasses.field(default_factory=Keep)
  positions: Positions = None  # of a run from scratch
  steps: int | None = None  # None: those of a tail, or of trunk and tail for a run from scratch; 0: no training
  is_trunk: bool = False  # whether a run from scratch has the trunk's steps and schedule, for others to start from it
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of TrainConfig
  init: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of InitConfig
  optim: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of OptimConfig

  def rows(self) -> list[Row]:
    return [Row(self.run, method, self.label + method_suffix(method)) for method in self.methods]


def method_suffix(method: str) -> str:
  """What a method adds to the label of a row; a number after a plus, or drope's, is the c of a temperature."""
  name, plus, c = method.replace("drope:", "drope+").partition("+")
  if not plus:
    return _SUFFIXES.get(name, "")
  return ("" if name == "drope" else _SUFFIXES.get(name, "")) + f", β = 1 + {c}·ln s"


def tail(run: str, label: str, transition: Transition, methods: Sequence[str] = (), **more: Any) -> Branch:
  """A run from the weights of the trunk, or of `start`."""
  return Branch(run=run, label=label, transition=transition, methods=tuple(methods), **more)


def scratch(run: str, label: str, positions: Positions, methods: Sequence[str] = (), **more: Any) -> Branch:
  """A run from scratch, with as many steps as trunk and tail have together."""
  return Branch(run=run, label=label, start=None, positions=positions, methods=tuple(methods), **more)


def control(methods: Sequence[str] = KEPT) -> Branch:
  """RoPE continued, on the same tokens as every other tail."""
  return tail("control", "RoPE, continued", Keep(), methods)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class BranchingStudy:
  """The settings, as `--config.NAME=VALUE`. A study derives from this class and defines `branches`."""

  title: ClassVar[str]

  model: ModelConfig  # of the trunk
  context: int  # tokens
  batch_size: int
  trunk_steps: int
  tail_steps: int
  schedule: str = "cosine"  # for trunk and tails; "wsd": a constant rate for the trunk, a decay to zero for each tail
  peak_lr: float
  tail_lr: float
  warmup_steps: int  # of the trunk; at most a tenth of its steps
  tail_warmup_steps: int  # likewise
  qk_norm: bool = False  # inserted in all runs that are trained from the trunk
  checkpoint: str = ""  # an imported model with the config `model`, used instead of a trunk
  # A folder with `corpus` and `tokenizer`, made if it does not exist; "": WORKDIR/data. With `checkpoint`, whose
  # tokenizer is used: a dataset.
  data: str = ""
  text: str = ""  # what the corpus is made from: "docstrings", or a dataset of prose; "": the corpus must exist
  num_workers: int = 0  # processes that read data
  tokenize: bool = False  # once, into `data`/tokens, for models that train faster than a process tokenises
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  extensions: tuple[float, ...] = (1, 4, 8)  # multiples of the context
  tasks: tuple[str, ...] = ("perplexity", "needles")
  documents: int = 24  # held out, to measure the loss on
  budgets: int = 5  # number of measurements of the loss in context during a run, for its curve
  needles_per_depth: int = 40  # prompts at each of five depths
  samples: int = 100  # per task that generates its samples
  longbench: str = ""  # folder of LongBench's released files, for its tasks
  multiple_choice: str = ""  # folder of the files of multiple-choice tasks
  seed: int = 0

  def __post_init__(self) -> None:
    counts = ("documents", "budgets", "needles_per_depth", "samples")
    check_at_least_one(self, "trunk_steps", "tail_steps", "extensions", *counts)
    if self.schedule not in SCHEDULES:
      raise ConfigError(f"{type(self).__name__}.schedule is {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")

  def branches(self) -> Sequence[Branch]:
    """The runs besides the trunk, in order: each may start from an earlier one."""
    raise NotImplementedError

  def reading(self, path: str) -> Self:
    """The settings with the documents at `path`, of which a corpus is made in the workdir."""
    return dataclasses.replace(self, text=path, data="")

  def study(self, workdir: Path) -> Study:
    data = self._data(workdir)
    lengths = [round(extension * self.context) for extension in self.extensions]
    branches = self.branches()
    runs: dict[str, TrainConfig | Pretrained] = {}
    if any(branch.start == TRUNK for branch in branches) and not self.checkpoint:
      trunk = scratch(TRUNK, "trunk", self.model.positions, is_trunk=True)
      runs[TRUNK] = self._scratch(trunk, data)
    runs |= {branch.run: self._run(branch, data, workdir) for branch in branches}
    return Study(
      title=self.title,
      seed=self.seed,
      train_context=self.context,
      prepare=lambda: self._prepare(workdir),
      runs=runs,
      arms=[Arm(branch.label, self._chain(branch, branches)) for branch in branches if not branch.is_trunk],
      rows=[row for branch in branches for row in branch.rows()],
      lengths=lengths,
      tasks=self.tasks,
      eval_data=EvalPlan(
        tokenizer=self.checkpoint or data.tokenizer,
        dataset=self.corpus(workdir),
        longest=max(lengths),
        num_documents=self.documents,
        needles_per_depth=self.needles_per_depth,
        num_samples=self.samples,
        longbench=Path(self.longbench) if self.longbench else None,
        multiple_choice=Path(self.multiple_choice) if self.multiple_choice else None,
        seed=self.seed,
      ),
    )

  def run(self, name: str) -> TrainConfig:
    """The config of one run, which can be compiled before the weights that it starts from exist."""
    workdir = Path("runs/study")
    study = self.study(workdir)
    config = study.runs.get(name)
    if not isinstance(config, TrainConfig):
      trained = ", ".join(name for name, run in study.runs.items() if isinstance(run, TrainConfig))
      raise ConfigError(f"{type(self).__name__} has no run {name!r}; allowed: {trained}")
    if config.init is None or config.init.model is not None:
      return config
    models = {str(run_directory(workdir, run)): model for run, model in run_models(study, workdir).items()}
    return dataclasses.replace(config, init=dataclasses.replace(config.init, model=models[config.init.checkpoint]))

  def corpus(self, workdir: Path) -> str:
    """The path of the text that the study trains and measures on."""
    return self.data if self.checkpoint else str(self._folder(workdir) / "corpus")

  def _folder(self, workdir: Path) -> Path:
    return Path(self.data) if self.data else workdir / "data"

  def _data(self, workdir: Path) -> DataConfig:
    rows = DataConfig(context=self.context, batch_size=self.batch_size, num_workers=self.num_workers)
    if self.checkpoint:
      return dataclasses.replace(rows, directory=self.data, tokenizer="init")
    folder, corpus = self._folder(workdir), self.corpus(workdir)
    tokenizer = str(folder / "tokenizer" / "tokenizer.json")
    if not self.tokenize:
      return dataclasses.replace(rows, directory=corpus, tokenizer=tokenizer)
    held_out, fit = TFDS(corpus, split="heldout"), TFDS(corpus, split="fit")
    return dataclasses.replace(rows, source=Splits(Tokens(str(folder / TOKENS)), held_out, fit), tokenizer=tokenizer)

  def _chain(self, branch: Branch, branches: Sequence[Branch]) -> tuple[str, ...]:
    """The runs that an arm consists of; a run without training is an arm by itself."""
    by_run = {one.run: one for one in branches}
    if branch.start is None or branch.steps == 0:
      return (branch.run,)
    if branch.start == TRUNK:
      return (branch.run,) if self.checkpoint else (TRUNK, branch.run)
    return (*self._chain(by_run[branch.start], branches), branch.run)

  def _run(self, branch: Branch, data: DataConfig, workdir: Path) -> TrainConfig | Pretrained:
    if branch.start is None:
      return self._scratch(branch, data)
    imported = branch.start == TRUNK and self.checkpoint
    path = self.checkpoint if imported else str(run_directory(workdir, branch.start))
    if branch.steps == 0:
      return Pretrained(path, branch.transition, self.model if imported else None)
    steps = branch.steps or self.tail_steps
    settings = {"qk_norm": QKNorm() if self.qk_norm and branch.start == TRUNK else None, **branch.init}
    init = InitConfig(checkpoint=path, model=self.model if imported else None, transition=branch.transition, **settings)
    # The same batches for all tails, and not those that the trunk began with.
    return self._trained(
      branch, steps, dataclasses.replace(self._tail_optim(steps), **branch.optim), data, 1, init=init
    )

  def _scratch(self, branch: Branch, data: DataConfig) -> TrainConfig:
    model = dataclasses.replace(self.model, positions=branch.positions)
    whole = self.trunk_steps if branch.is_trunk else self.trunk_steps + self.tail_steps
    steps = branch.steps or whole
    optim = OptimConfig(peak_lr=self.peak_lr, warmup_steps=min(self.warmup_steps, steps // 10))
    if self.schedule == "wsd":
      decay = {"schedule": "constant"} if branch.is_trunk else _decay(min(self.tail_steps, steps - optim.warmup_steps))
      optim = dataclasses.replace(optim, **decay)
    return self._trained(branch, steps, dataclasses.replace(optim, **branch.optim), data, 0, model=model)

  def _tail_optim(self, steps: int) -> OptimConfig:
    warmup = min(self.tail_warmup_steps, steps // 10)
    optim = OptimConfig(peak_lr=self.tail_lr, warmup_steps=warmup)
    return optim if self.schedule == "cosine" else dataclasses.replace(optim, **_decay(steps - warmup))

  def _trained(
    self, branch: Branch, steps: int, optim: OptimConfig, data: DataConfig, later: int, **where_from: Any
  ) -> TrainConfig:
    settings: dict[str, Any] = {
      "eval_every": max(steps // self.budgets, 1),
      "eval_documents": self.documents,
      "checkpoint_every": 250,
      "keep_latest": 1,
      "trackers": (),
      "compute": self.compute,
      "mesh": self.mesh,
    }
    settings |= branch.settings
    return TrainConfig(**where_from, data=data, optim=optim, steps=steps, seed=self.seed + later, **settings)

  def _prepare(self, workdir: Path) -> None:
    if self.checkpoint:
      require(self, checkpoint="drope_jax.interop import SRC DIR", data="experiments.prose --out=DIR")
      return
    folder = self._folder(workdir)
    corpus, tokenizer = folder / "corpus", folder / "tokenizer"
    self._build(corpus, tokenizer)
    if self.tokenize and not (folder / TOKENS / META).exists():  # kept, as the corpus is; studies may share them
      text, processes = TFDS(str(corpus)).documents(), os.cpu_count() or 1
      write_shards(text, load_tokenizer(tokenizer), folder / TOKENS, processes=processes)

  def _build(self, corpus: Path, tokenizer: Path) -> None:
    """Makes the corpus of `text` unless it exists; without a text, one that exists is taken as it is."""
    if self.text == DOCSTRINGS:
      made = quickstart.Quickstart(seed=self.seed, model=self.model, context=self.context)
      quickstart.prepare(made, corpus, tokenizer)
    elif self.text:
      if not is_built(corpus):
        require(self, text="experiments.prose --out=DIR")
      recall_corpus.build_from(self.text, corpus, tokenizer, recall_corpus.small(self.model.vocab_size, self.context))
    elif not is_built(corpus):
      name = type(self).__name__
      raise ConfigError(f"{name}.data: {corpus} does not exist, and {name}.text names no text to make it from")


def _decay(steps: int) -> dict[str, Any]:
  """The settings of a "wsd" schedule that ends with a decay to zero over so many steps."""
  return {"schedule": "wsd", "decay_steps": steps, "floor": 0.0}


def getter(sizes: Mapping[str, Callable[[], Any]]) -> Callable[[str], Any]:
  """Makes a study's `get_config`: SIZE gives the settings, SIZE/RUN the config of one run, for `drope_jax.aot`."""

  def get_config(arg: str = "mini") -> Any:
    size, _, run = arg.partition("/")
    if size not in sizes:
      raise ConfigError(f"the study has no size {size!r}; allowed: {', '.join(sizes)}")
    settings = sizes[size]()
    if run and not isinstance(settings, BranchingStudy):
      raise ConfigError(f"{type(settings).__name__} trains nothing, so it has no run {run!r}")
    return settings.run(run) if run else settings

  return get_config
