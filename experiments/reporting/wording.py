"""Embeddings, transitions and what else a run changes, in plain words for the list of what a study compares."""

import itertools
import math
import re

from drope_jax.config import TrainConfig
from drope_jax.model_config import QKNorm
from drope_jax.objective import Distill, InTurn, NextToken, Objective
from drope_jax.optimizers import AdamW, Optimizer, Staged
from drope_jax.positions import ALiBi, Layer, LayerPattern, Positions, RoPE, RoPETable
from drope_jax.scalings import Scaling
from drope_jax.transitions import Drop, Fade, Keep, KeepWindows, PartialDrop, Replace, Transition
from drope_jax.values import Value

_FADES = {
  "all": "all at once",
  "slow_first": "slow ones first",
  "late_first": "late layers first",
  "theta": "by a base that grows to infinity",
}


def embedding(positions: Positions) -> str:
  """As "RoPE (base 10,000)"; a user's by its name and settings."""
  match positions:
    case None:
      return "no positional embedding"
    case LayerPattern():
      return ", then ".join(_layers(layer, len(list(same))) for layer, same in itertools.groupby(positions.layers))
    case RoPE():
      return _rope(positions)
    case RoPETable():
      return "a table of rotations"
    case ALiBi():
      return "ALiBi"
  return _named(positions)


def _layers(layer: Layer, count: int) -> str:
  of = "without positional embedding" if layer.positions is None else f"of {embedding(layer.positions)}"
  window = "" if layer.window is None else f" in windows of {layer.window:,} tokens"
  return f"{count} layer{'s' if count > 1 else ''} {of}{window}"


def _rope(rope: RoPE) -> str:
  parts = [f"base {round(rope.theta, 1):,.15g}"]
  parts += [] if rope.pairs is None else [f"its {rope.pairs} fastest rotations alone"]
  parts += [] if rope.rotary_dim is None else [f"on {rope.rotary_dim} dimensions of each head"]
  parts += [] if rope.scaling is None else [f"rescaled by {_scaling(rope.scaling)}"]
  return f"RoPE ({', '.join(parts)})"


def _scaling(scaling: Scaling) -> str:
  factor = getattr(scaling, "factor", None)
  return type(scaling).__name__ + ("" if factor is None else f" for {factor:g} times the context")


def transition(change: Transition) -> str:
  """What becomes of the embedding; of a user's transition the first sentence of its docstring, and its settings."""
  match change:
    case Keep():
      return "the embedding stays"
    case Drop():
      return "the embedding of every layer is dropped at once"
    case PartialDrop() if change.fastest is not None:
      return f"all rotations but the {change.fastest} fastest are dropped"
    case PartialDrop() if math.isinf(change.turns):
      return "all rotations are dropped at once"
    case PartialDrop():
      turns = f"{change.turns:g} full turn{'' if change.turns == 1 else 's'}"
      return f"only rotations that make less than {turns} within the training context are dropped"
    case Fade():
      over = f"within the first {_percent(change.share)} of the steps"
      return f"the rotations are slowed down to nothing {over}, {_FADES[change.order]}"
    case Replace():
      return f"the embedding is replaced by {embedding(change.positions)}"
    case KeepWindows():
      windows = f"in windows of {change.window:,} tokens"
      return f"the embedding stays in layers that attend {windows}, and is dropped in one layer of {change.every}"
  sentence = re.split(r"(?<=[.:])\s", " ".join((type(change).__doc__ or "").split()))[0].rstrip(".:")
  settings = _settings(change)
  return sentence[:1].lower() + sentence[1:] + (f" ({settings})" if settings else "")


def is_papers(change: Transition) -> bool:
  """Whether it drops all of the embedding at once, as the paper does."""
  everything = isinstance(change, PartialDrop) and change.fastest is None and math.isinf(change.turns)
  return isinstance(change, Drop) or everything


def changes(config: TrainConfig) -> list[str]:
  """What a run that starts from another does that the paper does not, beside its transition.

  Rates and budgets are left out, and so is the QK-norm that the paper inserts.
  """
  found = []
  if config.init is not None:
    start = None if config.init.model is None else config.init.model.positions
    other = is_papers(config.init.transition) and start is not None and not isinstance(start, RoPE)
    found += [f"it was trained with {embedding(start)} before"] if other else []
    norm = config.init.qk_norm
    found += [] if norm is None or norm == QKNorm() else [f"{_norm(norm)} is inserted"]
    found += ["a token shift is added"] if config.init.token_shift else []
    found += ["attention logits are scaled by the logarithm of the length"] if config.init.logn_scale else []
    found += ["the optimizer's moments are carried over"] if config.init.keep_optimizer else []
  found += _optimizer(config.optim.optimizer)
  found += [] if isinstance(config.objective, NextToken) else [_objective(config.objective)]
  return found


def _norm(norm: QKNorm) -> str:
  normed = [name for name in ("queries", "keys") if getattr(norm, name)]
  return f"QK-norm of {' and '.join(normed)} " + ("as a whole" if norm.scope == "full" else "of each head")


def _optimizer(optimizer: Optimizer) -> list[str]:
  if isinstance(optimizer, Staged):
    first = " and ".join(optimizer.first)
    staged = f"only {first} of the layers are trained in the first {optimizer.steps:,} steps"
    return [staged, *_optimizer(optimizer.optimizer)]
  return [] if isinstance(optimizer, AdamW) else [f"the optimizer is {type(optimizer).__name__}"]


def _objective(objective: Objective) -> str:
  match objective:
    case NextToken():
      return "it learns from the text alone"
    case Distill():
      what = {"logits": "the predictions", "attention": "the attention outputs"}[objective.what]
      whose = "the model that it starts from" if objective.teacher == "init" else "another run"
      return f"it also learns {what} of {whose} (distillation)"
    case InTurn():
      return (
        f"{_objective(objective.first)}; after {_percent(objective.share)} of the steps {_objective(objective.then)}"
      )
  return f"its objective is {_named(objective)}"


def _percent(share: float) -> str:
  return f"{100 * share:g} %"


def _named(value: Value) -> str:
  settings = _settings(value)
  return type(value).__name__ + (f" ({settings})" if settings else "")


def _settings(value: Value) -> str:
  """As "pace=3, until=0.5", without settings that are None."""
  return ", ".join(f"{name}={one}" for name, one in vars(value).items() if one is not None)
