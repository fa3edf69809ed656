"""Reads a rotation from the `rope_parameters` of transformers 5 (`rope_scaling` and `rope_theta` in 4).

Keys that a class of transformers reads are read here as well, or refused if we cannot express the rotation; keys that
it does not read are ignored with a warning, as there. Files from which versions 4 and 5 would read different values are
refused.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from drope_jax.errors import ConfigError
from drope_jax.interop.families import Family
from drope_jax.interop.keys import Keys
from drope_jax.positions import RoPE
from drope_jax.scalings import PI, DynamicNTK, Llama3, LongRoPE, YaRN

# A frequency that is divided by this gives angles of 0 in float32, that is, no rotation.
NEUTRAL_FACTOR = 1e30

ORIGINAL = "original_max_position_embeddings"
# The keys that are read for each rope_type, except those in _NAMES. `partial_rotary_factor` is read for all types, but
# may only differ from 1 for "proportional".
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


class Ropes(NamedTuple):
  """The rotations of the layers without a window, and of those with one; None: no rotation."""

  full: RoPE | None
  windowed: RoPE | None


def read_ropes(
  config: dict[str, Any], family: Family, context: int, head_dim: int, where: Any, names: Mapping[str, str] | None
) -> Ropes:
  """The rotations of a config.json of this class; arguments and errors as for `read_rope`."""
  if not family.rotates:
    return Ropes(None, None)
  if not family.rotations_by_kind:
    share, types = family.rotates_part, family.rope_types
    rope = read_rope(config, family.theta, context, head_dim, where, names, rotates_part=share, types=types)
    return Ropes(rope, rope)
  top, local = Keys(config, where, names or {}), family.local_theta_key
  theta = family.local_theta or family.theta
  if local is not None and top.given(local):
    theta = top.number(local)
  by_kind, scaling = config.get("rope_parameters"), config.get("rope_scaling") or {}
  if not isinstance(scaling, dict):
    top.refuse("rope_scaling", f"is {scaling!r}; it must be an object")
  if by_kind is None:
    full = read_rope(config, family.theta, context, head_dim, where, names)
    if local is None and (full is None or full.theta != theta):
      told = "for layers with a window version 4 of transformers takes it, and 5 its default"
      top.refuse("rope_theta", f"is {config.get('rope_theta')}; {told}: give rope_parameters for each kind of layer")
    return Ropes(full, RoPE(theta))
  kinds = ("full_attention", "sliding_attention")
  if not isinstance(by_kind, dict) or not by_kind or not all(isinstance(by_kind.get(kind, {}), dict) for kind in kinds):
    top.refuse("rope_parameters", f"is {by_kind!r}; it must be an object of {' and '.join(kinds)}")
  for key in by_kind.keys() - set(kinds):
    top.refuse(f"rope_parameters.{key}", f"is {by_kind[key]!r}; allowed: {', '.join(kinds)}")
  given = by_kind.get("full_attention", {})
  for key, value in [*scaling.items(), ("rope_theta", config.get("rope_theta"))]:
    if value is not None and given.get(key, value) != value:
      top.refuse(f"rope_parameters.full_attention.{key}", f"is {given[key]!r}, and {value!r} outside; give one of them")
  alone = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}

  def read(kind: str, given: Mapping[str, Any], theta: float) -> RoPE | None:
    name = f"rope_parameters.{kind}"
    return _read_given({"rope_theta": theta, **given}, name, Keys(alone, where, names or {}), context, head_dim)

  return Ropes(
    read("full_attention", {**scaling, **given}, top.number("rope_theta") if top.given("rope_theta") else family.theta),
    read("sliding_attention", by_kind.get("sliding_attention", {}), theta),
  )


def read_rope(
  config: dict[str, Any],
  default_theta: float,
  context: int,
  head_dim: int,
  where: Any,
  names: Mapping[str, str] | None = None,
  *,
  rotates_part: bool = False,
  types: tuple[str, ...] | None = None,
) -> RoPE | None:
  """The rotation of a config.json whose layers all have the same one; None for a rotation by zero angles.

  Args:
    config: its content.
    default_theta: the default of the class.
    context: its `max_position_embeddings`.
    where: its path, for messages.
    names: the keys in the file that it was derived from, likewise.
    rotates_part: whether the class reads `partial_rotary_factor`.
    types: the rope_types that it accepts; None: all.

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
  _refuse_contradictions(config, given, top, Keys(given, where, names, f"{name}."))
  if "rope_theta" not in given and "rope_theta" not in config:
    given = {"rope_theta": default_theta, **given}
  share = 1.0
  if rotates_part:
    share = Keys({**config, **given}, where, names).number("partial_rotary_factor", 1.0, minimum=0)
    given = {key: value for key, value in given.items() if key != "partial_rotary_factor"}
  return _read_given(given, name, top, context, head_dim, share, types)


