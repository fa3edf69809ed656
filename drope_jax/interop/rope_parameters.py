"""A rotation as the `rope_parameters` of transformers (5; `rope_scaling` and `rope_theta` in 4), and back.

A key that a class of transformers reads is read here too, or refused where it would make another rotation than ours;
one that it does not read is passed over with a warning, as there. Where versions 4 and 5 would read different values
from one file, it is refused.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from drope_jax.errors import ConfigError
from drope_jax.interop.keys import Keys
from drope_jax.positions import Embedding, RoPE
from drope_jax.scalings import NTK, PI, DynamicNTK, Llama3, NTKByParts, YaRN

# With a frequency divided by this, no angle differs from 0 in float32: a rotation that rotates nothing.
NEUTRAL_FACTOR = 1e30

ORIGINAL = "original_max_position_embeddings"
# What the class reads for each rope_type. `partial_rotary_factor` is read for all of them, and only "proportional" may
# have another than 1 here; the keys that name the rotation itself are not listed.
READ_KEYS: dict[str, tuple[str, ...]] = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "yarn": (
    "factor",
    ORIGINAL,
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
  ),
  "longrope": ("factor", ORIGINAL, "attention_factor", "short_factor", "long_factor"),
  "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
  "proportional": ("factor",),
}
_NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")

logger = logging.getLogger(__name__)


def read_rope(
  config: dict[str, Any],
  default_theta: float,
  context: int,
  head_dim: int,
  where: Any,
  names: Mapping[str, str] | None = None,
) -> RoPE | None:
  """The rotation of a config.json; None if it rotates nothing.

  Args:
    config: its content.
    default_theta: of the class, for a config that does not say.
    context: its `max_position_embeddings`.
    where: its path, for messages.
    names: of its keys in the file that it was made of, likewise.

  Raises:
    ConfigError: naming the key whose value is not supported.
  """
  names = names or {}
  top = Keys(config, where, names)
  name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
  given = config.get(name) or {}
  if not isinstance(given, dict):
    top.refuse(name, f"is {given!r}; it must be an object")
  if any(isinstance(value, dict) for value in given.values()):
    top.refuse(name, f"differs by kind of layer ({', '.join(given)}); that is not supported")
  keys = Keys(given, where, names, f"{name}.")
  theta_keys = keys if "rope_theta" in given else top
  theta = theta_keys.number("rope_theta", default_theta)
  if not theta > 1:
    theta_keys.refuse("rope_theta", f"is {theta}; it must exceed 1")
  kind = given.get("rope_type", given.get("type", "default"))
  if not isinstance(kind, str) or kind not in READ_KEYS:
    keys.refuse("rope_type", f"is {kind!r}; allowed: {', '.join(READ_KEYS)}")
  _refuse_contradictions(config, given, top, keys, kind)
  if kind != "proportional":
    keys.check({"partial_rotary_factor": (1.0, None)})
  passed_over = [key for key in given if key not in (*READ_KEYS[kind], *_NAMES) and keys.given(key)]
  if passed_over:
    listed = ", ".join(map(keys.name, passed_over))
    logger.warning("%s: %s passed over; transformers does not read that for rope_type %r", where, listed, kind)
  try:
    return _READERS[kind](theta, keys, top, context, head_dim)
  except ConfigError:
    raise
  except ValueError as error:  # a rotation or a scaling that checks itself
    raise keys.named(error) from error


def _refuse_contradictions(config: dict[str, Any], given: dict[str, Any], top: Keys, keys: Keys, kind: str) -> None:
  """Refuses what two places of a file say differently: which of them counts depends on the version."""

  def agree(name: str, value: Any, other_name: str, other: Any) -> None:
    if value is not None and other is not None and value != other:
      top.refuse(name, f"is {value!r} and {other_name} is {other!r}; give one of them, or both alike")

  agree("rope_theta", config.get("rope_theta"), keys.name("rope_theta"), given.get("rope_theta"))
  agree(keys.name("type"), given.get("type"), keys.name("rope_type"), given.get("rope_type"))
  if ORIGINAL in READ_KEYS[kind]:
    agree(ORIGINAL, config.get(ORIGINAL), keys.name(ORIGINAL), given.get(ORIGINAL))
  newer = config.get("rope_parameters")
  if isinstance(newer, dict):
    for key in given:
      agree(f"rope_parameters.{key}", newer.get(key), keys.name(key), given[key])


def _read_default(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE:
  return RoPE(theta)


def _read_linear(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE | None:
  factor = keys.number("factor", minimum=1)
  return None if factor >= NEUTRAL_FACTOR else RoPE(theta, PI(factor))


def _read_dynamic(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE:
  return RoPE(theta, DynamicNTK(context, keys.number("factor", minimum=1)))


def _read_original(keys: Keys, top: Keys, context: int) -> int:
  return next((one.integer(ORIGINAL) for one in (keys, top) if one.given(ORIGINAL)), context)


def _read_yarn(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE:
  keys.check({"truncate": (True, None)})
  original = _read_original(keys, top, context)
  factor = context / original if keys.null("factor") else keys.number("factor", minimum=1)
  # Null and 0 stand for the defaults there too.
  fast, slow, mscale, mscale_all = (
    keys.number(key) if keys.given(key) else 0.0 for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
  )
  attention_factor = keys.number("attention_factor") if keys.given("attention_factor") else None
  if attention_factor is None and mscale and mscale_all:  # DeepSeek's
    attention_factor = _mscale(factor, mscale) / _mscale(factor, mscale_all)
  return RoPE(theta, YaRN(factor, original, fast or 32.0, slow or 1.0, attention_factor))


def _mscale(factor: float, mscale: float) -> float:
  return 0.1 * mscale * math.log(factor) + 1.0


def _read_llama3(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE | None:
  factor, original = keys.number("factor", minimum=1), _read_original(keys, top, context)
  if factor >= NEUTRAL_FACTOR:
    return None
  return RoPE(theta, Llama3(factor, original, keys.number("low_freq_factor"), keys.number("high_freq_factor")))


def _read_proportional(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE | None:
  factor = keys.number("factor", 1.0, minimum=1)
  share = keys.number("partial_rotary_factor", 1.0, minimum=0)
  return _with_pairs(RoPE(theta, None if factor == 1 else PI(factor)), int(share * head_dim // 2), head_dim)


def _read_longrope(theta: float, keys: Keys, top: Keys, context: int, head_dim: int) -> RoPE | None:
  """Only what `write_rope` writes: the same factors at all lengths, which leave a pair as it is or stop it."""
  original = _read_original(keys, top, context)
  factors = [keys.numbers(key, head_dim // 2) for key in ("short_factor", "long_factor")]
  if factors[0] != factors[1]:
    keys.refuse("long_factor", "differs from short_factor; a rotation that changes with the length is not supported")
  kept = next((i for i, factor in enumerate(factors[0]) if factor != 1), len(factors[0]))
  for factor in factors[0][kept:]:
    if factor < NEUTRAL_FACTOR:
      keys.refuse("short_factor", f"has {factor}; allowed: 1, and then {NEUTRAL_FACTOR:g} for pairs that do not turn")
  if not keys.given("attention_factor"):
    extension = keys.number("factor") if keys.given("factor") else context / original
    attention_factor = 1.0 if extension <= 1 else math.sqrt(1 + math.log(extension) / math.log(original))
  else:
    attention_factor = keys.number("attention_factor")
  if attention_factor != 1:
    keys.refuse("attention_factor", f"is {attention_factor}; allowed: 1")
  return _with_pairs(RoPE(theta), kept, head_dim)


def _with_pairs(rope: RoPE, pairs: int, head_dim: int) -> RoPE | None:
  """`rope` with only so many pairs rotated, said as simply as it can be."""
  if pairs == 0:
    return None
  return rope if pairs >= head_dim // 2 else RoPE(rope.theta, rope.scaling, pairs)


_READERS = {
  "default": _read_default,
  "linear": _read_linear,
  "dynamic": _read_dynamic,
  "yarn": _read_yarn,
  "longrope": _read_longrope,
  "llama3": _read_llama3,
  "proportional": _read_proportional,
}


def as_rope(embedding: Embedding, num_heads: int, head_dim: int) -> RoPE:
  """The rotation that a class of transformers can compute, without its NTK scaling, which is a change of theta.

  Raises:
    ConfigError: for an embedding that no class has.
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
    return RoPE(embedding.theta * scaling.factor ** (head_dim / (head_dim - 2)), None, embedding.pairs)
  if scaling is not None and (type(scaling) not in _WRITERS or (scaling.dynamic and embedding.pairs is not None)):
    raise ConfigError(f"ModelConfig.positions has {embedding}: transformers has no such scaling of a rotation")
  return embedding


