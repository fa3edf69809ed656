"""Optimizers as values: what turns gradients into the direction of an update, weight decay included.

An optimizer is a value of `OptimConfig`, which adds what all of them share (optim.py): clipping before it, and the
scheduled learning rate behind it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from drope_jax.errors import check
from drope_jax.parameters import ParameterSpec
from drope_jax.values import Value

Transforms = tuple[optax.GradientTransformation, ...]


class Optimizer(Value):
  """The base of all optimizers; a user's own derives from this and has `transforms`."""

  def transforms(self, specs: Any) -> Transforms:
    """Gradient transformations, one behind the other, for parameters of these `specs` (model.parameter_specs).

    What comes out is multiplied by minus the learning rate and added to the parameters.
    """
    raise NotImplementedError


@dataclasses.dataclass(unsafe_hash=True)
class AdamW(Optimizer):
  """Adam with decoupled weight decay (Loshchilov 2019)."""

  beta1: float = 0.9  # decay of the mean of gradients
  beta2: float = 0.95  # decay of the mean of their squares
  eps: float = 1e-8  # added to the root of the latter
  weight_decay: float = 0.1  # on matrices and the embedding; not on norms and biases

  def __post_init__(self) -> None:
    _check_share(self, "beta1", "beta2")
    _check_positive(self, "eps")
    _check_not_negative(self, "weight_decay")

  def transforms(self, specs: Any) -> Transforms:
    return optax.scale_by_adam(self.beta1, self.beta2, self.eps), _weight_decay(self.weight_decay, specs)


@dataclasses.dataclass(unsafe_hash=True)
class Muon(Optimizer):
  """Momentum, orthogonalised by Newton-Schulz iterations, for the matrices of the layers; AdamW for all the rest.

  A projection to or from heads is one matrix of all its heads, D x (H h). Each layer's matrix is orthogonalised by
  itself. Updates of matrices are scaled to the RMS of AdamW's, so that one learning rate and weight decay serve both
  (Liu 2025, arXiv 2502.16982, section 2.2).
  """

  momentum: float = 0.95  # decay of the mean of gradients
  iterations: int = 5  # of Newton-Schulz
  rms: float = 0.2  # of the entries of a matrix's update, at learning rate 1
  weight_decay: float = 0.1  # on matrices and the embedding; not on norms and biases
  beta1: float = 0.9  # this and what follows: AdamW's
  beta2: float = 0.95  # likewise
  eps: float = 1e-8  # likewise

  def __post_init__(self) -> None:
    _check_share(self, "momentum", "beta1", "beta2")
    check(self.iterations >= 1, f"Muon.iterations is {self.iterations}; it must be at least 1")
    _check_positive(self, "rms", "eps")
    _check_not_negative(self, "weight_decay")

  def transforms(self, specs: Any) -> Transforms:
    labels = _of_each(lambda spec: "adam" if matrix_axes(spec) is None else "muon", specs)
    # partition hides the parameters of the other label behind this node.
    hidden = _of_each(lambda spec: matrix_axes(spec) or optax.MaskedNode(), specs)

    def scaled(updates: Any, _: Any) -> Any:
      return jax.tree.map(
        lambda update, found: update * (self.rms * math.sqrt(max(_sizes(update.shape, found)))), updates, hidden
      )

    muon = optax.contrib.scale_by_muon(
      beta=self.momentum, ns_steps=self.iterations, weight_dimension_numbers=lambda _: hidden
    )
    by_label = {
      "muon": optax.chain(muon, optax.stateless(scaled)),
      "adam": optax.scale_by_adam(self.beta1, self.beta2, self.eps),
    }
    return optax.partition(by_label, labels), _weight_decay(self.weight_decay, specs)


def matrix_axes(spec: ParameterSpec) -> optax.contrib.MuonDimensionNumbers | None:
  """The input and output axes of the stacked matrices of all layers; None for the embedding, norms and biases.

  One end of each is the residual stream: a product reads from it (D first) or writes to it (D last).
  """
  if not spec.decay or spec.dimensions[0] != "layers":
    return None
  last = len(spec.shape) - 1
  split = 2 if spec.dimensions[1] == "embed" else last
  return optax.contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, last + 1)))


def _sizes(shape: tuple[int, ...], axes: optax.contrib.MuonDimensionNumbers) -> list[int]:
  """Inputs and outputs of a matrix."""
  return [math.prod(shape[axis] for axis in group) for group in axes]


def _weight_decay(weight: float, specs: Any) -> optax.GradientTransformation:
  return optax.add_decayed_weights(weight, mask=_of_each(lambda spec: spec.decay, specs))


def _of_each(function: Callable[[ParameterSpec], Any], specs: Any) -> Any:
  return jax.tree.map(function, specs, is_leaf=lambda node: isinstance(node, tuple))


def _check_share(optimizer: Optimizer, *fields: str) -> None:
  for field in fields:
    value = getattr(optimizer, field)
    check(0 <= value < 1, f"{type(optimizer).__name__}.{field} is {value}; it must lie in [0, 1)")


def _check_positive(optimizer: Optimizer, *fields: str) -> None:
  for field in fields:
    value = getattr(optimizer, field)
    check(value > 0, f"{type(optimizer).__name__}.{field} is {value}; it must be positive")


def _check_not_negative(optimizer: Optimizer, *fields: str) -> None:
  for field in fields:
    value = getattr(optimizer, field)
    check(value >= 0, f"{type(optimizer).__name__}.{field} is {value}; it must be at least 0")
