"""The two sublayers of a layer: attention, and the gated feed-forward layer. Letters as in model.py."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from drope_jax.additions import scaled_by_logn, shifted
from drope_jax.attention import attention, attention_weights
from drope_jax.cache import Cache, last_plain_key, with_plain_keys, write
from drope_jax.layers import gated, layers_with
from drope_jax.model_config import ComputeConfig, ModelConfig
from drope_jax.parameters import Params
from drope_jax.rotation import Rotation, rotate
from drope_jax.sharding import constrain

Array = jax.Array


class LayerKind(NamedTuple):
  """One layer of the pattern's cycle in one call: what all layers at this place in the cycle share."""

  rotation: Rotation | None  # of queries and keys
  attention_arguments: dict[str, Any]  # keywords of `attention`: offset, window, segments, bias, softcap, logit_scale
  by_layer: bool  # whether the rotation has a leading L axis
  seen_BT: Array | None  # the number of keys that each query sees; None unless ModelConfig.logn_scale needs it


def _read(params: Params, name: str, x_BTD: Array, config: ModelConfig, compute: ComputeConfig) -> Array:
  """The input of a sublayer: the residual stream, normalised if the layer has a pre-norm."""
  weight_D = params.get(f"{name}_norm")
  return x_BTD if weight_D is None else layers_with(compute.derivatives).rms_norm(x_BTD, weight_D, config.norm_eps)


def _added(params: Params, name: str, update_BTD: Array, config: ModelConfig, compute: ComputeConfig) -> Array:
  """The output of a sublayer: the result of its last product, with post-norm and residual multiplier applied."""
  weight_D = params.get(f"{name}_post_norm")
  if weight_D is not None:
    update_BTD = layers_with(compute.derivatives).rms_norm(update_BTD, weight_D, config.norm_eps)
  return update_BTD if config.residual_multiplier == 1 else update_BTD * config.residual_multiplier


def attention_sublayer(
  params: Params,
  x_BTD: Array,
  cache: Cache | None,
  index: Any,
  kind: LayerKind,
  config: ModelConfig,
  compute: ComputeConfig,
  tapped: Sequence[str],
) -> tuple[Array, Cache | None, dict[str, Array]]:
  """The residual update of the attention sublayer.

  Args:
    params: of this layer.
    x_BTD: the residual stream.
    index: of this layer, an int or int32 ().
    tapped: names of model.TAPS that the caller reads; only "weights" costs anything.

  Returns:
    The update (B, T, D), the cache with the keys and values of this layer, and the intermediates by name.
  """
  rms_norm, project = layers_with(compute.derivatives)
  dtype = x_BTD.dtype
  y_BTD = _read(params, "attention", x_BTD, config, compute)

  def projected(name: str, heads: str) -> Array:
    out = project(y_BTD, params[name].astype(dtype))
    if config.qkv_bias:
      out += params[f"{name}_bias"].astype(dtype)
    return constrain(out, "batch", "length", heads, "head_dim")

  q_BTHh = projected("q", "heads")
  k_BSKh = projected("k", "kv_heads")
  v_BSKh = projected("v", "kv_heads")
  if "q_norm" in params:
    q_BTHh = rms_norm(q_BTHh, params["q_norm"], config.norm_eps)
  if "k_norm" in params:
    k_BSKh = rms_norm(k_BSKh, params["k_norm"], config.norm_eps)
  if config.token_shift:
    segments = kind.attention_arguments["segments"]
    before_BKh = None if cache is None else last_plain_key(cache, index, k_BSKh[:, 0])
    cache = None if cache is None else with_plain_keys(cache, k_BSKh, index)
    k_BSKh = shifted(k_BSKh, params["token_shift"], None if segments is None else segments.keys, before_BKh)
  if kind.seen_BT is not None:
    q_BTHh = scaled_by_logn(q_BTHh, params["logn_scale"], kind.seen_BT)
  if kind.rotation is not None:
    turn = kind.rotation
    if kind.by_layer:
      turn = jax.tree.map(lambda table: table[index], turn)
    q_BTHh, k_BSKh = rotate(q_BTHh, turn), rotate(k_BSKh, turn)
  if cache is not None:
    cache = dataclasses.replace(
      cache,
      k_LBSKh=write(cache.k_LBSKh, k_BSKh, index, cache.lengths_B),
      v_LBSKh=write(cache.v_LBSKh, v_BSKh, index, cache.lengths_B),
    )
    k_BSKh, v_BSKh = cache.k_LBSKh[index], cache.v_LBSKh[index]
  q_BTHh, k_BSKh, v_BSKh = (checkpoint_name(x, "qkv") for x in (q_BTHh, k_BSKh, v_BSKh))
  # The reference kernel is the only one without hand-written derivatives.
  kernel = "reference" if compute.derivatives == "jax" and compute.attention == "auto" else compute.attention
  out_BTHh = attention(q_BTHh, k_BSKh, v_BSKh, **kind.attention_arguments, kernel=kernel)
  update_BTD = _added(params, "attention", project(out_BTHh, params["o"].astype(dtype), 2), config, compute)
  seen = {"queries": q_BTHh, "keys": k_BSKh, "values": v_BSKh, "attention": update_BTD}
  if "weights" in tapped:
    seen["weights"] = attention_weights(q_BTHh, k_BSKh, **kind.attention_arguments)
  return update_BTD, cache, seen


def feed_forward(params: Params, x_BTD: Array, config: ModelConfig, compute: ComputeConfig) -> Array:
  """The residual update (B, T, D) of the feed-forward sublayer; `params` are those of this layer."""
  project = layers_with(compute.derivatives).project
  dtype = x_BTD.dtype
  y_BTD = _read(params, "mlp", x_BTD, config, compute)
  gate_BTF, up_BTF = (checkpoint_name(project(y_BTD, params[name].astype(dtype)), "mlp") for name in ("gate", "up"))
  hidden_BTF = constrain(gated(gate_BTF, up_BTF, config.activation), "batch", "length", "mlp")
  return _added(params, "mlp", project(hidden_BTF, params["down"].astype(dtype)), config, compute)
