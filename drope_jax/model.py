"""The decoder: pure functions of the parameters (parameters.py), and a thin Linen shell around them.

Letters: B batch, T query length, S key length, D model, H query heads, K key/value heads, h head dim, F feed-forward,
V vocabulary, L layers. A name such as `q_BTHh` states the dimensions of its array.

The parameters of all layers are stacked along a leading L axis, whether the layers are scanned, unrolled or form a
pattern, and whatever their positional embedding. So one checkpoint serves all of these, and dropping the embedding
changes the config and not the weights.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from drope_jax.additions import keys_seen
from drope_jax.attention import Segments
from drope_jax.cache import Cache
from drope_jax.layers import layers_with, project, softcapped
from drope_jax.model_config import ComputeConfig, ModelConfig, compute_dtype
from drope_jax.parameters import ParameterSpec, Params, parameter_specs
from drope_jax.platforms import target_platform
from drope_jax.positions import Embedding, RoPE, layer_cycle
from drope_jax.remat import checkpointed
from drope_jax.rotation import Frequencies, Rotation, rotation
from drope_jax.sharding import constrain
from drope_jax.sublayers import LayerKind, attention_sublayer, feed_forward

Array = jax.Array


class Taps(NamedTuple):
  """Which intermediates of which layers `hidden_states` returns as well."""

  layers: tuple[int, ...]
  names: tuple[str, ...]  # of TAPS


# The intermediates of a layer that can be returned, by name, and their dimensions.
TAPS = {
  "residual": "the residual stream that enters the layer, (B, T, D)",
  "queries": "as attention reads them, normalised and rotated, (B, T, H, h)",
  "keys": "likewise, (B, S, K, h)",
  "values": "(B, S, K, h)",
  "weights": "attention weights, float32 (B, H, T, S)",
  "attention": "what the attention sublayer adds to the residual stream, (B, T, D)",
  "mlp": "what the feed-forward sublayer adds to it, (B, T, D)",
}


class Hidden(NamedTuple):
  """The result of `hidden_states`."""

  states_BTD: Array  # after the final norm, in the compute dtype: the input of `unembed`
  cache: Cache | None  # including the new tokens; None if no cache was given
  taps: dict[str, Array]  # by name, stacked along a leading axis in the order of Taps.layers


# On one H200, the step of the 494M model was 12 % slower with scanned layers, and unrolled it took a second per layer
# to compile: worth it for any run of more than a few minutes, up to some number of layers. On TPUs this was not
# measured, and even the scanned step of a large model takes minutes to compile. On CPUs, configs with few layers unroll
# explicitly.
_MOST_UNROLLED = 48


def scans(config: ModelConfig, compute: ComputeConfig, *, unrolled_is_faster: bool) -> bool:
  """Whether layers are scanned: as `compute` says, else unless unrolling is faster and there are few enough layers."""
  if compute.scan_layers is not None:
    return compute.scan_layers
  return not unrolled_is_faster or config.num_layers > _MOST_UNROLLED


def _run_layers(
  params: Params | tuple[Params, ...],
  x_BTD: Array,
  cache: Cache | None,
  kinds: Sequence[LayerKind],
  config: ModelConfig,
  compute: ComputeConfig,
  taps: Taps,
) -> Hidden:
  """Runs all layers in order: whole cycles of the pattern are scanned (see `scans`), the rest is unrolled."""
  num_layers, period = config.num_layers, len(kinds)

  def run(params: Params, x_BTD: Array, cache: Cache | None, index: Any, kind: int, tapped: tuple[str, ...]):
    entering_BTD = x_BTD = checkpoint_name(x_BTD, "input")
    with jax.named_scope("attention"):
      update_BTD, cache, seen = attention_sublayer(params, x_BTD, cache, index, kinds[kind], config, compute, tapped)
      x_BTD = constrain(x_BTD + update_BTD, "batch", "length", "features")
    with jax.named_scope("mlp"):
      update_BTD = feed_forward(params, x_BTD, config, compute)
      x_BTD = constrain(x_BTD + update_BTD, "batch", "length", "features")
    seen |= {"residual": entering_BTD, "mlp": update_BTD}
    return x_BTD, cache, {name: seen[name] for name in tapped}

  run_layer = checkpointed(run, compute, static_argnums=(4, 5))

  def run_cycle(carry: tuple[Array, Cache | None], xs: tuple[Params, Array]):
    cycle_params, first = xs
    for kind in range(period):
      layer_params = jax.tree.map(lambda w, kind=kind: w[kind], cycle_params)
      *carry, _ = run_layer(layer_params, *carry, first + kind, kind, ())
    return tuple(carry), None

  carry = (x_BTD, cache)
  on_gpu = target_platform() == "gpu"
  unrolled = isinstance(params, tuple) or taps.layers or not scans(config, compute, unrolled_is_faster=on_gpu)
  scanned = 0 if unrolled else num_layers // period * period
  if scanned:
    cycles = jax.tree.map(lambda w: w[:scanned].reshape(scanned // period, period, *w.shape[1:]), params)
    carry, _ = lax.scan(run_cycle, carry, (cycles, jnp.arange(0, scanned, period)))
  seen: dict[int, dict[str, Array]] = {}
  rest = params if isinstance(params, tuple) else _split(params, scanned, num_layers)
  for i, layer_params in enumerate(rest, start=scanned):
    *carry, seen[i] = run_layer(layer_params, *carry, i, i % period, taps.names if i in taps.layers else ())
  return Hidden(*carry, {name: jnp.stack([seen[i][name] for i in taps.layers]) for name in taps.names if taps.layers})


def _split(params: Params, first: int, num_layers: int) -> list[Params]:
  """The parameters of each layer from index `first` on, of stacked `params`."""
  if first == num_layers:
    return []
  # The gradient of lax.split is one concatenation; that of indexing would add up one full-sized array per layer.
  sizes = (first,) * (first > 0) + (1,) * (num_layers - first)
  slices = {name: lax.split(w, sizes)[first > 0 :] for name, w in params.items()}
  return [{name: slices[name][i][0] for name in slices} for i in range(num_layers - first)]


def separate_frequencies(config: ModelConfig) -> tuple[ModelConfig, Frequencies | None]:
  """Splits a model into a config and the frequencies of its rotation (None if they are not one fixed table).

  The config is static and the frequencies are an argument, so models that differ only in frequencies share one compiled
  program.
  """
  table = config.positions.table(config.head_dim) if isinstance(config.positions, Embedding) else None
  if table is None:
    return config, None
  table = Frequencies(np.asarray(table.omega, np.float32), np.asarray(table.factor, np.float32))
  return dataclasses.replace(config, positions=RoPE()), table


def _resolve(
  config: ModelConfig,
  position_ids_BT: Array,
  index_BT: Array,
  length: Any,
  frequencies: Frequencies | None,
  attention_arguments: dict[str, Any],
) -> list[LayerKind]:
  """What attention needs for each layer of the cycle: computed once, before the layers run."""

  def rotation_of(embedding: Embedding | None) -> Rotation | None:
    if embedding is None:
      return None
    if frequencies is not None and embedding.frequencies(config.head_dim, length) is not None:
      return rotation(position_ids_BT, frequencies)
    return embedding.rotation(position_ids_BT, config.head_dim, length)

  kinds = []
  for layer in layer_cycle(config.positions):
    embedding = layer.positions
    turn = rotation_of(embedding)
    bias = None if embedding is None else embedding.bias(config.num_heads)
    by_layer = turn is not None and turn.cos.ndim == 4
    segments = None if attention_arguments["segments"] is None else attention_arguments["segments"].queries
    seen_BT = keys_seen(index_BT, segments, layer.window) if config.logn_scale else None
    kinds.append(LayerKind(turn, {**attention_arguments, "window": layer.window, "bias": bias}, by_layer, seen_BT))
  return kinds


def hidden_states(
  params: Params,
  config: ModelConfig,
  tokens_BT: Array,
  *,
  compute: ComputeConfig | None = None,
  position_ids_BT: Array | None = None,
  segments_BT: Array | None = None,
  cache: Cache | None = None,
  length: Any = None,
  logit_scale: float | Array = 1.0,
  frequencies: Frequencies | None = None,
  taps: Taps = Taps((), ()),
) -> Hidden:
  """The decoder up to its final norm.

  Args:
    params: the tree of `parameter_specs(config)`; with separate layers (layers_apart.py) they run unrolled.
    tokens_BT: int32 token ids; with a cache, the tokens that follow it.
    compute: how to compute it; the default ComputeConfig if None.
    position_ids_BT: int32, read only by rotations; default 0, 1, ... (from the cache's length on);
      not with a cache, whose keys are rotated by their slots.
    segments_BT: document numbers that attention must not cross; not with a cache.
    cache: see Cache. It must have room for T more tokens in each row.
    length: tokens of the whole sequence, an int or an int array (B, 1), read by dynamic scalings. The default is T;
      with a cache it must be given, with the same value in every call.
    logit_scale: beta of paper appendix C.2 (see drope.temperature); a scalar or (H,).
    frequencies: used by every layer that rotates, instead of those of `config` (see `separate_frequencies`).
    taps: intermediates to return as well; others are not computed. With taps, layers run unrolled.

  Raises:
    ValueError: for arguments that exclude each other, and for unknown taps.
  """
  if cache is not None and segments_BT is not None:
    raise ValueError("segments_BT cannot be used with a cache: cached tokens have no document numbers")
  if cache is not None and position_ids_BT is not None:
    raise ValueError("position_ids_BT cannot be used with a cache: cached keys are rotated by their slots")
  if cache is not None and tokens_BT.shape[1] > cache.k_LBSKh.shape[2]:
    raise ValueError(f"{tokens_BT.shape[1]} tokens do not fit into a cache of {cache.k_LBSKh.shape[2]}")
  if not isinstance(taps, Taps):
    raise ValueError(f"taps is {taps!r}; it must be Taps(layers, names)")
  if not set(taps.names) <= set(TAPS) or not set(taps.layers) <= set(range(config.num_layers)):
    raise ValueError(f"{taps}: names are of {', '.join(TAPS)}; layers are 0 to {config.num_layers - 1}")
  compute = compute or ComputeConfig()
  length = tokens_BT.shape[1] if length is None and cache is None else length
  index_BT = jnp.arange(tokens_BT.shape[1])[None]
  if cache is not None:
    index_BT = index_BT + cache.lengths_B[:, None]
  if position_ids_BT is None:
    position_ids_BT = index_BT
  attention_arguments = {
    "offset": 0
    if cache is None
    else cache.lengths_B,  # each row's first query has this index: the number of cached tokens
    "segments": None if segments_BT is None else Segments(segments_BT, segments_BT),
    "softcap": config.attention_softcap,
    "logit_scale": logit_scale,
  }
  if config.attention_scale is not None:
    attention_arguments["logit_scale"] = logit_scale * (config.attention_scale * math.sqrt(config.head_dim))
  kinds = _resolve(config, position_ids_BT, index_BT, length, frequencies, attention_arguments)

  x_BTD = params["embedding"][tokens_BT].astype(compute_dtype(compute))
  if config.embedding_multiplier != 1:
    x_BTD *= config.embedding_multiplier
  x_BTD = constrain(x_BTD, "batch", "length", "features")
  x_BTD, cache, seen = _run_layers(params["layers"], x_BTD, cache, kinds, config, compute, taps)
  if cache is not None:
    cache = dataclasses.replace(cache, lengths_B=cache.lengths_B + tokens_BT.shape[1])
  rms_norm, _ = layers_with(compute.derivatives)
  states_BTD = rms_norm(x_BTD, params["final_norm"], config.norm_eps)
  if config.logits_divisor != 1:  # applied here, since the logits are far more numbers
    states_BTD /= config.logits_divisor
  return Hidden(states_BTD, cache, seen)


def output_embedding(params: Params) -> Array:
  """The matrix (V, D) that maps hidden states to logits: the embedding, unless the output embedding is untied."""
  return params["unembedding" if "unembedding" in params else "embedding"]


def unembed(params: Params, x_BTD: Array, derivatives: str = "own", *, softcap: float | None = None) -> Array:
  """Float32 logits (B, T, V) of normalised hidden states.

  Args:
    derivatives: ComputeConfig.derivatives.
    softcap: ModelConfig.logits_softcap.
  """
  weight_DV = output_embedding(params).astype(x_BTD.dtype).T
  if derivatives == "own":
    logits_BTV = project(x_BTD, weight_DV, 1, jnp.float32)
  else:
    logits_BTV = jnp.tensordot(x_BTD, weight_DV, 1, preferred_element_type=jnp.float32)
  return constrain(softcapped(logits_BTV, softcap), "batch", "length", "vocab")


# --- the Linen shell ---------------------------------------------------------------------------


class _LayerParameters(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self) -> Params:
    specs = parameter_specs(self.config)["layers"]
    return {name: self.param(name, spec.init, spec.shape, jnp.float32) for name, spec in specs.items()}


class Decoder(nn.Module):
  """`Decoder(config).init(key, tokens)` creates parameters, `.apply({"params": params}, tokens)` computes logits.

  The same parameters can be applied under a config with RoPE and under one without: see `drope_jax.drop`.
  """

  config: ModelConfig
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, tokens_BT: Array, **inputs: Any) -> Array:
    """Float32 logits (B, T, V) of int32 tokens (B, T); `inputs` are the keyword arguments of `hidden_states`."""
    specs = parameter_specs(self.config)
    params: Params = {
      name: self.param(name, spec.init, spec.shape, jnp.float32)
      for name, spec in specs.items()
      if isinstance(spec, ParameterSpec)
    }
    params["layers"] = _LayerParameters(self.config, name="layers")()
    states_BTD = hidden_states(params, self.config, tokens_BT, compute=self.compute, **inputs).states_BTD
    return unembed(params, states_BTD, self.compute.derivatives, softcap=self.config.logits_softcap)


def init_params(config: ModelConfig, key: Array) -> Params:
  """Fresh parameters of `config` (a pure function, so that `jax.jit` with shardings creates them in place)."""
  # One token cannot be sharded, which kernels that distribute rows themselves would need.
  return Decoder(config, ComputeConfig(attention="reference")).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
