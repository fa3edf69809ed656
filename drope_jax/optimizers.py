"""Optimizers as values: what turns gradients into the direction of an update, weight decay included.

An optimizer is a value of `OptimConfig`. What all optimizers share is in optim.py: gradient clipping before it, and
the scheduled learning rate after it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from drope_jax.errors import check, check_at_least
from drope_jax.parameters import ParameterSpec
from drope_jax.values import Value

Transforms = tuple[optax.GradientTransformation, ...]


class Optimizer(Value):
  """The base of all optimizers; one of your own derives from it and defines `transforms`."""

  def transforms(self, specs: Any) -> Transforms:
    """Gradient transformations, applied in this order.

    Their output is multiplied by minus the learning rate and added to the parameters.

    Args:
      specs: the tree of `parameters.parameter_specs`, whose leaves are ParameterSpec.
    """
    raise NotImplementedError


@dataclasses.dataclass(unsafe_hash=True)
class AdamW(Optimizer):
  """Adam with decoupled weight decay (Loshchilov 2019)."""

  beta1: float = 0.9  # decay of the running mean of gradients
  beta2: float = 0.95  # decay of the running mean of squared gradients
  eps: float = 1e-8  # added to the square root of the latter
  weight_decay: float = 0.1  # on matrices and the embedding; not on norms and biases

  def __post_init__(self) -> None:
    _check_decay(self, "beta1", "beta2")
    _check_positive(self, "eps")
    check_at_least(self, 0, "weight_decay")

  def transforms(self, specs: Any) -> Transforms:
    return optax.scale_by_adam(self.beta1, self.beta2, self.eps), _weight_decay(self.weight_decay, specs)


@dataclasses.dataclass(unsafe_hash=True)
class Muon(Optimizer):
  """Momentum, orthogonalised by Newton-Schulz iterations, for the matrices of the layers; AdamW for the rest.

  A projection to or from heads is one matrix for all heads, D x (H h). Each layer's matrix is orthogonalised
  separately. Updates of matrices are scaled to the RMS of AdamW's, so that one learning rate and weight decay serve
  both (Liu 2025, arXiv 2502.16982, section 2.2).
  """

  momentum: float = 0.95  # decay of the running mean of gradients
  iterations: int = 5  # of Newton-Schulz
  rms: float = 0.2  # RMS of the entries of a matrix's update, at learning rate 1
  weight_decay: float = 0.1  # on matrices and the embedding; not on norms and biases
  beta1: float = 0.9  # AdamW's, as are the next two
  beta2: float = 0.95  # see AdamW
  eps: float = 1e-8  # see AdamW

  def __post_init__(self) -> None:
    _check_decay(self, "momentum", "beta1", "beta2")
    check_at_least(self, 1, "iterations")
    _check_positive(self, "rms", "eps")
    check_at_least(self, 0, "weight_decay")

  def transforms(self, specs: Any) -> Transforms:
    labels = jax.tree.map(lambda spec: "adam" if matrix_axes(spec) is None else "muon", specs)
    # optax.partition puts a MaskedNode in place of the parameters of the other label, and so must this tree.
    axes = jax.tree.map(lambda spec: matrix_axes(spec) or optax.MaskedNode(), specs)

    def scaled(updates: Any, _: Any) -> Any:
      return jax.tree.map(
        lambda update, of_update: update * (self.rms * math.sqrt(max(_fans(update.shape, of_update)))), updates, axes
      )

    muon = optax.contrib.scale_by_muon(
      beta=self.momentum, ns_steps=self.iterations, weight_dimension_numbers=lambda _: axes
    )
    by_label = {
      "muon": optax.chain(muon, optax.stateless(scaled)),
      "adam": optax.scale_by_adam(self.beta1, self.beta2, self.eps),
    }
    return optax.partition(by_label, labels), _weight_decay(self.weight_decay, specs)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class Staged(Optimizer):
  """Another optimizer that updates only some parameters at first (after a drop: queries and keys), and then all.

  The moments of the parameters that are held back accumulate meanwhile, from gradients that are clipped together with
  all others.
  """

  optimizer: Optimizer = dataclasses.field(default_factory=AdamW)  # the optimizer of all parameters
  first: tuple[str, ...] = ("q", "k")  # the parameters of the layers that move from the first step on
  steps: int  # steps before the other parameters move; steps of a carried-over optimizer state count

  def __post_init__(self) -> None:
    check(
      isinstance(self.optimizer, Optimizer) and not isinstance(self.optimizer, Staged),
      f"Staged.optimizer is {self.optimizer!r}; allowed: an optimizer other than Staged",
    )
    check(bool(self.first), "Staged.first is (); name parameters of the layers, as ('q', 'k')")
    check_at_least(self, 1, "steps")

  def transforms(self, specs: Any) -> Transforms:
    layers = specs["layers"]
    for name in self.first:
      check(name in layers, f"Staged.first has {name!r}; the layers of this model have {', '.join(layers)}")
    held = jax.tree.map(lambda spec: True, specs)
    held["layers"] |= dict.fromkeys(self.first, False)
    return *self.optimizer.transforms(specs), optax.masked(_hold(self.steps), held)


def _hold(steps: int) -> optax.GradientTransformation:
  """Zeroes the updates of the first `steps` steps."""

  def update(updates: Any, state: optax.ScaleByScheduleState, _: Any = None) -> tuple[Any, optax.ScaleByScheduleState]:
    moves = state.count >= steps
    return jax.tree.map(lambda update: jnp.where(moves, update, 0), updates), optax.ScaleByScheduleState(
      optax.safe_increment(state.count)
    )

  return optax.GradientTransformation(lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


def matrix_axes(spec: ParameterSpec) -> optax.contrib.MuonDimensionNumbers | None:
  """The input and output axes of the stacked matrices of all layers; None for the embedding, norms and biases.

  One end of each is the residual stream: a product reads from it (D first) or writes to it (D last).
  """
  if not spec.decay or spec.dimensions[0] != "layers":
    return None
  last = len(spec.shape) - 1
  split = 2 if spec.dimensions[1] == "embed" else last
  return optax.contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, last + 1)))


def _fans(shape: tuple[int, ...], axes: optax.contrib.MuonDimensionNumbers) -> list[int]:
  """The fan-in and fan-out of each stacked matrix."""
  return [math.prod(shape[axis] for axis in group) for group in axes]


def _weight_decay(weight: float, specs: Any) -> optax.GradientTransformation:
  return optax.add_decayed_weights(weight, mask=jax.tree.map(lambda spec: spec.decay, specs))


def _check_decay(optimizer: Optimizer, *fields: str) -> None:
  for field in fields:
    value = getattr(optimizer, field)
    check(0 <= value < 1, f"{type(optimizer).__name__}.{field} is {value}; it must lie in [0, 1)")


def _check_positive(optimizer: Optimizer, *fields: str) -> None:
  for field in fields:
    value = getattr(optimizer, field)
    check(value > 0, f"{type(optimizer).__name__}.{field} is {value}; it must be positive")
