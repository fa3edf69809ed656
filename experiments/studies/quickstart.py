"""The main job at toy scale: RoPE continued, scaled and cropped; DroPE; NoPE from scratch (paper: tables 1, 6).

`python -m experiments.quickstart --workdir=DIR` makes its own data from the documentation strings of the installed
packages (nothing is downloaded). Every arm sees `pretrain_steps + recalibrate_steps` batches.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from drope_jax.config import (
  ComputeConfig,
  ConfigError,
  DataConfig,
  InitConfig,
  ModelConfig,
  OptimConfig,
  QKNorm,
  TrainConfig,
)
from drope_jax.data import docstrings
from drope_jax.data.corpus import build_corpus
from drope_jax.data.recall import Lines, RecallParameters, recall_document, sentences, vocabulary
from drope_jax.data.tokenizers import load_tokenizer, train_bpe
from drope_jax.evaluate.catalog import DEFAULT, EvalData
from drope_jax.positions import RoPE
from experiments.study import Arm, Row, Study, run_directory

FILLER = (0.0, 0.3, 0.6)  # shares of filler in recall documents
FILLER_PIECES = 1000  # pieces of prose whose sentences fill recall documents


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
    init_std=0.08,  # about 1 / sqrt(d_model): at 0.02 a model this narrow learns to retrieve too late
  )


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Quickstart:
  """Everything that can be set, as `--config.NAME=VALUE`."""

  seed: int = 0
  model: ModelConfig = dataclasses.field(default_factory=_model)
  context: int = 128  # tokens
  batch_size: int = 8
  pretrain_steps: int = 750
  recalibrate_steps: int = 250
  peak_lr: float = 3e-3
  recalibrate_lr: float = 3e-3
  warmup_steps: int = 50
  qk_norm: QKNorm | None = None  # inserted at the drop
  recall_share: float = 0.65  # of the training tokens, about
  extensions: tuple[int, ...] = (1, 2, 4, 8)
  documents: int = 24  # held out, to measure the loss on
  needles_per_depth: int = 20
  packages: tuple[str, ...] = docstrings.PACKAGES
  prose_limit: int | None = None  # documents; None: all

  def __post_init__(self) -> None:
    if not 0 <= self.recall_share < 1:
      raise ConfigError(f"Quickstart.recall_share is {self.recall_share}; it must lie in [0, 1)")
    if self.pretrain_steps < 1 or self.recalibrate_steps < 1:
      raise ConfigError("Quickstart.pretrain_steps and recalibrate_steps must be at least 1")

  def study(self, workdir: Path) -> Study:
    corpus, tokenizer = workdir / "data" / "corpus", workdir / "data" / "tokenizer"
    data = DataConfig(
      directory=str(corpus),
      tokenizer=str(tokenizer / "tokenizer.json"),
      context=self.context,
      batch_size=self.batch_size,
    )

    def run(steps: int, peak_lr: float, seed: int, **where_from) -> TrainConfig:
      return TrainConfig(
        **where_from,
        data=data,
        optim=OptimConfig(peak_lr=peak_lr, warmup_steps=min(self.warmup_steps, steps // 10)),
        compute=ComputeConfig(scan_layers=False),  # unrolled layers are a tenth faster on CPU
        steps=steps,
        seed=seed,
        log_every=25,
        checkpoint_every=1000,
        trackers=(),
      )

    rope = str(run_directory(workdir, "rope"))
    again = (self.recalibrate_steps, self.recalibrate_lr, self.seed + 1)  # the same batches for both
    runs = {
      "rope": run(self.pretrain_steps, self.peak_lr, self.seed, model=self.model),
      "rope_continued": run(*again, init=InitConfig(checkpoint=rope, drop=False)),
      "drope": run(*again, init=InitConfig(checkpoint=rope, drop=True, qk_norm=self.qk_norm)),
      "nope": run(
        self.pretrain_steps + self.recalibrate_steps,
        self.peak_lr,
        self.seed,
        model=dataclasses.replace(self.model, positions=None),
      ),
    }
    lengths = [extension * self.context for extension in self.extensions]
    return Study(
      title="Quickstart: what becomes of a model when its positional embedding is dropped",
      seed=self.seed,
      train_context=self.context,
      prepare=lambda: prepare(self, corpus, tokenizer),
      runs=runs,
      arms=(
        Arm("RoPE, continued", ("rope", "rope_continued"), "control"),
        Arm("DroPE", ("rope", "drope"), "drope"),
        Arm("NoPE from scratch", ("nope",), "baseline"),
      ),
      rows=(
        Row("rope_continued", "rope", "RoPE, continued"),
        Row("rope_continued", "pi", "RoPE + PI"),
        Row("rope_continued", "ntk", "RoPE + NTK"),
        Row("rope_continued", "yarn", "RoPE + YaRN"),
        Row("rope_continued", "crop", "RoPE, cropped"),
        Row("drope", "nope", "DroPE, β = 1"),
        Row("drope", "drope", "DroPE, fitted β"),
        Row("nope", "nope", "NoPE from scratch"),
      ),
      lengths=lengths,
      tasks=DEFAULT,
      eval_data=lambda: EvalData(
        tokenizer=load_tokenizer(tokenizer / "tokenizer.json"),
        longest=max(lengths),
        dataset=str(corpus),
        num_documents=self.documents,
        needles_per_depth=self.needles_per_depth,
        seed=self.seed,
      ),
    )


def get_config() -> Quickstart:
  return Quickstart()


def prepare(settings: Quickstart, corpus: Path, tokenizer: Path) -> None:
  """Prose and recall documents as a corpus, and a tokenizer; made once.

  Splits: `train`; `heldout` and `fit`, prose that is in no training document.
  """
  if (corpus / "dataset_info.json").exists():
    return
  prose = docstrings.gather(settings.packages)[: settings.prose_limit]
  train, held_out = docstrings.split_held_out(prose)
  encoder = train_bpe(train, settings.model.vocab_size, tokenizer, whole=vocabulary())
  pieces = [piece for text in train for piece in _pieces(text)]
  random.Random(settings.seed).shuffle(pieces)
  tokens_per_character = len(encoder.encode("".join(pieces[:200]))) / sum(map(len, pieces[:200]))
  prose_tokens = sum(map(len, pieces)) * tokens_per_character
  fillers = [sentence for piece in pieces[:FILLER_PIECES] for sentence in sentences(piece)]
  recall = _recall(Lines(encoder, fillers), settings, prose_tokens)
  build_corpus(
    corpus,
    {"train": itertools.chain(pieces, recall), "heldout": held_out[::2], "fit": held_out[1::2]},
  )


def _pieces(text: str, characters: int = 2000) -> Iterator[str]:
  """`text` cut at paragraphs into pieces of about `characters`, so that no document fills many batches in a row."""
  piece = ""
  for paragraph in text.split("\n\n"):
    if piece and len(piece) + len(paragraph) > characters:
      yield piece
      piece = ""
    piece += ("\n\n" if piece else "") + paragraph
  yield piece


def _recall(lines: Lines, settings: Quickstart, prose_tokens: float) -> Iterator[str]:
  """As many recall documents, all different, as make `recall_share` of all tokens."""
  parameters = RecallParameters(tokens=(settings.context // 2, settings.context), filler=FILLER)
  count = round(prose_tokens * settings.recall_share / (1 - settings.recall_share) / (0.75 * settings.context))
  return (recall_document(lines, parameters, settings.seed, index) for index in range(count))
