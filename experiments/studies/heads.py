"""What figures 7 and 8 share: a model with RoPE and the same model dropped, to look into their heads."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from drope_jax import checkpoint
from drope_jax.checkpoint import Checkpoint
from drope_jax.data.tokenizers import Tokenizer
from drope_jax.errors import check
from drope_jax.evaluate.methods import Inference, allowed_methods, inference
from drope_jax.model_config import ModelConfig
from drope_jax.parameters import count_parameters
from drope_jax.transitions import Drop, drop
from drope_jax.workdir import run_name
from experiments.plan import Study, run_directory
from experiments.reporting.looks import GREEN, INK, VERMILION
from experiments.studies.branching import Branch, BranchingStudy, control, tail
from experiments.studies.figures import Out, drawn_by, only_drawn

YARN = "yarn:2"


class Shown(NamedTuple):
  """A model with a method, and how it is drawn."""

  label: str
  method: str  # of evaluate/methods.py
  loaded: Checkpoint
  color: str
  marker: str

  def inference(self, length: int) -> Inference:
    """The inference on texts of `length` tokens."""
    return inference(self.method, self.loaded.model, self.loaded.context, length)


class Compared(NamedTuple):
  """The models of a figure: one with RoPE as it was trained, the same under YaRN, and dropped."""

  name: str  # of the model, for the caption
  path: Path  # of the model with RoPE, which has the tokenizer
  models: tuple[Shown, Shown, Shown]

  @property
  def trained(self) -> Checkpoint:
    return self.models[0].loaded

  @property
  def about(self) -> str:
    size = f"{count_parameters(self.trained.model) / 1e6:.1f}M parameters"
    return f"{self.name}, {size}, trained at {self.trained.context:,} tokens"


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class HeadStudy(BranchingStudy):
  """The settings of a study that looks into RoPE's heads and those of the same model dropped.

  Both models are trained, from one trunk and on the same tokens. Or `trained` and `dropped` name them, and the settings
  of training and measuring are not used. A study derives from this class and defines `draw`.
  """

  captions: ClassVar[Mapping[str, str]]  # of its pictures, by their names

  extensions: tuple[float, ...] = (1, 2)
  trained: str = ""  # a model with RoPE to look into, instead of training one: a run's workdir, or an imported model
  dropped: str = ""  # the same model, dropped and recalibrated; "": `trained`, dropped and not recalibrated

  def __post_init__(self) -> None:
    super().__post_init__()
    name = type(self).__name__
    check(bool(self.trained) or not self.dropped, f"{name}.dropped is set, but not {name}.trained, to compare it with")

  def reading(self, path: str) -> Self:
    check(not self.trained, f"--data: {type(self).__name__}.trained is set, so that no documents are read")
    return super().reading(path)

  def branches(self) -> Sequence[Branch]:
    return [control(("rope", "yarn")), tail("drop", "DroPE", Drop(), ("nope",))]

  def study(self, workdir: Path) -> Study:
    if self.trained:
      return only_drawn(self.title, self._given_context(), self.captions, lambda out: self.draw(self._given(), out))
    figures = drawn_by(self.captions, lambda out: self.draw(self._own(workdir), out), check=self.check_texts)
    return dataclasses.replace(super().study(workdir), figures=figures)

  def check_texts(self, tokenizer: Tokenizer) -> None:
    """Raises for texts that could not be drawn; called before any training."""

  def draw(self, compared: Compared, out: Out) -> None:
    """Draws the figures."""
    raise NotImplementedError

  def _own(self, workdir: Path) -> Compared:
    control, dropped = (run_directory(workdir, run) for run in ("control", "drop"))
    return compare(f"seed {self.seed}", control, dropped)

  def _given(self) -> Compared:
    path, dropped = Path(self.trained), Path(self.dropped) if self.dropped else None
    return compare(run_name(path) + (f" and {run_name(dropped)}" if dropped else ""), path, dropped)

  def _given_context(self) -> int:
    """The context of `trained`. Raises ConfigError if the models cannot be compared."""
    name, trained = type(self).__name__, checkpoint.open_step(self.trained)
    check(
      "yarn" in allowed_methods(trained.model), f"{name}.trained: {self.trained} has no RoPE; name a run that kept it"
    )
    if self.dropped:
      dropped = checkpoint.open_step(self.dropped).model
      changed = dropped.positions != trained.model.positions
      check(changed, f"{name}.dropped: {self.dropped} has the positional embedding of {self.trained}; name its drop")
      same = _shape(dropped) == _shape(trained.model)
      check(same, f"{name}.dropped: {self.dropped} is not the model {self.trained}: its sizes are others")
    return trained.context


def compare(name: str, path: Path, dropped_path: Path | None) -> Compared:
  """Loads the models; without `dropped_path` the dropped one is not recalibrated."""
  trained = checkpoint.load(path)
  if dropped_path is None:
    label, dropped = "dropped, not recalibrated", trained._replace(model=drop(trained.model))
  else:
    label, dropped = "dropped and recalibrated", checkpoint.load(dropped_path)
  models = (
    Shown("RoPE, as trained", _unchanged(trained), trained, INK, "o"),
    Shown("YaRN for twice the context", YARN, trained, GREEN, "D"),
    Shown(label, _unchanged(dropped), dropped, VERMILION, "s"),
  )
  return Compared(name, path, models)


def _shape(model: ModelConfig) -> tuple[int, ...]:
  attention = model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim
  return model.vocab_size, model.d_model, model.d_ff, *attention


def _unchanged(loaded: Checkpoint) -> str:
  """The method that runs a model unchanged."""
  return allowed_methods(loaded.model)[0]
