"""RoPE-scaling methods as values (paper section 4, appendix C): each rescales the frequencies for longer contexts.

A scaling has its own `factor` and `original_context`, and does not depend on the cache or the batch. Only dynamic
scalings read `length`. Notation: frequencies are omega_i = theta**(-2i/h) for
i = 0 .. h/2-1, in radians per token; s is the extension factor.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from drope_jax.errors import check
from drope_jax.rotation import Array, Frequencies
from drope_jax.values import Value


def base_frequencies(theta: float, head_dim: int) -> np.ndarray:
  """omega_i = theta**(-2i/h), float64 (h/2,), in radians per token."""
  return theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def _ntk_frequencies(theta: float, head_dim: int, factor: Any, xp: Any = np) -> Array:
  """NTK-aware scaling: theta' = theta * s**(h/(h-2)), which keeps omega_0 and divides the slowest frequency by s."""
  exponents = xp.arange(0, head_dim, 2) / head_dim
  return (theta * factor ** (head_dim / (head_dim - 2))) ** -exponents


def _yarn_frequencies(
  theta: float, head_dim: int, factor: Any, original_context: int, beta_fast: float, beta_slow: float
) -> Array:
  """YaRN as released: a ramp, linear in the index i, between the pairs that turn beta_fast and beta_slow times."""

  def index_that_turns(rotations: float) -> float:
    return head_dim * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

  low = max(math.floor(index_that_turns(beta_fast)), 0)
  high = min(math.ceil(index_that_turns(beta_slow)), head_dim - 1)
  span = max(high - low, 0.001)  # avoids a division by zero, as in the released code
  interpolated = np.clip((np.arange(head_dim // 2) - low) / span, 0, 1)
  omega = base_frequencies(theta, head_dim)
  return omega * (1 - interpolated) + omega * interpolated / factor


def _frequencies_by_rotations(
  theta: float, head_dim: int, factor: float, original_context: int, slow: float, fast: float
) -> np.ndarray:
  """A ramp, linear in the turns L omega_i / 2 pi of each pair: omega / s below `slow` turns, omega above `fast`."""
  omega = base_frequencies(theta, head_dim)
  rotations = original_context * omega / (2 * math.pi)
  kept = np.clip((rotations - slow) / (fast - slow), 0, 1)
  return (1 - kept) * omega / factor + kept * omega


def _yarn_attention_factor(factor: Any, xp: Any = np) -> Any:
  """0.1 ln s + 1 for s > 1; it multiplies cos and sin, so the logits get its square (YaRN eq. 15)."""
  return 0.1 * xp.log(xp.maximum(factor, 1.0)) + 1.0


def _dynamic_factor(length: Any, original_context: int) -> tuple[Any, Any]:
  """max(1, length / original_context), and the module (numpy or jax.numpy) for a static or traced length."""
  if length is None:
    raise ValueError("a dynamic RoPE scaling needs the current length: pass `length`")
  if isinstance(length, int):
    return np.maximum(1.0, length / original_context), np
  return jnp.maximum(1.0, length / original_context)[..., None], jnp  # broadcasts against the axis of the frequencies


def _check_more_than_a_pair(head_dim: int) -> None:
  check(
    head_dim > 2, f"ModelConfig.head_dim is {head_dim}; NTK scaling raises theta to h / (h - 2), so it must exceed 2"
  )


def _check_factor(scaling: Any) -> None:
  if not scaling.factor >= 1:
    raise ValueError(f"{type(scaling).__name__}.factor is {scaling.factor}; it must be at least 1")


def _check_context(scaling: Any) -> None:
  if not scaling.original_context >= 1:
    raise ValueError(f"{type(scaling).__name__}.original_context is {scaling.original_context}; it must be at least 1")


def _check_betas(scaling: Any) -> None:
  name = type(scaling).__name__
  if not scaling.beta_slow > 0:
    raise ValueError(f"{name}.beta_slow is {scaling.beta_slow}; it must be positive")
  if not scaling.beta_fast > scaling.beta_slow:
    raise ValueError(f"{name}.beta_fast is {scaling.beta_fast}; it must exceed beta_slow ({scaling.beta_slow})")


class Scaling(Value):
  """How RoPE is rescaled for longer contexts; one of your own derives from it and defines `frequencies`."""

  dynamic = False  # whether the frequencies depend on the current length

  def check(self, head_dim: int) -> None:
    """Raises ConfigError if it is impossible for heads of this size."""

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    """The rescaled frequencies for base `theta`; arguments as for Embedding.frequencies."""
    raise NotImplementedError


@dataclasses.dataclass(unsafe_hash=True)
class PI(Scaling):
  """Positional interpolation (Chen 2023): omega' = omega / s."""

  factor: float  # s, the extension factor

  def __post_init__(self) -> None:
    _check_factor(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    return Frequencies(base_frequencies(theta, head_dim) / self.factor, 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class NTK(Scaling):
  """NTK-aware scaling ("RoPE-NTK", bloc97): gamma_i = s**(-2i/(h-2)); 0-indexed, unlike the paper's eq. 10."""

  factor: float  # s, the extension factor

  def __post_init__(self) -> None:
    _check_factor(self)

  def check(self, head_dim: int) -> None:
    _check_more_than_a_pair(head_dim)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    return Frequencies(_ntk_frequencies(theta, head_dim, self.factor), 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class NTKByParts(Scaling):
  """NTK-by-parts (YaRN eq. 17-18; the paper's eq. 11): the ramp is linear in the rotations r_i = L omega_i / 2 pi."""

  factor: float  # s, the extension factor
  original_context: int  # L, tokens of the context that the model was trained at
  slow: float = 1.0  # pairs with fewer rotations within L are fully interpolated
  fast: float = 32.0  # pairs with more rotations within L keep their frequency

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)
    if not self.fast > self.slow:
      raise ValueError(f"NTKByParts.fast is {self.fast}; it must exceed slow ({self.slow})")

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = _frequencies_by_rotations(theta, head_dim, self.factor, self.original_context, self.slow, self.fast)
    return Frequencies(omega, 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class YaRN(Scaling):
  """YaRN (Peng 2023) as released: a ramp over the index of the pairs, and `attention_factor` on cos and sin."""

  factor: float  # s, the extension factor
  original_context: int  # L, tokens of the context that the model was trained at
  beta_fast: float = 32.0  # pairs that turn more often than this within L keep their frequency
  beta_slow: float = 1.0  # pairs that turn less often than this are slowed down by s
  attention_factor: float | None = None  # multiplies cos and sin; None: 0.1 ln s + 1

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)
    _check_betas(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = _yarn_frequencies(theta, head_dim, self.factor, self.original_context, self.beta_fast, self.beta_slow)
    given = self.attention_factor
    return Frequencies(omega, float(_yarn_attention_factor(self.factor)) if given is None else given)


@dataclasses.dataclass(unsafe_hash=True)
class DynamicNTK(Scaling):
  """Dynamic NTK (Hugging Face `dynamic`): NTK with s = factor * l/L - (factor - 1), l = max(length, L)."""

  original_context: int  # L, tokens of the context that the model was trained at
  factor: float = 1.0  # see above; with 1, s is l/L

  dynamic = True

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)

  def check(self, head_dim: int) -> None:
    _check_more_than_a_pair(head_dim)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    ratio, xp = _dynamic_factor(length, self.original_context)
    return Frequencies(_ntk_frequencies(theta, head_dim, self.factor * ratio - (self.factor - 1), xp), 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class DynamicYaRN(Scaling):
  """YaRN with s = max(1, length / L), its attention factor included (paper appendix C.2: "dynamic scaling")."""

  original_context: int  # L, tokens of the context that the model was trained at
  beta_fast: float = 32.0  # pairs that turn more often than this within L keep their frequency
  beta_slow: float = 1.0  # pairs that turn less often than this are slowed down by s

  dynamic = True

  def __post_init__(self) -> None:
    _check_context(self)
    _check_betas(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    factor, xp = _dynamic_factor(length, self.original_context)
    omega = _yarn_frequencies(theta, head_dim, factor, self.original_context, self.beta_fast, self.beta_slow)
    return Frequencies(omega, _yarn_attention_factor(factor, xp))


@dataclasses.dataclass(unsafe_hash=True)
class LongRoPE(Scaling):
  """LongRoPE (Ding 2024): every frequency is divided by its own factor; there are two sets, found by search.

  Texts of up to `original_context` tokens use the short factors, longer ones the long factors, and all of them the
  attention factor on cos and sin. As for every dynamic scaling, the length is that of the whole text, so that all
  tokens of a text use the same frequencies, whatever the cache holds.
  """

  short_factor: tuple[float, ...]  # divisors of the frequencies, one per rotated pair
  long_factor: tuple[float, ...]  # the same, for texts longer than `original_context`
  original_context: int  # L, tokens of the context that the model was trained at
  factor: float  # the extension that `long_factor` was found for
  attention_factor: float | None = None  # multiplies cos and sin; None: sqrt(1 + ln s / ln L)

  @property
  def dynamic(self) -> bool:  # type: ignore[override]
    """Whether the two tables differ."""
    return self.short_factor != self.long_factor

  def __post_init__(self) -> None:
    _check_factor(self)
    if not self.original_context >= 2:  # its logarithm is a divisor of the attention factor
      raise ValueError(f"LongRoPE.original_context is {self.original_context}; it must be at least 2")
    for name in ("short_factor", "long_factor"):
      factors = getattr(self, name)
      if not factors or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"LongRoPE.{name} is {factors}; it must hold positive numbers")

  def check(self, head_dim: int) -> None:
    for name in ("short_factor", "long_factor"):
      count = len(getattr(self, name))
      check(count == head_dim // 2, f"LongRoPE.{name} has {count} entries; {head_dim // 2} pairs are rotated")

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = base_frequencies(theta, head_dim)
    short, long = (omega / np.asarray(factors) for factors in (self.short_factor, self.long_factor))
    given = self.attention_factor
    attention_factor = self.default_attention_factor if given is None else given
    if not self.dynamic:
      return Frequencies(short, attention_factor)
    ratio, xp = _dynamic_factor(length, self.original_context)
    return Frequencies(xp.where(ratio > 1, long, short), attention_factor)

  @property
  def default_attention_factor(self) -> float:
    """sqrt(1 + ln s / ln L), as in the released models."""
    return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context)) if self.factor > 1 else 1.0


@dataclasses.dataclass(unsafe_hash=True)
class Llama3(Scaling):
  """Llama 3.1 scaling: depends on the wavelength 2 pi / omega, with a ramp between the two frequency factors."""

  factor: float  # s, the extension factor
  original_context: int  # L, tokens of the context that the model was trained at
  low_freq_factor: float = 1.0  # pairs that turn less often than this within L are slowed down by s
  high_freq_factor: float = 4.0  # pairs that turn more often than this within L keep their frequency

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)
    if not self.high_freq_factor > self.low_freq_factor:
      raise ValueError(
        f"Llama3.high_freq_factor is {self.high_freq_factor}; it must exceed low_freq_factor ({self.low_freq_factor})"
      )

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = _frequencies_by_rotations(
      theta, head_dim, self.factor, self.original_context, self.low_freq_factor, self.high_freq_factor
    )
    return Frequencies(omega, 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class CoPE(Scaling):
  """Clipped RoPE (Li 2026, arXiv 2602.05258): pairs that turn less than once are slowed down by a cosine gate.

  Of the n pairs that turn less than once within the original context, pair k = 0 .. n - 1 has the gate
  (1 + cos(pi k / (n - 1))) / 2: the fastest keeps its frequency and the slowest does not turn. This is the authors'
  code, except that they set n by hand (20 of Llama 3's 64 pairs).
  """

  original_context: int  # L, tokens of the context that the model was trained at

  def __post_init__(self) -> None:
    _check_context(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = base_frequencies(theta, head_dim)
    clipped = int((omega * self.original_context < 2 * math.pi).sum())
    gate = np.ones_like(omega)
    gate[len(omega) - clipped :] = (1 + np.cos(np.linspace(0, math.pi, clipped))) / 2
    return Frequencies(omega * gate, 1.0)
