"""Positional embeddings as values, and the rotations and biases they stand for.

A positional embedding is `RoPE(...)`, `ALiBi()`, a `LayerPattern` of them, or `None` (NoPE). The model asks it for what
it means, a rotation of queries and keys or a bias on the logits, and nothing asks what kind it is: one that a user
defines as another `Embedding` works like these. Every RoPE-scaling method of the paper (section 4, appendix C) is a
value too; it carries its own `factor` and `original_context` and never looks at a cache or batch size. Only the dynamic
methods ask for the current length, and they ask for it by name.

Notation: frequencies are omega_i = theta**(-2i/h) for i = 0 .. h/2-1, in radians per token; s is the extension factor.
The rotation layout is half-split (Hugging Face): dimension i is paired with i + h/2.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax.errors import check
from drope_jax.values import Value

Array = jax.Array | np.ndarray


class Rotation(NamedTuple):
  """cos and sin of every angle, float32 of shape (B, T, h/2); (1, 0) is the identity."""

  cos: Array
  sin: Array


class Frequencies(NamedTuple):
  """The table of a rotation.

  omega: radians per token, (h/2,); (B, 1, h/2) for rows of their own; (L, h/2) where the layers differ.
  factor: on cos and sin.
  """

  omega: Array
  factor: Array | float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
  """What is added to the attention logits: a function of the distance i - j of query and key, for each head.

  coefficients: arrays (H,) of constants; no gradient flows to them.
  of_distance: (coefficients, float32 distances) -> float32 logits; its arguments broadcast against each other.
    Distances are negative where the causal mask hides the key.
  """

  coefficients: tuple[Array, ...]
  of_distance: Callable[..., Any] = dataclasses.field(metadata={"static": True})


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
  """How RoPE is rescaled for longer contexts; a user's own derives from this and has `frequencies`."""

  dynamic = False  # whether the frequencies depend on the current length

  def check(self, head_dim: int) -> None:
    """Raises ConfigError if heads of this size cannot have it."""

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    """The rescaled table of base `theta`; see Embedding.frequencies."""
    raise NotImplementedError


