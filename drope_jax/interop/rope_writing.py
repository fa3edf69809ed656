"""Writes a rotation as the `rope_parameters` of transformers 5 (`rope_scaling` and `rope_theta` in 4).

For reading them see rope_parameters.py.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop.families import Family
from drope_jax.interop.rope_parameters import NEUTRAL_FACTOR, ORIGINAL, READ_KEYS
from drope_jax.positions import Embedding, RoPE
from drope_jax.scalings import NTK, PI, DynamicNTK, Llama3, LongRoPE, NTKByParts, YaRN, base_frequencies


def as_rope(embedding: Embedding, num_heads: int, head_dim: int) -> RoPE:
  """The embedding as a RoPE that a class of transformers can compute; NTK scaling becomes a change of theta.

  Raises:
    ConfigError: for an embedding that no class supports.
  """
  if embedding.bias(num_heads) is not None:
    raise ConfigError(
      f"ModelConfig.positions has {embedding}: no class of transformers adds a bias to the attention logits of a model "
      "of this shape (BLOOM and MPT use LayerNorm), so it cannot be exported"
    )
  if type(embedding) is not RoPE:
    raise ConfigError(f"ModelConfig.positions has {embedding}: transformers has no such embedding")
  scaling = embedding.scaling
  if isinstance(scaling, NTK):
    rotated = embedding.rotary_dim or head_dim
    theta = embedding.theta * scaling.factor ** (rotated / (rotated - 2))
    return dataclasses.replace(embedding, theta=theta, scaling=None)
  whole = embedding.pairs is None and embedding.rotary_dim is None
  if scaling is None or isinstance(scaling, LongRoPE):
    return embedding
  if type(scaling) not in _WRITERS or (scaling.dynamic and not whole):
    raise ConfigError(f"ModelConfig.positions has {embedding}: transformers has no such scaling of a rotation")
  return embedding


def write_rope(rope: RoPE | None, context: int, head_dim: int, family: Family) -> dict[str, Any]:
  """The `rope_parameters` with which a stock class rotates like `rope`, or by zero angles for None.

  Args:
    rope: a result of `as_rope`.
    context: the `max_position_embeddings` of the same config.
    family: the class.
  """
  if rope is None and family.neutral != "longrope":
    # `llama3` where the class has it, because vLLM would build a table of max_position * factor rows for `linear`.
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 1} if family.neutral == "llama3" else {}
    return {"rope_type": family.neutral, "rope_theta": 10_000.0, "factor": NEUTRAL_FACTOR, **more}
  share = {}
  if family.rotates_part and rope is not None and rope.rotary_dim is not None:
    share = {"partial_rotary_factor": _share(rope.rotary_dim, head_dim)}
    head_dim, rope = rope.rotary_dim, dataclasses.replace(rope, rotary_dim=None)
  settings = {"rope_theta": 10_000.0 if rope is None else rope.theta, **share}
  if rope == RoPE(settings["rope_theta"]):
    return {"rope_type": "default", **settings}
  plain = rope is not None and rope.pairs is None and rope.rotary_dim is None
  kind, write = _WRITERS.get(type(None if rope is None else rope.scaling), ("longrope", None))
  if rope is None or write is None or not plain or kind not in (family.rope_types or READ_KEYS):
    return {"rope_type": "longrope", **settings, **_write_longrope(rope, context, head_dim)}
  return {"rope_type": kind, **settings, **write(rope.scaling)}


def _share(rotary_dim: int, head_dim: int) -> float:
  """A factor such that int(head_dim * factor) is `rotary_dim`."""
  share = rotary_dim / head_dim
  return share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1.0)


def _write_longrope(rope: RoPE | None, context: int, head_dim: int) -> dict[str, Any]:
  """LongRoPE factors that stop the pairs that do not turn, and rescale the others like the rope's scaling."""
  scaling = None if rope is None else rope.scaling
  long = scaling if isinstance(scaling, LongRoPE) else None
  original, extension = (context, 1.0) if long is None else (long.original_context, long.factor)
  factors, attention_factor = {}, 1.0
  for name, length in (("short_factor", original), ("long_factor", original + 1)):
    stopped = [NEUTRAL_FACTOR] * (head_dim // 2)
    if rope is not None:
      table, base = rope.frequencies(head_dim, length), base_frequencies(rope.theta, head_dim)
      turns, attention_factor = np.asarray(table.omega) > 0, float(table.factor)
      divided = base / np.where(turns, table.omega, 1.0)
      if long is not None and rope.rotary_dim is None:
        divided = getattr(long, name)  # the exact values
      stopped = np.where(turns, divided, NEUTRAL_FACTOR).tolist()
    factors[name] = stopped
  settings = {**factors, "factor": extension, ORIGINAL: original}
  if long is not None and long.attention_factor is None:  # which transformers then computes as we do
    return settings
  return {**settings, "attention_factor": attention_factor}


def _write_yarn(scaling: YaRN) -> dict[str, Any]:
  return {
    "factor": scaling.factor,
    ORIGINAL: scaling.original_context,
    "beta_fast": scaling.beta_fast,
    "beta_slow": scaling.beta_slow,
    "attention_factor": float(scaling.frequencies(10_000.0, 4).factor),  # which depends on neither argument
  }


def _write_llama3(scaling: Llama3) -> dict[str, Any]:
  return {
    "factor": scaling.factor,
    ORIGINAL: scaling.original_context,
    "low_freq_factor": scaling.low_freq_factor,
    "high_freq_factor": scaling.high_freq_factor,
  }


_WRITERS: dict[type, tuple[str, Any]] = {
  PI: ("linear", lambda scaling: {"factor": scaling.factor}),
  DynamicNTK: ("dynamic", lambda scaling: {"factor": scaling.factor}),
  YaRN: ("yarn", _write_yarn),
  Llama3: ("llama3", _write_llama3),
  NTKByParts: (  # Llama 3's formula under another name
    "llama3",
    lambda s: _write_llama3(Llama3(s.factor, s.original_context, s.slow, s.fast)),
  ),
}


def max_position(rope: RoPE | None, context: int, target_length: int | None) -> int:
  """The value of `max_position_embeddings`: the intended length, unless the rotation depends on the value.

  Transformers 4 scales YaRN by max_position_embeddings / original_max_position_embeddings, ignoring `factor`, and
  derives the attention factor of LongRoPE from it; every version scales `dynamic` by the length over
  max_position_embeddings.

  Args:
    context: training context in tokens, the default of `target_length`.
    target_length: intended length in tokens.

  Raises:
    ConfigError: if `target_length` is not the length that YaRN or LongRoPE scales to.
  """
  scaling = None if rope is None else rope.scaling
  if rope is not None and rope.pairs is not None and not isinstance(scaling, LongRoPE):
    scaling = None  # it is written as LongRoPE factors
  if isinstance(scaling, DynamicNTK):
    return scaling.original_context
  if not isinstance(scaling, YaRN | LongRoPE):
    return target_length or context
  scaled = round(scaling.factor * scaling.original_context)
  if target_length not in (None, scaled):
    name = type(scaling).__name__
    raise ConfigError(
      f"target_length is {target_length}; {name} of factor {scaling.factor:g} scales {scaling.original_context} tokens "
      f"to {scaled}, and transformers 4 reads its factor from there: leave target_length out, or change the factor"
    )
  return scaled
