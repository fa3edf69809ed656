"""Positional embeddings as values, and what each contributes to attention.

A positional embedding is `RoPE(...)`, `ALiBi()`, a `LayerPattern` of them, or `None` (NoPE). The model asks it only for
its effect, a rotation of queries and keys or a bias on the logits, and never for its class: an `Embedding` that a user
defines works like these.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drope_jax.errors import check
from drope_jax.rotation import Array, Frequencies, Rotation, rotation
from drope_jax.scalings import Scaling, base_frequencies
from drope_jax.values import Value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
  """An additive bias on the attention logits: a function of the distance i - j of query and key, for each head.

  Attributes:
    coefficients: arrays (H,) of constants; no gradient flows to them.
    of_distance: maps coefficients and distances to logits, all float32. Coefficients (K, G, 1, 1), with K * G = H, and
      distances (B, 1, 1, T, S) broadcast against each other. Distances are negative where the mask hides the key.
  """

  coefficients: tuple[Array, ...]
  of_distance: Callable[..., Any] = dataclasses.field(metadata={"static": True})


class Embedding(Value):
  """The base of all positional embeddings: `rotation` and `bias` define the effect. One of your own derives from it.

  An embedding that rotates may define only `frequencies`, from which `rotation` follows.
  """

  dynamic = False  # whether its rotation depends on the current length

  def check(self, head_dim: int) -> None:
    """Raises ConfigError if it is impossible for heads of this size."""

  def frequencies(self, head_dim: int, length: Any = None) -> Frequencies | None:
    """The frequencies of its rotation, if it has one.

    Args:
      head_dim: dimensions of a head, h.
      length: tokens of the sequence, an int or an array: a scalar, or (B, 1) for rows of different lengths. Only
        dynamic embeddings read it.
    """
    return None

  def rotation(self, position_ids_BT: Array, head_dim: int, length: Any = None) -> Rotation | None:
    """The rotation of queries and keys at these integer positions, or None. `length` as in `frequencies`."""
    frequencies = self.frequencies(head_dim, length)
    return None if frequencies is None else rotation(position_ids_BT, frequencies)

  def bias(self, num_heads: int) -> Bias | None:
    """The bias on the attention logits of `num_heads` heads, or None."""
    return None

  def table(self, head_dim: int) -> Frequencies | None:
    """Its frequencies, if they are fixed and define the embedding completely; else None."""
    own = type(self)
    if self.dynamic or own.rotation is not Embedding.rotation or own.bias is not Embedding.bias:
      return None
    return self.frequencies(head_dim)

  def rescaled(self, scaling: Scaling | None) -> "Embedding | None":
    """The same embedding with this scaling, or without any for None; None if it cannot be rescaled."""
    return None


@dataclasses.dataclass(unsafe_hash=True)
class RoPE(Embedding):
  """Rotary position embedding (Su 2021) with base `theta`, optionally rescaled for longer contexts.

  With `pairs`, only that many of the h/2 pairs of dimensions are rotated, the fastest ones: the result of a partial
  drop (transitions.PartialDrop). With `rotary_dim`, heads have the frequencies of heads of that size, and the other
  pairs are not rotated: transformers' `partial_rotary_factor`.
  """

  theta: float = 10_000.0  # base of the frequencies: theta**(-2i/h) radians per token of pair i
  scaling: Scaling | None = None  # rescaling for longer contexts than that of training; None: no rescaling
  pairs: int | None = None  # number of pairs that are rotated, the fastest ones; None: all
  rotary_dim: int | None = None  # dimensions of a head that are rotated; None: all h

  def __post_init__(self) -> None:
    if not self.theta > 1:
      raise ValueError(f"RoPE.theta is {self.theta}; it must exceed 1")
    if self.pairs is not None and self.pairs < 1:
      raise ValueError(f"RoPE.pairs is {self.pairs}; it must be at least 1 (no rotation at all is positions None)")
    if self.rotary_dim is not None and (self.rotary_dim < 2 or self.rotary_dim % 2):
      raise ValueError(
        f"RoPE.rotary_dim is {self.rotary_dim}; it must be even and at least 2, or None for all of a head"
      )

  @property
  def dynamic(self) -> bool:  # type: ignore[override]
    """Whether the rotation depends on the current length."""
    return self.scaling is not None and self.scaling.dynamic

  def check(self, head_dim: int) -> None:
    check(head_dim % 2 == 0, f"ModelConfig.head_dim is {head_dim}; RoPE rotates pairs, so it must be even")
    rotated, pairs = self.rotary_dim or head_dim, self.pairs
    check(rotated <= head_dim, f"RoPE.rotary_dim is {rotated}; heads have {head_dim} dimensions")
    check(
      pairs is None or pairs <= rotated // 2, f"RoPE.pairs is {pairs}; heads of {rotated} have {rotated // 2} pairs"
    )
    if self.scaling is not None:
      self.scaling.check(rotated)

  def frequencies(self, head_dim: int, length: Any = None) -> Frequencies:
    """See Embedding. omega is float64 if static; pairs that are not rotated have a frequency of exactly zero."""
    rotated = self.rotary_dim or head_dim
    if self.scaling is None:
      table = Frequencies(base_frequencies(self.theta, rotated), 1.0)
    else:
      table = self.scaling.frequencies(self.theta, rotated, length)
    if rotated < head_dim:
      xp = np if isinstance(table.omega, np.ndarray) else jnp
      widths = [(0, 0)] * (table.omega.ndim - 1) + [(0, (head_dim - rotated) // 2)]
      factor = table.factor  # applies to the rotated pairs only
      if not (isinstance(factor, float) and factor == 1):
        factor = xp.where(np.arange(head_dim // 2) < rotated // 2, factor, 1.0)
      table = Frequencies(xp.pad(table.omega, widths), factor)
    if self.pairs is None:
      return table
    return table._replace(omega=table.omega * (np.arange(head_dim // 2) < self.pairs))

  def rescaled(self, scaling: Scaling | None) -> "RoPE":
    return dataclasses.replace(self, scaling=scaling)


@dataclasses.dataclass(unsafe_hash=True)
class RoPETable(Embedding):
  """A rotation with explicit frequencies: the state of an embedding during a fade."""

  omega: tuple[float, ...]  # radians per token, (h/2,)
  factor: float = 1.0  # multiplies cos and sin

  def check(self, head_dim: int) -> None:
    check(
      head_dim == 2 * len(self.omega),
      f"RoPETable.omega has {len(self.omega)} frequencies; heads of {head_dim} need {head_dim / 2:g}",
    )

  def frequencies(self, head_dim: int, length: Any = None) -> Frequencies:
    return Frequencies(np.asarray(self.omega), self.factor)


@dataclasses.dataclass(unsafe_hash=True)
class ALiBi(Embedding):
  """Attention with linear biases (Press 2021): logits - slope_H * (i - j); no rotation."""

  def bias(self, num_heads: int) -> Bias:
    return Bias((alibi_slopes(num_heads),), _linear_bias)


def _linear_bias(slopes: Array, distance: Array) -> Array:
  return -slopes * distance


@dataclasses.dataclass(unsafe_hash=True)
class Layer:
  """One layer of a pattern: its positional embedding, and its sliding window in tokens (None: global)."""

  positions: Embedding | None = None  # the embedding; None: NoPE
  window: int | None = None  # sliding window in tokens, the query included; None: global attention

  def __post_init__(self) -> None:
    if self.window is not None and self.window < 1:
      raise ValueError(f"Layer.window is {self.window}; it must be at least 1, or None for global attention")


@dataclasses.dataclass(unsafe_hash=True)
class LayerPattern:
  """A cycle of layers: layer l is `layers[l % len(layers)]`."""

  layers: tuple[Layer, ...]  # from the first layer on, repeated

  def __post_init__(self) -> None:
    if not self.layers:
      raise ValueError("LayerPattern.layers is empty; give at least one Layer")


Positions = Embedding | LayerPattern | None


def rnope_swa(window: int, theta: float = 10_000.0) -> LayerPattern:
  """RNoPE-SWA (Yang 2025): three RoPE layers with a sliding window, then one global layer without any embedding."""
  return LayerPattern((*[Layer(RoPE(theta), window)] * 3, Layer(None)))


def layer_cycle(positions: Positions) -> tuple[Layer, ...]:
  """The cycle of layers that repeats through the depth of the model: a single one unless `positions` is a pattern."""
  return positions.layers if isinstance(positions, LayerPattern) else (Layer(positions),)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """The slopes of Press 2021, float32 (H,).

  For a power of two they are 2**(-8 i / H), i = 1 .. H. Other counts add every second slope of the next power of two.
  """
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
  extra = [2.0 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
  return np.asarray(slopes + extra[: num_heads - power], np.float32)