@dataclasses.dataclass(unsafe_hash=True)
class PI(Scaling):
  """Positional interpolation (Chen 2023): omega' = omega / s."""

  factor: float

  def __post_init__(self) -> None:
    _check_factor(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    return Frequencies(_base_frequencies(theta, head_dim) / self.factor, 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class NTK(Scaling):
  """NTK-aware scaling ("RoPE-NTK", bloc97): gamma_i = s**(-2i/(h-2)); 0-indexed, unlike the paper's eq. 10."""

  factor: float

  def __post_init__(self) -> None:
    _check_factor(self)

  def check(self, head_dim: int) -> None:
    _check_more_than_a_pair(head_dim)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    return Frequencies(_ntk_frequencies(theta, head_dim, self.factor), 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class NTKByParts(Scaling):
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

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = _frequencies_by_rotations(theta, head_dim, self.factor, self.original_context, self.slow, self.fast)
    return Frequencies(omega, 1.0)


@dataclasses.dataclass(unsafe_hash=True)
class YaRN(Scaling):
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

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = _yarn_frequencies(theta, head_dim, self.factor, self.original_context, self.beta_fast, self.beta_slow)
    given = self.attention_factor
    return Frequencies(omega, float(_yarn_attention_factor(self.factor)) if given is None else given)


@dataclasses.dataclass(unsafe_hash=True)
class DynamicNTK(Scaling):
  """Dynamic NTK (Hugging Face `dynamic`): NTK with s = factor * l/L - (factor - 1), l = max(length, L)."""

  original_context: int
  factor: float = 1.0

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

  original_context: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0

  dynamic = True

  def __post_init__(self) -> None:
    _check_context(self)
    _check_betas(self)

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    factor, xp = _dynamic_factor(length, self.original_context)
    omega = _yarn_frequencies(theta, head_dim, factor, self.original_context, self.beta_fast, self.beta_slow)
    return Frequencies(omega, _yarn_attention_factor(factor, xp))


@dataclasses.dataclass(unsafe_hash=True)
class Llama3(Scaling):
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

  def frequencies(self, theta: float, head_dim: int, length: Any = None) -> Frequencies:
    omega = _frequencies_by_rotations(
      theta, head_dim, self.factor, self.original_context, self.low_freq_factor, self.high_freq_factor
    )
    return Frequencies(omega, 1.0)


class Embedding(Value):
  """A positional embedding: `rotation` or `bias` says what it does. A user's own derives from this.

  One that rotates may give its `frequencies` alone: the rotation follows from them.
  """

  dynamic = False  # whether its rotation depends on the current length

  def check(self, head_dim: int) -> None:
    """Raises ConfigError if heads of this size cannot have it."""

  def frequencies(self, head_dim: int, length: Any = None) -> Frequencies | None:
    """The table of its rotation, if it has one.

    Args:
      head_dim: h.
      length: tokens seen so far, an int or an array: a scalar, or (B, 1) for rows with lengths of their own; only
        dynamic embeddings read it.
    """
    return None

  def rotation(self, position_ids_BT: Array, head_dim: int, length: Any = None) -> Rotation | None:
    """The rotation of queries and keys at these integer positions, or None. `length` as in `frequencies`."""
    frequencies = self.frequencies(head_dim, length)
    return None if frequencies is None else rotation(position_ids_BT, frequencies)

  def bias(self, num_heads: int) -> Bias | None:
    """What is added to the attention logits of so many heads, or None."""
    return None

  def table(self, head_dim: int) -> Frequencies | None:
    """Its frequencies, if they are fixed and say all that there is to it; else None."""
    own = type(self)
    if self.dynamic or own.rotation is not Embedding.rotation or own.bias is not Embedding.bias:
      return None
    return self.frequencies(head_dim)

  def rescaled(self, scaling: Scaling | None) -> "Embedding | None":
    """The same embedding with this scaling; None if it cannot be rescaled."""
    return None


@dataclasses.dataclass(unsafe_hash=True)
class RoPE(Embedding):
  """Rotary position embedding (Su 2021) with base `theta`, optionally rescaled for longer contexts.

  With `pairs` only the fastest so many of the h/2 pairs of dimensions are rotated: what is left of it after a partial
  drop (transitions.PartialDrop).
  """

  theta: float = 10_000.0
  scaling: Scaling | None = None
  pairs: int | None = None  # None: all

  def __post_init__(self) -> None:
    if not self.theta > 1:
      raise ValueError(f"RoPE.theta is {self.theta}; it must exceed 1")
    if self.pairs is not None and self.pairs < 1:
      raise ValueError(f"RoPE.pairs is {self.pairs}; it must be at least 1 (no rotation at all is positions None)")

  @property
  def dynamic(self) -> bool:  # type: ignore[override]
    """Whether the rotation depends on the current length."""
    return self.scaling is not None and self.scaling.dynamic

  def check(self, head_dim: int) -> None:
    check(head_dim % 2 == 0, f"ModelConfig.head_dim is {head_dim}; RoPE rotates pairs, so it must be even")
    pairs = self.pairs
    check(
      pairs is None or pairs <= head_dim // 2, f"RoPE.pairs is {pairs}; heads of {head_dim} have {head_dim // 2} pairs"
    )
    if self.scaling is not None:
      self.scaling.check(head_dim)

  def frequencies(self, head_dim: int, length: Any = None) -> Frequencies:
    """See Embedding. omega is float64 when static; the pairs that are not rotated have frequency zero, exactly."""
    if self.scaling is None:
      table = Frequencies(_base_frequencies(self.theta, head_dim), 1.0)
    else:
      table = self.scaling.frequencies(self.theta, head_dim, length)
    if self.pairs is None:
      return table
    return table._replace(omega=table.omega * (np.arange(head_dim // 2) < self.pairs))

  def rescaled(self, scaling: Scaling | None) -> "RoPE":
    return dataclasses.replace(self, scaling=scaling)


@dataclasses.dataclass(unsafe_hash=True)
class ALiBi(Embedding):
  """Attention with linear biases (Press 2021): logits - slope_H * (i - j); no rotation."""

  def bias(self, num_heads: int) -> Bias:
    return Bias((alibi_slopes(num_heads),), _linear_bias)


def _linear_bias(slopes: Array, distance: Array) -> Array:
  return -slopes * distance


@dataclasses.dataclass(unsafe_hash=True)
class Layer:
  """What one layer of a pattern has: its positional embedding, and its sliding window in tokens (None: global)."""

  positions: Embedding | None = None
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


Positions = Embedding | LayerPattern | None


def rnope_swa(window: int, theta: float = 10_000.0) -> LayerPattern:
  """RNoPE-SWA (Yang 2025): three RoPE layers with a sliding window, then one global layer without any embedding."""
  return LayerPattern((*[Layer(RoPE(theta), window)] * 3, Layer(None)))


def layer_cycle(positions: Positions) -> tuple[Layer, ...]:
  """The layers that repeat through the depth of the model; a single one unless `positions` is a pattern."""
  return positions.layers if isinstance(positions, LayerPattern) else (Layer(positions),)


def rotation(position_ids_BT: Array, frequencies: Frequencies) -> Rotation:
  """The rotation at integer positions by a table: (B, T, h/2), or (L, B, T, h/2) of one with layers.

  Angles are float32, since bfloat16 cannot tell 256 from 257.
  """
  omega = jnp.asarray(frequencies.omega, jnp.float32)
  if omega.ndim == 2:  # by layer
    omega = omega[:, None, None]
  angles = position_ids_BT[..., None].astype(jnp.float32) * omega
  factor = jnp.asarray(frequencies.factor, jnp.float32)
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
