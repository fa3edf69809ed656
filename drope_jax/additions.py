"""Learnt parts that a trained model may be given, and that change nothing until they are trained.

Each is a field of ModelConfig with parameters that start at zero, so that a run may start from weights without them
(InitConfig has fields of the same names). They are aimed at models without rotations: token shift gives keys local
order, the log-n scale keeps attention from thinning out over longer texts. Letters as in model.py.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.parameters import ParameterSpec, Params

Array = jax.Array

ADDITIONS = ("token_shift", "logn_scale")  # fields of ModelConfig


def with_additions(params: Params, specs: Mapping[str, ParameterSpec | Mapping[str, ParameterSpec]]) -> Params:
  """The parameters, and those of ADDITIONS that `specs` (parameter_specs) has and they lack, zero as at their start."""
  layers, wanted = params["layers"], specs["layers"]
  assert isinstance(wanted, Mapping)
  new = {
    name: jnp.zeros(wanted[name].shape, jnp.float32) for name in ADDITIONS if name in wanted and name not in layers
  }
  return {**params, "layers": {**layers, **new}}


def shifted(k_BTKh: Array, amount: Array, segments_BT: Array | None, before_BKh: Array | None = None) -> Array:
  """Token shift: k + a (previous k - k), as Canon layers mix neighbours (arXiv 2512.17351), for keys alone.

  The first key of a row, or of a segment, has none before it and stays as it is.

  Args:
    k_BTKh: keys before their rotation, one after the other.
    amount: a, float32 ().
    segments_BT: document numbers, or None for rows of one document.
    before_BKh: the keys before the first ones, of tokens that follow others in a cache.
  """
  first_B1Kh = k_BTKh[:, :1] if before_BKh is None else before_BKh[:, None]
  step_BTKh = jnp.concatenate([first_B1Kh, k_BTKh[:, :-1]], 1) - k_BTKh
  if segments_BT is not None:
    same_BT = segments_BT == jnp.concatenate([segments_BT[:, :1], segments_BT[:, :-1]], 1)
    step_BTKh = jnp.where(same_BT[..., None, None], step_BTKh, 0)
  return k_BTKh + amount.astype(k_BTKh.dtype) * step_BTKh


def keys_seen(index_BT: Array, segments_BT: Array | None, window: int | None) -> Array:
  """How many keys each query sees, itself included, int32 (B, T).

  Args:
    index_BT: places of the queries in their rows (or cache slots), from 0 on.
    segments_BT: document numbers of whole rows, or None.
  """
  seen_BT = index_BT + 1
  if segments_BT is not None:
    starts_BT = segments_BT != jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    seen_BT = seen_BT - lax.cummax(jnp.where(starts_BT, index_BT, 0), axis=1)
  return seen_BT if window is None else jnp.minimum(seen_BT, window)


def scaled_by_logn(q_BTHh: Array, strength_H: Array, seen_BT: Array) -> Array:
  """Queries times 1 + s_h ln n, for n keys that a query sees: a learnt temperature (arXiv 2404.12224)."""
  scale_BTH = 1 + strength_H * jnp.log(seen_BT.astype(jnp.float32))[..., None]
  return (q_BTHh * scale_BTH[..., None]).astype(q_BTHh.dtype)