def write_rope(rope: RoPE | None, context: int, head_dim: int) -> dict[str, Any]:
  """`rope_parameters` that make a stock class rotate as `rope` does, or not at all for None.

  Args:
    rope: what `as_rope` has returned.
    context: `max_position_embeddings` beside it.
  """
  if rope is None:
    # `llama3`, because vLLM would build a table of max_position * factor rows for `linear`.
    neutral = {"factor": NEUTRAL_FACTOR, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": "llama3", "rope_theta": 10_000.0, **neutral, ORIGINAL: 1}
  theta = {"rope_theta": rope.theta}
  if rope.pairs is not None:
    return {"rope_type": "longrope", **theta, **_write_pairs(rope, context, head_dim)}
  if rope.scaling is None:
    return {"rope_type": "default", **theta}
  kind, write = _WRITERS[type(rope.scaling)]
  return {"rope_type": kind, **theta, **write(rope.scaling)}


def _write_pairs(rope: RoPE, context: int, head_dim: int) -> dict[str, Any]:
  """Factors that stop the pairs that do not turn, and rescale the others as its scaling does, at all lengths alike."""
  base, table = RoPE(rope.theta).frequencies(head_dim).omega, rope.frequencies(head_dim)
  turns = np.asarray(table.omega) > 0
  factors = np.where(turns, base / np.where(turns, table.omega, 1.0), NEUTRAL_FACTOR).tolist()
  same = {"short_factor": factors, "long_factor": factors}
  return {**same, "factor": 1.0, "attention_factor": float(table.factor), ORIGINAL: context}


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
  """What `max_position_embeddings` must be: the longest text that the model is meant for, unless its rotation reads it.

  Transformers 4 scales YaRN by max_position_embeddings / original_max_position_embeddings, whatever `factor` says, and
  every version scales `dynamic` by the length over max_position_embeddings.

  Args:
    context: tokens that the model was trained at, in the place of a `target_length` of None.

  Raises:
    ConfigError: if `target_length` is not the length that YaRN scales to.
  """
  scaling = None if rope is None or rope.pairs is not None else rope.scaling
  if isinstance(scaling, DynamicNTK):
    return scaling.original_context
  if not isinstance(scaling, YaRN):
    return target_length or context
  scaled = round(scaling.factor * scaling.original_context)
  if target_length not in (None, scaled):
    raise ConfigError(
      f"target_length is {target_length}; YaRN of factor {scaling.factor:g} scales {scaling.original_context} tokens "
      f"to {scaled}, and transformers 4 reads its factor from there: leave target_length out, or change the factor"
    )
  return scaled
