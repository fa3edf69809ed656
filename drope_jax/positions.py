"""Positional embeddings as values, and the rotations and biases they stand for.

A positional embedding is `RoPE(...)`, `ALiBi()`, a `LayerPattern` of them, or `None` (NoPE). Attention asks for what a
value means: a rotation of queries and keys (`RoPE`), a bias on the logits (`ALiBi`), or nothing. Every RoPE-scaling
method of the paper (section 4, appendix C) is a value too; it carries its own `factor` and `original_context` and never
looks at a cache or batch size. Only the dynamic methods ask for the current length, and they ask for it by name.

Notation: frequencies are omega_i = theta**(-2i/h) for i = 0 .. h/2-1, in radians per token; s is the extension factor.
The rotation layout is half-split (Hugging Face): dimension i is paired with i + h/2.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


class Rotation(NamedTuple):
  """cos and sin of every angle, float32 of shape (B, T, h/2); (1, 0) is the identity."""

  cos: Array
  sin: Array


class Frequencies(NamedTuple):
  """The table of a rotation: omega in radians per token, float32 (h/2,), and the factor on cos and sin."""

  omega: Array
  factor: Array


def _base_frequencies(theta: float, head_dim: int) -> np.ndarray:
  return theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def _ntk_frequencies(theta: float, head_dim: int, factor: Any, xp: Any = np) -> Array:
  """NTK-aware scaling: theta' = theta * s**(h/(h-2)): omega_0 stays, the slowest frequency is divided by s."""
  exponents = xp.arange(0, head_dim, 2) / head_dim
  return (theta * factor ** (head_dim / (head_dim - 2))) ** -exponents


