"""Dropping only the rotations that never come full circle in training, beside the full drop and RoPE continued.

A pair of dimensions whose wavelength is at most the training context has shown all of its angles in training, and
longer texts bring no new ones. `PartialDrop(turns)` keeps the pairs that make at least so many turns within the
training context and drops the others. This is ours, and not the paper's method, which drops all of them (`Drop`).

Hypotheses, each on differences from the control of the same seed (5 seeds):
  1. With turns of 1 the loss in context rises by less than 0.02 nats (2 % perplexity); the full drop costs more.
  2. The same model finds more needles at 4 and 8 times the context than the control does under RoPE, NTK or YaRN, and
     about as many as the full drop.
  3. More turns, that is fewer pairs kept, cost loss in context and gain needles; fewer turns do the opposite.
It is refuted if 1 fails, or if the needles at 8 times fall to the control's.

`python -m experiments.study --config=experiments/studies/partial_drop.py:SIZE --workdir=DIR [--config.seed=1 ...]`, or
several seeds on one GPU: `experiments/launch/one_gpu.sh partial_drop:small 600 DIR 0 1 2`. Per seed there is one trunk
with RoPE, and every arm is a tail from its weights, on the same tokens in the same order, with a fresh optimizer:

| run      | transition         | measured with                                            |
|----------|--------------------|----------------------------------------------------------|
| control  | Keep()             | as trained, NTK, YaRN                                    |
| drop     | Drop()             | β = 1, fitted β                                          |
| turns_N  | PartialDrop(N)     | as trained, YaRN                                         |

The result tables have the loss and the needles at 1, 4 and 8 times the context; each tail's metrics.jsonl has its
recovery curve, the held-out loss in context at its start and after each fifth of its steps.

| SIZE  | parameters  | T     | trunk      | tail      | turns (pairs kept)                     | per token | per seed |
|-------|-------------|-------|------------|-----------|----------------------------------------|-----------|----------|
| mini  |     935,040 |   128 |      0.77M |     0.26M | 0.35 (8), 0.5 (7), 1 (6), 2 (5), 4 (3) |   6.390e6 |  1.64e13 |
| small |  15,735,168 |   256 |     74.97M |    25.03M | 1 (13), 2 (11)                         |   1.038e8 |  1.82e16 |
| paper | 494,005,120 | 1,024 | 14,680.06M | 2,097.15M | 1 (12), 2 (11), 4 (9)                  |   3.228e9 |  8.12e19 |

Trunk and tail are in tokens; every run but the trunk is a tail. FLOPs are PaLM's count, per token of training and for
all runs of a seed.

`mini` has the model, the text and the rates of the quickstart, for two CPU cores. `small` is for one GPU: the trunk has
a constant rate, and each tail decays to zero. It reads the corpus in `data`, the same one for all seeds, and makes it
of the dataset `text` if it is not there (`python -m experiments.prose --out=data/prose`; see
experiments/recall_corpus.py). `paper` has the shape and budgets of the paper's 494M model on FineWeb
(experiments/configs/pretrain.py); it is there to be compiled ahead of time:
`python -m drope_jax.aot --config=experiments/studies/partial_drop.py:paper/turns_1 --topology=v5p:2x4x4`.

Numbers to expect: not yet run. A pilot at `mini` (3 seeds, other code) had +0.009 ± 0.017 nats in context against its
control for the 6 pairs that turn once, and +0.334 ± 0.028 for the full drop; at 8 times the context it found 62 % of
the needles, the full drop 67 %, the control 30 %.
"""

import dataclasses
from pathlib import Path
from typing import Any

from drope_jax.config import ComputeConfig, DataConfig, InitConfig, ModelConfig, OptimConfig, TrainConfig
from drope_jax.data.corpus import is_built
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate.eval_data import EvalData
from drope_jax.positions import RoPE
from drope_jax.transitions import Drop, Keep, PartialDrop, Transition
from experiments import recall_corpus
from experiments.configs import pretrain
from experiments.plan import Arm, Row, Study, check_at_least_one, require, run_directory
from experiments.studies import quickstart

