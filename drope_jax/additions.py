"""Learnt parts that can be added to a trained model, and that change nothing until they are trained.

Each is a field of ModelConfig whose parameters start at zero, so that a run can start from weights without them
(InitConfig has fields of the same names). They are meant for models without rotations: token shift gives keys local
order, and the log-n scale keeps attention from spreading out over longer texts. Letters as in model.py.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from drope_jax.parameters import ParameterSpec, Params

Array = jax.Array

ADDITIONS = ("token_shift", "logn_scale")  # fields of ModelConfig


def with_additions(params: Params, specs: Mapping[str, ParameterSpec | Mapping[str, ParameterSpec]]) -> Params:
  """The parameters, with zeros for those of ADDITIONS that `specs` (see parameter_specs) has and they lack."""
  layers, wanted = params["layers"], specs["layers"]
  assert isinstance(wanted, Mapping)
  new = {
    name: jnp.zeros(wanted[name].shape, jnp.float32) for name in ADDITIONS if name in wanted and name not in layers
  }
  return {**params, "layers": {**layers, **new}}


def shifted(k_BTKh: Array, amount: Array, segments_BT: Array | None, before_BKh: Array | None = None) -> Array:
  """Token shift: k + a (previous k - k), as Canon layers mix neighbours (arXiv 2512.17351), but for keys only.

  The first key of a row, or of a segment, has no predecessor and is left unchanged.

  Args:
    k_BTKh: keys before their rotation, of consecutive tokens.
    amount: a, float32 ().
    segments_BT: document numbers, or None for rows of one document.
    before_BKh: the keys that precede the first ones, if the tokens continue those of a cache.

  Returns:
    (B, T, K, h), in the dtype of k.
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
    index_BT: indices of the queries in their rows (or cache slots), from 0.
    segments_BT: document numbers of whole rows, or None.
    window: keys that a query sees at most; None: no limit.
  """
  seen_BT = index_BT + 1
  if segments_BT is not None:
    starts_BT = segments_BT != jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    seen_BT = seen_BT - lax.cummax(jnp.where(starts_BT, index_BT, 0), axis=1)
  return seen_BT if window is None else jnp.minimum(seen_BT, window)


def scaled_by_logn(q_BTHh: Array, strength_H: Array, seen_BT: Array) -> Array:
  """Queries times 1 + s_h ln n, where n keys are seen by the query: a learnt temperature (arXiv 2404.12224).

  Args:
    strength_H: s, float32.
    seen_BT: n, see `keys_seen`.

  Returns:
    (B, T, H, h), in the dtype of q.
  """
  scale_BTH = 1 + strength_H * jnp.log(seen_BT.astype(jnp.float32))[..., None]
  return (q_BTHh * scale_BTH[..., None]).astype(q_BTHh.dtype)
