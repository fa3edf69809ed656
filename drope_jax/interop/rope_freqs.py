"""`rope_freqs.weight` of a GGUF file: the divisors of all frequencies, and recovering the settings they came from.

llama.cpp stores Llama 3's scaling only as this array, (h/2,), and reads it in every model of architecture `llama`. The
same array can stop pairs, which expresses a partial drop.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR, ORIGINAL
from drope_jax.positions import RoPE
from drope_jax.scalings import Llama3

NAME = "rope_freqs.weight"
_TOLERANCE = 1e-4  # relative; the array is float32, and was computed in float32
_LOW, _HIGH = 1.0, 4.0  # frequency factors of every released model


def rope_parameters_of(factors: np.ndarray, theta: float, where: Any) -> dict[str, Any]:
  """The `rope_parameters` that result in these factors.

  Args:
    factors: the array, (h/2,).
    theta: the base of the rotation.
    where: the file, for messages.

  Raises:
    ConfigError: if they are below 1, or stop pairs other than the last ones.
  """
  factors = np.asarray(factors, np.float64)
  if not (factors >= 1).all():
    raise ConfigError(f"{where}: {NAME} holds {factors.min():g} to {factors.max():g}; allowed: numbers of at least 1")
  turning = int((factors < NEUTRAL_FACTOR).sum())
  if (factors[:turning] >= NEUTRAL_FACTOR).any():
    raise ConfigError(f"{where}: {NAME} stops pairs before others that turn; allowed: the last ones")
  whole, kept = turning == len(factors), factors[:turning]
  same = factors.tolist()
  table = {"rope_type": "longrope", "short_factor": same, "long_factor": same, "attention_factor": 1.0}
  if (kept == 1).all():
    return {"rope_type": "default"} if whole else table
  if (kept == kept[0]).all():
    factor = float(str(np.float32(kept[0])))
    if whole:
      return {"rope_type": "linear", "factor": factor}
    share = (turning + 0.25) / len(factors)  # a quarter of a pair more, so that rounding down gives `turning`
    return {"rope_type": "proportional", "factor": factor, "partial_rotary_factor": share}
  if not whole:
    return table
  base = np.asarray(RoPE(theta).frequencies(2 * len(factors)).omega)
  for original, low, high in _candidates(factors, base):
    scaling = Llama3(float(factors.max()), original, low, high)
    frequencies = scaling.frequencies(theta, 2 * len(factors))
    if np.allclose(base / frequencies.omega, factors, rtol=_TOLERANCE, atol=0):
      said = {"factor": scaling.factor, "low_freq_factor": low, "high_freq_factor": high, ORIGINAL: original}
      return {"rope_type": "llama3", **said}
  return table


def _candidates(factors: np.ndarray, base: np.ndarray) -> Iterator[tuple[int, float, float]]:
  """Original contexts, with low and high frequency factors, that may have resulted in these factors.

  Between the bands, s = (L omega / 2 pi - low) / (high - low) is the share to which a frequency is kept, and
  1/f = (1 - s)/F + s. Scaling L, low and high by the same number gives the same result, so low is assumed to be 1.
  """
  largest, turns = factors.max(), base / (2 * math.pi)
  kept = (1 / factors - 1 / largest) / (1 - 1 / largest)
  between = (kept > 1e-6) & (kept < 1 - 1e-6)
  for i in np.flatnonzero(between):
    yield round((kept[i] * (_HIGH - _LOW) + _LOW) / turns[i]), _LOW, _HIGH
  if between.sum() >= 2:
    slope, intercept = np.polyfit(turns[between], kept[between], 1)
    if slope > 0 and intercept < 0:
      yield round(-slope / intercept), 1.0, round(1.0 - 1.0 / intercept, 6)
  # If no frequency lies between the bands, powers of two, 8192 first.
  yield from ((1 << power, _LOW, _HIGH) for power in (13, *range(4, 21)))