def _yarn_frequencies(
  theta: float, head_dim: int, factor: Any, original_context: int, beta_fast: float, beta_slow: float
) -> Array:
  """YaRN as released: a ramp linear in the index i between the frequencies that turn beta_fast and beta_slow times."""

  def index_that_turns(rotations: float) -> float:
    return head_dim * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

  low = max(math.floor(index_that_turns(beta_fast)), 0)
  high = min(math.ceil(index_that_turns(beta_slow)), head_dim - 1)
  span = max(high - low, 0.001)  # both ends on one index would divide by zero; the released code does the same
  interpolated = np.clip((np.arange(head_dim // 2) - low) / span, 0, 1)
  omega = _base_frequencies(theta, head_dim)
  return omega * (1 - interpolated) + omega * interpolated / factor


def _frequencies_by_rotations(
  theta: float, head_dim: int, factor: float, original_context: int, slow: float, fast: float
) -> np.ndarray:
  """A ramp linear in the turns L omega_i / 2 pi of each frequency: omega / s below `slow` turns, omega above `fast`."""
  omega = _base_frequencies(theta, head_dim)
  rotations = original_context * omega / (2 * math.pi)
  kept = np.clip((rotations - slow) / (fast - slow), 0, 1)
  return (1 - kept) * omega / factor + kept * omega


def _yarn_attention_factor(factor: Any, xp: Any = np) -> Any:
  """0.1 ln s + 1 for s > 1, on cos and on sin, so the logits get its square (YaRN eq. 15)."""
  return 0.1 * xp.log(xp.maximum(factor, 1.0)) + 1.0


def _dynamic_factor(length: Any, original_context: int) -> tuple[Any, Any]:
  """max(1, length / original_context), and the namespace (numpy or jax.numpy) that suits a static or traced length."""
  if length is None:
    raise ValueError("a dynamic RoPE scaling needs the current length: pass `length`")
  if isinstance(length, int):
    return np.maximum(1.0, length / original_context), np
  return jnp.maximum(1.0, length / original_context)[..., None], jnp  # beside the axis of the frequencies


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


@dataclasses.dataclass(unsafe_hash=True)
class PI:
  """Positional interpolation (Chen 2023): omega' = omega / s."""

  factor: float

  def __post_init__(self) -> None:
    _check_factor(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    return _base_frequencies(theta, head_dim) / self.factor, 1.0


@dataclasses.dataclass(unsafe_hash=True)
class NTK:
  """NTK-aware scaling ("RoPE-NTK", bloc97): gamma_i = s**(-2i/(h-2)); 0-indexed, unlike the paper's eq. 10."""

  factor: float

  def __post_init__(self) -> None:
    _check_factor(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    return _ntk_frequencies(theta, head_dim, self.factor), 1.0


@dataclasses.dataclass(unsafe_hash=True)
class NTKByParts:
  """NTK-by-parts (YaRN eq. 17-18; the paper's eq. 11): the ramp is linear in the rotations r_i = L omega_i / 2 pi."""

  factor: float
  original_context: int
  slow: float = 1.0  # at fewer rotations than this over the original context: interpolate fully
  fast: float = 32.0  # at more: leave as it is

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)
    if not self.fast > self.slow:
      raise ValueError(f"NTKByParts.fast is {self.fast}; it must exceed slow ({self.slow})")

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    return _frequencies_by_rotations(theta, head_dim, self.factor, self.original_context, self.slow, self.fast), 1.0


@dataclasses.dataclass(unsafe_hash=True)
class YaRN:
  """YaRN (Peng 2023) as released: the index ramp on the frequencies, and `attention_factor` on cos and sin."""

  factor: float
  original_context: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None  # None: 0.1 ln s + 1

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)
    _check_betas(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    omega = _yarn_frequencies(theta, head_dim, self.factor, self.original_context, self.beta_fast, self.beta_slow)
    given = self.attention_factor
    return omega, float(_yarn_attention_factor(self.factor)) if given is None else given


@dataclasses.dataclass(unsafe_hash=True)
class DynamicNTK:
  """Dynamic NTK (Hugging Face `dynamic`): NTK with s = factor * l/L - (factor - 1), l = max(length, L)."""

  original_context: int
  factor: float = 1.0

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    ratio, xp = _dynamic_factor(length, self.original_context)
    return _ntk_frequencies(theta, head_dim, self.factor * ratio - (self.factor - 1), xp), 1.0


@dataclasses.dataclass(unsafe_hash=True)
class DynamicYaRN:
  """YaRN with s = max(1, length / L), its attention factor included (paper appendix C.2: "dynamic scaling")."""

  original_context: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0

  def __post_init__(self) -> None:
    _check_context(self)
    _check_betas(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    factor, xp = _dynamic_factor(length, self.original_context)
    omega = _yarn_frequencies(theta, head_dim, factor, self.original_context, self.beta_fast, self.beta_slow)
    return omega, _yarn_attention_factor(factor, xp)


@dataclasses.dataclass(unsafe_hash=True)
class Llama3:
  """Llama 3.1 scaling: by wavelength 2 pi / omega, with a smooth band between the low and high frequency factors."""

  factor: float
  original_context: int
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0

  def __post_init__(self) -> None:
    _check_factor(self)
    _check_context(self)
    if not self.high_freq_factor > self.low_freq_factor:
      raise ValueError(
        f"Llama3.high_freq_factor is {self.high_freq_factor}; it must exceed low_freq_factor ({self.low_freq_factor})"
      )

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    return _frequencies_by_rotations(
      theta, head_dim, self.factor, self.original_context, self.low_freq_factor, self.high_freq_factor
    ), 1.0


Scaling = PI | NTK | NTKByParts | YaRN | DynamicNTK | DynamicYaRN | Llama3


@dataclasses.dataclass(unsafe_hash=True)
class RoPE:
  """Rotary position embedding (Su 2021) with base `theta`, optionally rescaled for longer contexts."""

  theta: float = 10_000.0
  scaling: Scaling | None = None

  def __post_init__(self) -> None:
    if not self.theta > 1:
      raise ValueError(f"RoPE.theta is {self.theta}; it must exceed 1")

  @property
  def dynamic(self) -> bool:
    """Whether the rotation depends on the current length."""
    return isinstance(self.scaling, DynamicNTK | DynamicYaRN)

  def frequencies(self, head_dim: int, length: Any = None) -> tuple[Array, Any]:
    """The table of this embedding.

    Args:
      head_dim: h, even.
      length: tokens seen so far, an int or an array: a scalar, or (B, 1) for rows with lengths of their own; only the
        dynamic scalings read it.

    Returns:
      omega of shape (h/2,), or (B, 1, h/2), in radians per token (float64 when static), and the factor that multiplies
      cos and sin.
    """
    if self.scaling is None:
      return _base_frequencies(self.theta, head_dim), 1.0
    return self.scaling.frequencies(self.theta, head_dim, length)


@dataclasses.dataclass(unsafe_hash=True)
class ALiBi:
  """Attention with linear biases (Press 2021): logits + slope_H * (j - i); no rotation."""


@dataclasses.dataclass(unsafe_hash=True)
class Layer:
  """What one layer of a pattern has: its positional embedding, and its sliding window in tokens (None: global)."""

  positions: RoPE | ALiBi | None = None
  window: int | None = None

  def __post_init__(self) -> None:
    if self.window is not None and self.window < 1:
      raise ValueError(f"Layer.window is {self.window}; it must be at least 1, or None for global attention")


@dataclasses.dataclass(unsafe_hash=True)
class LayerPattern:
  """A cycle of layers: layer l is `layers[l % len(layers)]`."""

  layers: tuple[Layer, ...]

  def __post_init__(self) -> None:
    if not self.layers:
      raise ValueError("LayerPattern.layers is empty; give at least one Layer")


Positions = RoPE | ALiBi | LayerPattern | None


def rnope_swa(window: int, theta: float = 10_000.0) -> LayerPattern:
  """RNoPE-SWA (Yang 2025): three RoPE layers with a sliding window, then one global layer without any embedding."""
  return LayerPattern((*[Layer(RoPE(theta), window)] * 3, Layer(None)))


def layer_cycle(positions: Positions) -> tuple[Layer, ...]:
  """The layers that repeat through the depth of the model; a single one unless `positions` is a pattern."""
  return positions.layers if isinstance(positions, LayerPattern) else (Layer(positions),)


def rotation(
  positions: RoPE | ALiBi | None,
  position_ids_BT: Array,
  head_dim: int,
  length: Any = None,
  given: Frequencies | None = None,
) -> Rotation | None:
  """The rotation that `positions` asks for, or None.

  Args:
    positions: the embedding of one layer.
    position_ids_BT: integer positions; angles are float32, since bfloat16 cannot tell 256 from 257.
    head_dim: h.
    length: tokens seen so far, for the dynamic scalings.
    given: the table to use instead of that of `positions`.
  """
  if not isinstance(positions, RoPE):
    return None
  omega, attention_factor = positions.frequencies(head_dim, length) if given is None else given
  angles = position_ids_BT[..., None].astype(jnp.float32) * jnp.asarray(omega, jnp.float32)
  factor = jnp.asarray(attention_factor, jnp.float32)
  return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def rotate(x_BTHh: jax.Array, rotation: Rotation | None) -> jax.Array:
  """Rotates each pair (i, i + h/2) by its angle; in float32, returned in the dtype of `x`; None is the identity."""
  if rotation is None:
    return x_BTHh
  cos, sin = rotation
  halves = x_BTHh.astype(jnp.float32).reshape(*x_BTHh.shape[:-1], 2, -1)
  # (first, second) * (cos, cos) + (second, first) * (-sin, sin). Halves that are cut apart and joined again are slow on
  # CPUs; and the tables are stacked to be an array, since XLA would compute a cosine anew for every element and use.
  tables = jnp.stack([cos, cos, -sin, sin], axis=2)[:, :, None]
  rotated = halves * tables[..., :2, :] + halves[..., ::-1, :] * tables[..., 2:, :]
  return rotated.reshape(x_BTHh.shape).astype(x_BTHh.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Press 2021's slopes, float32 (H,): 2**(-8h/H) for a power of two, else filled up from the next power's odd ones."""
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
  extra = [2.0 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
  return np.asarray(slopes + extra[: num_heads - power], np.float32)
