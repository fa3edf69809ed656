"""DroPE at toy scale, compared with RoPE continued, scaled and cropped, a partial drop, and NoPE from scratch.

Paper: tables 1 and 6. DroPE is the paper's method: all rotations are dropped, and the model is recalibrated. The
partial drop is ours: only the rotations that make no full turn within the training context are dropped.

`python -m experiments.quickstart --workdir=DIR` makes its own data from the documentation strings of the installed
packages (nothing is downloaded). Every arm sees `pretrain_steps + recalibrate_steps` batches.

Tokens: 1.02M an arm. Parameters: 935,040. FLOPs per token (PaLM, T 128): 6.390e6; an arm: 6.54e12. Numbers to expect:
docs/results/quickstart.md (three seeds, at 8 times the context: loss 4.17 ± 0.07 for the control and 4.22 ± 0.03 for
DroPE, needles found 29 ± 7 and 68 ± 18 %).
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from drope_jax.config import ComputeConfig, DataConfig, InitConfig, ModelConfig, OptimConfig, QKNorm, TrainConfig
from drope_jax.data import docstrings
from drope_jax.data.splits import documents
from drope_jax.errors import ConfigError
from drope_jax.evaluate.tasks import DEFAULT
from drope_jax.positions import RoPE
from drope_jax.transitions import Drop, Keep, PartialDrop
from experiments.plan import Arm, EvalPlan, Row, Study, check_at_least_one, run_directory
from experiments.recall_corpus import Recipe, build

DOCSTRINGS = "docstrings"  # the text of a corpus, if it is that of `packages`
SPREAD = (
  "Another seed can change a loss by about as much as its interval, and the needles that a model this small finds by "
  "more than theirs: by up to 49 points between three seeds (docs/results/quickstart.md)."
)
ARMS = (
  Arm("RoPE, continued", ("rope", "rope_continued")),
  Arm("DroPE", ("rope", "drope")),
  Arm("Partial drop", ("rope", "partial")),
  Arm("NoPE from scratch", ("nope",)),
)
ROWS = (
  Row("rope_continued", "rope", "RoPE, continued"),
  Row("rope_continued", "pi", "RoPE + PI"),
  Row("rope_continued", "ntk", "RoPE + NTK"),
  Row("rope_continued", "yarn", "RoPE + YaRN"),
  Row("rope_continued", "crop", "RoPE, cropped"),
  Row("drope", "nope", "DroPE, β = 1"),
  Row("drope", "drope", "DroPE, fitted β"),
  Row("partial", "rope", "Partial drop"),
  Row("nope", "nope", "NoPE from scratch"),
)


def _model() -> ModelConfig:
  return ModelConfig(
    vocab_size=1024,
    d_model=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    d_ff=352,
    positions=RoPE(theta=10_000.0),
    init_std=0.08,  # about 1 / sqrt(d_model): with 0.02 a model this narrow learns to retrieve too late
  )


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Quickstart:
  """The settings, as `--config.NAME=VALUE`."""

  seed: int = 0  # for weights, data and needles
  model: ModelConfig = dataclasses.field(default_factory=_model)  # of all arms; NoPE's without positions
  context: int = 128  # tokens
  batch_size: int = 8  # rows of `context` tokens per step
  pretrain_steps: int = 750  # with RoPE
  recalibrate_steps: int = 250  # after the drop, and of the control
  peak_lr: float = 3e-3  # of the pretraining
  recalibrate_lr: float = 3e-3  # the peak of the recalibration
  warmup_steps: int = 50  # of both
  qk_norm: QKNorm | None = None  # inserted at the drop
  recall_share: float = 0.65  # approximate share of recall documents in the training tokens
  extensions: tuple[int, ...] = (1, 2, 4, 8)  # lengths to measure at, as multiples of the context
  documents: int = 24  # held out, to measure the loss on
  needles_per_depth: int = 20  # prompts at each of five depths
  data: str | None = None  # path of prose, as data/sources/at.py reads it; None: the docstrings of `packages`
  packages: tuple[str, ...] = docstrings.PACKAGES  # installed packages
  prose_limit: int | None = None  # documents; None: all

  def __post_init__(self) -> None:
    if not 0 <= self.recall_share < 1:
      raise ConfigError(f"Quickstart.recall_share is {self.recall_share}; it must lie in [0, 1)")
    check_at_least_one(self, "pretrain_steps", "recalibrate_steps", "extensions", "documents", "needles_per_depth")
    if self.prose_limit is not None:
      check_at_least_one(self, "prose_limit")
    if not self.packages:
      raise ConfigError("Quickstart.packages is (); name at least one installed package")

  def study(self, workdir: Path) -> Study:
    corpus, tokenizer = workdir / "data" / "corpus", workdir / "data" / "tokenizer"
    data = DataConfig(
      directory=str(corpus),
      tokenizer=str(tokenizer / "tokenizer.json"),
      context=self.context,
      batch_size=self.batch_size,
      interleave=1,  # no document is longer than a few rows: see recall_corpus.cut
    )
    lengths = [extension * self.context for extension in self.extensions]
    return Study(
      title="Quickstart: what happens to a model when its positional embedding is dropped",
      seed=self.seed,
      train_context=self.context,
      prepare=lambda: prepare(self, corpus, tokenizer),
      runs=self._runs(data, str(run_directory(workdir, "rope"))),
      arms=ARMS,
      rows=ROWS,
      lengths=lengths,
      tasks=DEFAULT,
      eval_data=EvalPlan(
        tokenizer=data.tokenizer,
        longest=max(lengths),
        dataset=data.directory,
        num_documents=self.documents,
        needles_per_depth=self.needles_per_depth,
        seed=self.seed,
      ),
      spread=SPREAD,
    )

  def _runs(self, data: DataConfig, rope: str) -> dict[str, TrainConfig]:
    """`rope`: the workdir of the run of this name, which three others start from."""
    again = (data, self.recalibrate_steps, self.recalibrate_lr, self.seed + 1)  # the same batches for all
    nope = dataclasses.replace(self.model, positions=None)
    return {
      "rope": self._run(data, self.pretrain_steps, self.peak_lr, self.seed, model=self.model),
      "rope_continued": self._run(*again, init=InitConfig(checkpoint=rope, transition=Keep())),
      "drope": self._run(*again, init=InitConfig(checkpoint=rope, transition=Drop(), qk_norm=self.qk_norm)),
      "partial": self._run(*again, init=InitConfig(checkpoint=rope, transition=PartialDrop(turns=1.0))),
      "nope": self._run(data, self.pretrain_steps + self.recalibrate_steps, self.peak_lr, self.seed, model=nope),
    }

  def _run(self, data: DataConfig, steps: int, peak_lr: float, seed: int, **where_from: Any) -> TrainConfig:
    return TrainConfig(
      **where_from,
      data=data,
      optim=OptimConfig(peak_lr=peak_lr, warmup_steps=min(self.warmup_steps, steps // 10)),
      compute=ComputeConfig(scan_layers=False),  # on CPUs few layers are faster unrolled
      steps=steps,
      seed=seed,
      log_every=25,
      eval_every=max(steps // 5, 1),  # for the recovery curve
      eval_documents=self.documents,
      checkpoint_every=1000,
      trackers=(),
    )


def get_config() -> Quickstart:
  return Quickstart()


def prepare(settings: Quickstart, corpus: Path, tokenizer: Path) -> None:
  """Makes the corpus of prose and recall documents, and its tokenizer, unless they exist.

  Splits: `train`; `heldout` and `fit`, prose that is in no training document.
  """
  recipe = Recipe(
    vocab_size=settings.model.vocab_size,
    context=settings.context,
    recall_share=settings.recall_share,
    seed=settings.seed,
  )
  build(corpus, tokenizer, lambda: _splits(settings), recipe, settings.data or DOCSTRINGS)


def _splits(settings: Quickstart) -> dict[str, list[str]]:
  prose = _prose(settings)
  train, held_out = docstrings.split_held_out(prose)
  if not train or len(held_out) < 2:
    raise ConfigError(
      f"Quickstart.data, packages and prose_limit leave {len(prose)} documents, {len(held_out)} of them held out; at "
      "least one to train on and two held out are needed"
    )
  return {"train": train, "heldout": held_out[::2], "fit": held_out[1::2]}


def _prose(settings: Quickstart) -> list[str]:
  """The documents of `data`, or the docstrings, at most `prose_limit` of them."""
  if settings.data is None:
    return docstrings.gather(settings.packages)[: settings.prose_limit]
  return list(itertools.islice(documents(settings.data, "train"), settings.prose_limit))