def _read_given(
  given: dict[str, Any],
  name: str,
  top: Keys,
  context: int,
  head_dim: int,
  share: float = 1.0,
  types: tuple[str, ...] | None = None,
) -> RoPE | None:
  """The rotation described by the object `name`, for this share of a head; `top` has the other keys of the config."""
  keys = top.within(given, name)
  theta_keys = keys if "rope_theta" in given else top
  theta = theta_keys.number("rope_theta")
  if not theta > 1:
    theta_keys.refuse("rope_theta", f"is {theta}; it must exceed 1")
  kind = given.get("rope_type", given.get("type", "default"))
  if types is not None and kind in ("su", "yarn"):
    kind = "longrope"  # as in Phi-3's class, for old files
  if not isinstance(kind, str) or kind not in (types or READ_KEYS):
    keys.refuse("rope_type", f"is {kind!r}; allowed: {', '.join(types or READ_KEYS)}")
  if ORIGINAL in READ_KEYS[kind]:
    top.agree(ORIGINAL, keys, ORIGINAL)
  if kind != "proportional":
    keys.check({"partial_rotary_factor": (1.0, None)})
  passed_over = [key for key in given if key not in (*READ_KEYS[kind], *_NAMES) and keys.given(key)]
  if passed_over:
    listed = ", ".join(map(keys.name, passed_over))
    logger.warning("%s: %s passed over; transformers does not read that for rope_type %r", top.where, listed, kind)
  rotated = int(head_dim * share) if share <= 1 else 0
  if rotated % 2 or not 2 <= rotated <= head_dim:
    top.refuse("partial_rotary_factor", f"is {share}; of heads of {head_dim} it must leave an even number")
  try:
    rope = _READERS[kind](theta, keys, top, context, rotated)
    return rope if rope is None or rotated == head_dim else dataclasses.replace(rope, rotary_dim=rotated)
  except ConfigError:
    raise
  except ValueError as error:  # raised by RoPE or a scaling
    raise keys.named(error) from error


def _refuse_contradictions(config: dict[str, Any], given: dict[str, Any], top: Keys, keys: Keys) -> None:
  """Refuses contradictions between keys of which different versions read different ones."""
  for key in ("rope_theta", "partial_rotary_factor"):
    top.agree(key, keys, key)
  keys.agree("type", keys, "rope_type")
  newer = config.get("rope_parameters")
  if isinstance(newer, dict):
    for key in given:
      top.within(newer, "rope_parameters").agree(key, keys, key)


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
  # Null and 0 mean the defaults, as in transformers.
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
  original = _read_original(keys, top, context)
  short, long = (keys.numbers(key, head_dim // 2) for key in ("short_factor", "long_factor"))
  # Pairs that do not turn express a partial drop.
  kept = next((i for i, factor in enumerate(short) if factor >= NEUTRAL_FACTOR), len(short))
  for key, factors in (("short_factor", short), ("long_factor", long)):
    turning = [factor < NEUTRAL_FACTOR for factor in factors]
    if turning != [True] * kept + [False] * (len(factors) - kept):
      keys.refuse(key, f"stops other pairs (by {NEUTRAL_FACTOR:g}) than the last {len(factors) - kept}")
  ratio = max(context / original, 1.0)
  factor = keys.number("factor", minimum=1) if keys.given("factor") else ratio
  attention_factor = keys.number("attention_factor") if keys.given("attention_factor") else None
  if attention_factor is None and factor != ratio:
    said = (
      f"is {factor:g}, and {top.name('max_position_embeddings')} / {ORIGINAL} is {ratio:g}, which transformers 4 takes"
    )
    keys.refuse("factor", f"{said}: give attention_factor")
  stopped = [1.0] * (len(short) - kept)
  scaling = LongRoPE((*short[:kept], *stopped), (*long[:kept], *stopped), original, factor, attention_factor)
  table = scaling.frequencies(theta, head_dim, 1)
  if kept == 0 and table.factor != 1:
    keys.refuse("attention_factor", f"is {table.factor:g} though no pair turns; allowed: 1")
  plain = {*scaling.short_factor, *scaling.long_factor} == {1.0} and table.factor == 1
  return _with_pairs(RoPE(theta, None if plain else scaling), kept, head_dim)


def _with_pairs(rope: RoPE, pairs: int, head_dim: int) -> RoPE | None:
  """`rope` with only `pairs` pairs rotated, in its simplest form; None for 0."""
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
