"""What DroPE adds to the drop itself (transitions.py): inserting a QK-norm, and the temperature of the logits.

Between the two comes recalibration, which is ordinary training at the original context (train.py).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from drope_jax.errors import ConfigError
from drope_jax.model_config import ModelConfig, QKNorm
from drope_jax.parameters import Params, parameter_specs

# Coefficients c of beta = 1 + c ln s that the paper fitted (appendix C.2); it has none for SmolLM-1.7B and Llama2-7B.
FROM_SCRATCH_COEFFICIENT = 0.412  # the 494M model pretrained from scratch at 1,024 tokens
SMOLLM_COEFFICIENT = 0.103  # SmolLM-360M, recalibrated with QK-norm at 2,048 tokens


def insert_qk_norm(config: ModelConfig, params: Params, qk_norm: QKNorm | None = None) -> tuple[ModelConfig, Params]:
  """The model with `qk_norm` (default: the paper's, `QKNorm()`), whose weights are one; other arrays are not copied.

  Even with weights of one this changes the function, since queries and keys lose their lengths; recalibration has to
  make up for it (paper appendix C.1).

  Raises:
    ConfigError: if the model has a QK-norm already.
  """
  if config.qk_norm is not None:
    raise ConfigError(f"ModelConfig.qk_norm is {config.qk_norm} already; a second one cannot be inserted")
  config = dataclasses.replace(config, qk_norm=qk_norm or QKNorm())
  specs = parameter_specs(config)["layers"]
  new = {name: jnp.ones(spec.shape, jnp.float32) for name, spec in specs.items() if name not in params["layers"]}
  return config, {**params, "layers": {**params["layers"], **new}}


def temperature(extension: float, c: float) -> float:
  """beta(s) = 1 + c ln s, the factor on the attention logits at s times the training context (paper appendix C.2).

  For s <= 1, within the training context, it is 1. A fitted c may be slightly negative.

  Args:
    extension: s, the length over the training context.
    c: the coefficient.

  Raises:
    ConfigError: if `extension` is not positive, or beta is not: attention would then prefer the worst matches.
  """
  if not 0 < extension < math.inf:
    raise ConfigError(f"extension is {extension}; it must be positive")
  beta = 1.0 + c * math.log(max(extension, 1.0))
  if not 0 < beta < math.inf:
    raise ConfigError(f"c is {c}: beta = 1 + c ln {extension:g} is {beta:g}; it must be positive")
  return beta


@dataclasses.dataclass(frozen=True)
class TemperatureFit:
  """The result of `fit_temperature`."""

  c: float  # of beta = 1 + c ln s, by least squares over `best`
  losses: Mapping[float, Mapping[float, float]]  # extension -> beta -> loss, for the whole grid
  best: Mapping[float, float]  # extension -> the beta with the lowest loss, see `best_betas`
  on_edge: tuple[float, ...]  # extensions whose best beta is an end of the grid: the true optimum may lie beyond


def fit_temperature(
  loss_of: Callable[[float, float], float], extensions: Sequence[float], betas: Sequence[float]
) -> TemperatureFit:
  """Fits c of `temperature`: the best beta at each length, then least squares over the lengths (paper appendix C.2).

  The paper searches a grid. `best_betas` also looks between its points, so that c depends less on their spacing.

  Args:
    loss_of: (extension, beta) -> mean loss on held-out long documents at that multiple of the training context.
    extensions: s, each above 1 (at s = 1, beta is 1 for every c).
    betas: the grid, at least three values.

  Raises:
    ValueError: if an extension is not above 1, the grid is too short, or a loss is not finite.
  """
  if not extensions or min(extensions) <= 1:
    raise ValueError(f"extensions are {list(extensions)}; to fit a temperature each must be above 1")
  betas = sorted(set(betas))
  if len(betas) < 3:
    raise ValueError(f"betas are {betas}; a grid needs at least 3 of them")
  losses = {extension: {beta: float(loss_of(extension, beta)) for beta in betas} for extension in extensions}
  for extension, row in losses.items():
    for beta, loss in row.items():
      if not math.isfinite(loss):
        raise ValueError(f"the loss at extension {extension:g} and beta {beta:g} is {loss}")
  best_S = best_betas([[row[beta] for beta in betas] for row in losses.values()], betas).tolist()
  c = least_squares_coefficient(best_S, list(losses))
  best = dict(zip(losses, best_S, strict=True))
  return TemperatureFit(c, losses, best, tuple(s for s, beta in best.items() if ends_grid(beta, betas)))


def best_betas(losses_SB: ArrayLike, betas_B: ArrayLike) -> np.ndarray:
  """The beta with the lowest loss at each extension, float64 (S,).

  It is the vertex of the parabola through the lowest loss of the grid and its neighbours (at an end of the grid,
  through the three losses there), or the end of the grid if the vertex lies beyond.

  Args:
    losses_SB: by extension and beta, finite.
    betas_B: the grid, in ascending order, at least three values.
  """
  losses_SB, betas_B = np.asarray(losses_SB, np.float64), np.asarray(betas_B, np.float64)
  lowest_S = losses_SB.argmin(axis=1)
  middle_S = lowest_S.clip(1, len(betas_B) - 2)
  first_S, center_S, last_S = (betas_B[middle_S + i] for i in (-1, 0, 1))
  left_S, loss_S, right_S = (losses_SB[np.arange(len(losses_SB)), middle_S + i] for i in (-1, 0, 1))
  falls_S = (left_S - loss_S) * (last_S - center_S)
  rises_S = (right_S - loss_S) * (center_S - first_S)
  curved_S = falls_S + rises_S > 0  # three equal losses are not
  shift_S = (falls_S * (last_S - center_S) - rises_S * (center_S - first_S)) / np.where(
    curved_S, 2 * (falls_S + rises_S), 1
  )
  return np.where(curved_S, (center_S + shift_S).clip(first_S, last_S), betas_B[lowest_S])


def ends_grid(beta: float, betas: Sequence[float]) -> bool:
  """Whether a best beta is an end of the grid, in ascending order, so that the true optimum may lie beyond."""
  return any(math.isclose(beta, end) for end in (betas[0], betas[-1]))


def least_squares_coefficient(betas_S: ArrayLike, extensions_S: Sequence[float]) -> float:
  """c of beta = 1 + c ln s, by least squares over the extensions."""
  logs_S = np.log(extensions_S)
  return float(((np.asarray(betas_S) - 1) * logs_S).sum() / (logs_S**2).sum())
