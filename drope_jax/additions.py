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


def shifted(k_BSKh: Array, amount: Array, segments_BS: Array | None) -> Array:
  """Token shift: k + a (previous k - k), as Canon layers mix neighbours (arXiv 2512.17351), for keys alone.

  The first key of a row, or of a segment, has none before it and stays as it is.

  Args:
    k_BSKh: keys before their rotation, in order from the first of each row.
    amount: a, float32 ().
    segments_BS: document numbers, or None for rows of one document.
  """
  before_BSKh = jnp.pad(k_BSKh[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
  follows_BS = (jnp.arange(k_BSKh.shape[1]) > 0)[None]
  if segments_BS is not None:
    follows_BS &= segments_BS == jnp.pad(segments_BS[:, :-1], ((0, 0), (1, 0)))
  return k_BSKh + amount.astype(k_BSKh.dtype) * jnp.where(follows_BS[..., None, None], before_BSKh - k_BSKh, 0)


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