DOCSTRINGS = "docstrings"  # the text of the quickstart
SCHEDULES = ("cosine", "wsd")


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class PartialDropStudy:
  """Everything that can be set, as `--config.NAME=VALUE`."""

  model: ModelConfig
  context: int  # tokens
  batch_size: int
  trunk_steps: int
  tail_steps: int
  turns: tuple[float, ...]  # of one partial drop each
  schedule: str = "cosine"  # of trunk and tails, or "wsd": a constant rate for the trunk, a decay to zero for each tail
  peak_lr: float
  tail_lr: float
  warmup_steps: int  # of the trunk; a tenth of its steps at most
  tail_warmup_steps: int  # likewise
  data: str = ""  # folder with `corpus` and `tokenizer`, made if it is not there; "": WORKDIR/data
  text: str = ""  # what they are made from: "docstrings", or a prepared dataset of prose; "": they must be there
  num_workers: int = 0  # processes that read
  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  extensions: tuple[int, ...] = (1, 4, 8)  # multiples of the context
  documents: int = 24  # held out, to measure the loss on
  budgets: int = 5  # times within a tail that the loss in context is measured, for its recovery curve
  needles_per_depth: int = 40  # prompts; there are five depths
  seed: int = 0

  def __post_init__(self) -> None:
    check_at_least_one(self, "trunk_steps", "tail_steps", "extensions", "documents", "budgets", "needles_per_depth")
    if self.schedule not in SCHEDULES:
      raise ConfigError(f"PartialDropStudy.schedule is {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
    if len(set(self.turns)) < len(self.turns):
      raise ConfigError(f"PartialDropStudy.turns is {self.turns}; each number must occur once")

  @property
  def transitions(self) -> dict[str, Transition]:
    """How each tail begins, by the name of its run."""
    partial = {f"turns_{turns:g}": PartialDrop(turns=turns) for turns in self.turns}
    return {"control": Keep(), "drop": Drop(), **partial}

  def reading(self, path: str) -> "PartialDropStudy":
    return dataclasses.replace(self, text=path, data="")  # else a corpus that lies there would be taken

  def study(self, workdir: Path) -> Study:
    folder = Path(self.data) if self.data else workdir / "data"
    corpus, tokenizer = folder / "corpus", folder / "tokenizer"
    data = DataConfig(
      directory=str(corpus),
      tokenizer=str(tokenizer / "tokenizer.json"),
      context=self.context,
      batch_size=self.batch_size,
      num_workers=self.num_workers,
    )
    lengths = [extension * self.context for extension in self.extensions]
    return Study(
      title="What dropping costs: only the rotations that never come full circle in training, or all of them",
      seed=self.seed,
      train_context=self.context,
      prepare=lambda: self._prepare(corpus, tokenizer),
      runs=self._runs(data, str(run_directory(workdir, "trunk"))),
      arms=self._arms(),
      rows=self._rows(),
      lengths=lengths,
      tasks=("perplexity", "needles"),
      eval_data=lambda: EvalData(
        tokenizer=load_tokenizer(data.tokenizer),
        longest=max(lengths),
        dataset=data.directory,
        num_documents=self.documents,
        needles_per_depth=self.needles_per_depth,
        seed=self.seed,
      ),
    )

  def run(self, name: str) -> TrainConfig:
    """The config of one run, which may be compiled before its trunk is there."""
    runs = self.study(Path("runs/partial_drop")).runs
    if name not in runs:
      raise ConfigError(f"partial_drop.py has no run {name!r}; allowed: {', '.join(runs)}")
    config = runs[name]
    assert isinstance(config, TrainConfig)
    init = config.init and dataclasses.replace(config.init, model=self.model)
    return dataclasses.replace(config, init=init)

  def _arms(self) -> list[Arm]:
    partial = [Arm(_partial_label(turns), ("trunk", f"turns_{turns:g}")) for turns in self.turns]
    return [
      Arm("RoPE, continued", ("trunk", "control")),
      Arm("dropped", ("trunk", "drop")),
      *partial,
    ]

  def _rows(self) -> list[Row]:
    partial = [
      Row(f"turns_{turns:g}", method, _partial_label(turns) + suffix)
      for turns in self.turns
      for method, suffix in (("rope", ""), ("yarn", " + YaRN"))
    ]
    return [
      Row("control", "rope", "RoPE, continued"),
      Row("control", "ntk", "RoPE + NTK"),
      Row("control", "yarn", "RoPE + YaRN"),
      Row("drop", "nope", "dropped, β = 1"),
      Row("drop", "drope", "dropped, fitted β"),
      *partial,
    ]

  def _runs(self, data: DataConfig, trunk: str) -> dict[str, TrainConfig]:
    """`trunk`: the workdir of the run of this name, which all others start from."""
    shared: dict[str, Any] = {
      "data": data,
      "compute": self.compute,
      "checkpoint_every": 250,
      "keep_latest": 1,
      "trackers": (),
    }
    tails = {
      name: TrainConfig(
        init=InitConfig(checkpoint=trunk, transition=transition),
        optim=self._tail_optim(),
        steps=self.tail_steps,
        seed=self.seed + 1,  # the same batches for all
        eval_every=max(self.tail_steps // self.budgets, 1),
        eval_documents=self.documents,
        **shared,
      )
      for name, transition in self.transitions.items()
    }
    trunk_run = TrainConfig(
      model=self.model, optim=self._trunk_optim(), steps=self.trunk_steps, seed=self.seed, **shared
    )
    return {"trunk": trunk_run, **tails}

  def _trunk_optim(self) -> OptimConfig:
    warmup = min(self.warmup_steps, self.trunk_steps // 10)
    schedule = "cosine" if self.schedule == "cosine" else "constant"
    return OptimConfig(peak_lr=self.peak_lr, warmup_steps=warmup, schedule=schedule)

  def _tail_optim(self) -> OptimConfig:
    warmup = min(self.tail_warmup_steps, self.tail_steps // 10)
    optim = OptimConfig(peak_lr=self.tail_lr, warmup_steps=warmup)
    if self.schedule == "cosine":
      return optim
    return dataclasses.replace(optim, schedule="wsd", decay_steps=self.tail_steps - warmup, floor=0.0)

  def _prepare(self, corpus: Path, tokenizer: Path) -> None:
    if is_built(corpus):
      return
    if not self.text:
      raise ConfigError(f"PartialDropStudy.data: {corpus} is not there, and PartialDropStudy.text names no text")
    if self.text == DOCSTRINGS:
      quickstart.prepare(
        quickstart.Quickstart(seed=self.seed, model=self.model, context=self.context), corpus, tokenizer
      )
      return
    require(self, text="experiments.prose --out=DIR")
    recipe = dataclasses.replace(recall_corpus.SMALL, vocab_size=self.model.vocab_size, context=self.context)
    recall_corpus.build_from(self.text, corpus, tokenizer, recipe)


def _partial_label(turns: float) -> str:
  return f"kept from {turns:g} turn{'s' if turns != 1 else ''} on"


def _mini() -> PartialDropStudy:
  quick = quickstart.get_config()
  return PartialDropStudy(
    model=quick.model,
    context=quick.context,
    batch_size=quick.batch_size,
    trunk_steps=quick.pretrain_steps,
    tail_steps=quick.recalibrate_steps,
    turns=(0.35, 0.5, 1.0, 2.0, 4.0),
    peak_lr=quick.peak_lr,
    tail_lr=quick.recalibrate_lr,
    warmup_steps=quick.warmup_steps,
    tail_warmup_steps=quick.warmup_steps,
    text=DOCSTRINGS,
    compute=ComputeConfig(scan_layers=False),  # on CPUs few layers are faster unrolled
  )


def _small() -> PartialDropStudy:
  return PartialDropStudy(
    model=ModelConfig(
      vocab_size=4096,
      d_model=384,
      num_layers=8,
      num_heads=6,
      num_kv_heads=6,
      head_dim=64,
      d_ff=1024,
      positions=RoPE(theta=10_000.0),
      init_std=0.05,  # about 1 / sqrt(d_model), as in the quickstart, so that retrieval is learnt early
    ),
    context=256,
    batch_size=256,
    trunk_steps=1144,
    tail_steps=382,
    turns=(1.0, 2.0),
    schedule="wsd",
    peak_lr=2e-3,
    tail_lr=2e-3,
    warmup_steps=50,
    tail_warmup_steps=20,
    data="data/recall_prose",
    text="data/prose",
    num_workers=6,  # one process tokenises more slowly than a GPU trains this model
    compute=ComputeConfig(dtype="bfloat16", scan_layers=False),
    documents=128,
    needles_per_depth=200,
  )


def _paper() -> PartialDropStudy:
  """The trunk and tails of configs/pretrain.py: rope_14k and drope."""
  trunk, tail = pretrain.get_config("rope_14k"), pretrain.get_config("drope")
  assert trunk.model is not None
  return PartialDropStudy(
    model=trunk.model,
    context=trunk.data.context,
    batch_size=trunk.data.batch_size,
    trunk_steps=trunk.steps,
    tail_steps=tail.steps,
    turns=(1.0, 2.0, 4.0),
    peak_lr=trunk.optim.peak_lr,
    tail_lr=tail.optim.peak_lr,
    warmup_steps=trunk.optim.warmup_steps,
    tail_warmup_steps=tail.optim.warmup_steps,
    data="data/fineweb",
    compute=trunk.compute,
    documents=128,
    needles_per_depth=200,
  )


SIZES = {"mini": _mini, "small": _small, "paper": _paper}


def get_config(arg: str = "mini") -> PartialDropStudy | TrainConfig:
  """The settings of a size; with SIZE/RUN the config of that run alone, for `drope_jax.aot`."""
  size, _, run = arg.partition("/")
  if size not in SIZES:
    raise ConfigError(f"partial_drop.py has no {size!r}; allowed: {', '.join(SIZES)}")
  settings = SIZES[size]()
  return settings.run(run) if run else settings
