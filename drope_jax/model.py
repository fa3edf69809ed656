"""The decoder: parameters in one table, mathematics in pure functions, and a thin Linen shell.

Letters: B batch, T query length, S key length, D model, H query heads, K key/value heads, h head dim, F feed-forward,
V vocabulary, L layers. A name such as `q_BTHh` states the dimensions of its array.

The parameters of all layers are stacked along a leading L axis, however the layers are run (scanned, unrolled, or in a
pattern) and whatever their positional embedding. So one checkpoint serves them all, and dropping the embedding is a
change of config, not of weights.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drope_jax.attention import Segments, attention
from drope_jax.config import ComputeConfig, ModelConfig
from drope_jax.layers import project, rms_norm, swiglu
from drope_jax.platforms import target_platform
from drope_jax.positions import ALiBi, Frequencies, Layer, RoPE, Rotation, alibi_slopes, layer_cycle, rotate, rotation
from drope_jax.sharding import constrain

Array = jax.Array
Params = dict[str, Any]


# --- parameters --------------------------------------------------------------------------------


class ParameterSpec(NamedTuple):
  """One parameter: its shape, the names of its dimensions (see sharding.py), its initialiser, and whether it decays."""

  shape: tuple[int, ...]
  dimensions: tuple[str, ...]
  init: Callable[..., Array]
  decay: bool


def parameter_specs(config: ModelConfig) -> Params:
  """The one declaration of every parameter, as a tree of ParameterSpec. All are float32."""
  layers, d_model, head_dim = config.num_layers, config.d_model, config.head_dim
  sizes = {"vocab": config.vocab_size, "embed": d_model, "norm": d_model, "mlp": config.d_ff, "head_dim": head_dim}
  sizes |= {"layers": layers, "heads": config.num_heads, "kv_heads": config.num_kv_heads}

  def spec(init: Callable[..., Array], decay: bool, *dimensions: str) -> ParameterSpec:
    return ParameterSpec(tuple(sizes[name] for name in dimensions), dimensions, init, decay)

  def matrix(*dimensions: str) -> ParameterSpec:
    return spec(nn.initializers.normal(config.init_std), True, *dimensions)

  def scale(*dimensions: str) -> ParameterSpec:
    return spec(nn.initializers.ones, False, *dimensions)

  def bias(*dimensions: str) -> ParameterSpec:
    return spec(nn.initializers.zeros, False, *dimensions)

  layer = {
    "attention_norm": scale("layers", "norm"),
    "q": matrix("layers", "embed", "heads", "head_dim"),
    "k": matrix("layers", "embed", "kv_heads", "head_dim"),
    "v": matrix("layers", "embed", "kv_heads", "head_dim"),
    "o": matrix("layers", "heads", "head_dim", "embed"),
    "mlp_norm": scale("layers", "norm"),
    "gate": matrix("layers", "embed", "mlp"),
    "up": matrix("layers", "embed", "mlp"),
    "down": matrix("layers", "mlp", "embed"),
  }
  if config.qkv_bias:
    layer["q_bias"] = bias("layers", "heads", "head_dim")
    layer["k_bias"] = bias("layers", "kv_heads", "head_dim")
    layer["v_bias"] = bias("layers", "kv_heads", "head_dim")
  if config.qk_norm is not None:
    per_head = config.qk_norm.scope == "head"
    if config.qk_norm.queries:
      layer["q_norm"] = scale("layers", "head_dim") if per_head else scale("layers", "heads", "head_dim")
    if config.qk_norm.keys:
      layer["k_norm"] = scale("layers", "head_dim") if per_head else scale("layers", "kv_heads", "head_dim")

  specs = {"embedding": matrix("vocab", "embed"), "layers": layer, "final_norm": scale("norm")}
  if not config.tie_embeddings:
    specs["unembedding"] = matrix("vocab", "embed")
  return specs


def map_specs(function: Callable[[ParameterSpec], Any], config: ModelConfig) -> Params:
  """`function` of every parameter's spec, in the shape of the parameter tree."""
  return jax.tree.map(function, parameter_specs(config), is_leaf=lambda node: isinstance(node, ParameterSpec))


def count_parameters(config: ModelConfig) -> int:
  """All parameters, the embedding included."""
  return sum(jax.tree.leaves(map_specs(lambda spec: math.prod(spec.shape), config)))


# --- the function ------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cache:
  """Keys and values of the tokens so far. Keys lie here unrotated, so that a rotation may depend on the final length.

  Row b holds `lengths_B[b]` tokens, from slot 0 on; what lies in later slots is never seen.
  """

  k_LBSKh: Array
  v_LBSKh: Array
  lengths_B: Array


def compute_dtype(compute: ComputeConfig) -> jnp.dtype:
  """The dtype of activations: "auto" is float32 on CPU, bfloat16 elsewhere."""
  if compute.dtype == "auto":
    return jnp.dtype(jnp.float32 if target_platform() == "cpu" else jnp.bfloat16)
  return jnp.dtype(compute.dtype)


def init_cache(config: ModelConfig, batch: int, capacity: int, compute: ComputeConfig | None = None) -> Cache:
  """An empty cache for `capacity` tokens in each of `batch` rows."""
  shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
  dtype = compute_dtype(compute or ComputeConfig())

  def zeros() -> Array:
    return constrain(jnp.zeros(shape, dtype), "layers", "batch", "length", "kv_heads", "head_dim")

  return Cache(zeros(), zeros(), jnp.zeros(batch, jnp.int32))


class _Context(NamedTuple):
  """What every layer needs beside its own weights."""

  config: ModelConfig
  compute: ComputeConfig
  position_ids_BT: Array
  segments_BT: Array | None
  offset_B: Array | int  # index of each row's first query: the number of cached tokens
  length: Any  # for dynamic scalings
  logit_scale: float | Array
  frequencies: Frequencies | None


def _write(cache_LBSKh: Array, new_BTKh: Array, layer: Array | int, offset_B: Array) -> Array:
  """The cache with `new_BTKh` in its layer, each row from its own offset on."""
  rows = jnp.arange(new_BTKh.shape[0])[:, None]
  slots = offset_B[:, None] + jnp.arange(new_BTKh.shape[1])
  return cache_LBSKh.at[layer, rows, slots].set(new_BTKh, mode="drop")


def _attention_block(params: Params, x_BTD: Array, cache: Cache | None, index: Any, layer: Layer, context: _Context):
  """Residual update of the attention sublayer, and the cache with this layer's keys and values."""
  config = context.config
  dtype = x_BTD.dtype
  y_BTD = rms_norm(x_BTD, params["attention_norm"], config.norm_eps)

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

  key_position_ids = context.position_ids_BT
  if cache is not None:
    cache = dataclasses.replace(
      cache,
      k_LBSKh=_write(cache.k_LBSKh, k_BSKh, index, cache.lengths_B),
      v_LBSKh=_write(cache.v_LBSKh, v_BSKh, index, cache.lengths_B),
    )
    k_BSKh, v_BSKh = cache.k_LBSKh[index], cache.v_LBSKh[index]
    key_position_ids = jnp.arange(k_BSKh.shape[1])[None]

  def rotation_at(position_ids_BT: Array) -> Rotation | None:
    return rotation(layer.positions, position_ids_BT, config.head_dim, context.length, context.frequencies)

  segments = context.segments_BT
  out_BTHh = attention(
    rotate(q_BTHh, rotation_at(context.position_ids_BT)),
    rotate(k_BSKh, rotation_at(key_position_ids)),
    v_BSKh,
    offset=context.offset_B,
    window=layer.window,
    segments=None if segments is None else Segments(segments, segments),
    slopes_H=alibi_slopes(config.num_heads) if isinstance(layer.positions, ALiBi) else None,
    logit_scale=context.logit_scale,
    kernel=context.compute.attention,
  )
  return project(out_BTHh, params["o"].astype(dtype), 2), cache


def _mlp_block(params: Params, x_BTD: Array, config: ModelConfig) -> Array:
  """Residual update of the SwiGLU sublayer."""
  dtype = x_BTD.dtype
  y_BTD = rms_norm(x_BTD, params["mlp_norm"], config.norm_eps)
  gate_BTF = project(y_BTD, params["gate"].astype(dtype))
  up_BTF = project(y_BTD, params["up"].astype(dtype))
  hidden_BTF = constrain(swiglu(gate_BTF, up_BTF), "batch", "length", "mlp")
  return project(hidden_BTF, params["down"].astype(dtype))


def _remat(function: Callable, policy: str, **static: Any) -> Callable:
  if policy == "none":
    return function
  saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
  return jax.checkpoint(function, policy=saved, **static)


def _run_layers(params: Params, x_BTD: Array, cache: Cache | None, context: _Context) -> tuple[Array, Cache | None]:
  """All layers in order: whole cycles of the pattern scanned (if asked to), the rest unrolled."""
  cycle = layer_cycle(context.config.positions)
  num_layers, period = context.config.num_layers, len(cycle)

  def run(params: Params, x_BTD: Array, cache: Cache | None, index: Any, layer: Layer):
    with jax.named_scope("attention"):
      update_BTD, cache = _attention_block(params, x_BTD, cache, index, layer, context)
      x_BTD = constrain(x_BTD + update_BTD, "batch", "length", "features")
    with jax.named_scope("mlp"):
      x_BTD = constrain(x_BTD + _mlp_block(params, x_BTD, context.config), "batch", "length", "features")
    return x_BTD, cache

  run_layer = _remat(run, context.compute.remat, static_argnums=(4,))

  def run_cycle(carry: tuple[Array, Cache | None], xs: tuple[Params, Array]):
    cycle_params, first = xs
    for i, layer in enumerate(cycle):
      carry = run_layer(jax.tree.map(lambda w, i=i: w[i], cycle_params), *carry, first + i, layer)
    return carry, None

  carry = (x_BTD, cache)
  scanned = num_layers // period * period if context.compute.scan_layers else 0
  if scanned:
    cycles = jax.tree.map(lambda w: w[:scanned].reshape(scanned // period, period, *w.shape[1:]), params)
    carry, _ = lax.scan(run_cycle, carry, (cycles, jnp.arange(0, scanned, period)))
  if scanned < num_layers:
    # lax.split, whose gradient is one concatenation: indexing would sum a full-sized array per layer.
    pieces = jax.tree.map(lambda w: lax.split(w, (scanned,) * (scanned > 0) + (1,) * (num_layers - scanned)), params)
    for i in range(scanned, num_layers):
      piece = i - num_layers  # counted from the end, past the scanned part
      layer_params = jax.tree.map(
        lambda w, piece=piece: w[piece][0], pieces, is_leaf=lambda w: isinstance(w, list | tuple)
      )
      carry = run_layer(layer_params, *carry, i, cycle[i % period])
  return carry


def separate_frequencies(config: ModelConfig) -> tuple[ModelConfig, Frequencies | None]:
  """A config, and the table to run it with, that are the model of `config` (None: there is no such table).

  Models that differ in theta or in the factor of their scaling alone are one config, and so one compiled program.
  """
  rope = config.positions
  if not isinstance(rope, RoPE) or rope.dynamic:
    return config, None
  omega, factor = rope.frequencies(config.head_dim)
  table = Frequencies(np.asarray(omega, np.float32), np.asarray(factor, np.float32))
  return dataclasses.replace(config, positions=RoPE()), table


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
) -> tuple[Array, Cache | None]:
  """The decoder up to its final norm, and the cache that now holds `tokens_BT` too (None if none was given).

  Args:
    params: the tree of `parameter_specs(config)`.
    tokens_BT: int32 token ids; with a cache, the tokens that follow it.
    compute: how to compute it; the default ComputeConfig if None.
    position_ids_BT: int32, read by RoPE alone; default 0, 1, ... (from the cache's length on);
      not with a cache, whose keys are rotated by their slots.
    segments_BT: document numbers that attention must not cross; not with a cache.
    cache: see Cache. It must have room for T more tokens in each row.
    length: tokens of the whole sequence, an int or an int array of shape (B, 1): read by the dynamic scalings, which
      take T without a cache and need it said with one.
    logit_scale: beta of paper appendix C.2 (see drope.temperature); a scalar or (H,).
    frequencies: the table of every RoPE layer, in the place of that of `config` (see `separate_frequencies`).

  Returns:
    x_BTD in the compute dtype, normalised; and the new cache.
  """
  if cache is not None and segments_BT is not None:
    raise ValueError("segments_BT cannot be used with a cache: cached tokens have no document numbers")
  if cache is not None and position_ids_BT is not None:
    raise ValueError("position_ids_BT cannot be used with a cache: cached keys are rotated by their slots")
  if cache is not None and tokens_BT.shape[1] > cache.k_LBSKh.shape[2]:
    raise ValueError(f"{tokens_BT.shape[1]} tokens do not fit into a cache of {cache.k_LBSKh.shape[2]}")
  compute = compute or ComputeConfig()
  length = tokens_BT.shape[1] if length is None and cache is None else length
  offset_B = 0 if cache is None else cache.lengths_B
  if position_ids_BT is None:
    position_ids_BT = jnp.arange(tokens_BT.shape[1])[None]
    if cache is not None:
      position_ids_BT = position_ids_BT + cache.lengths_B[:, None]
  context = _Context(config, compute, position_ids_BT, segments_BT, offset_B, length, logit_scale, frequencies)

  x_BTD = params["embedding"][tokens_BT].astype(compute_dtype(compute))
  x_BTD = constrain(x_BTD, "batch", "length", "features")
  x_BTD, cache = _run_layers(params["layers"], x_BTD, cache, context)
  if cache is not None:
    cache = dataclasses.replace(cache, lengths_B=cache.lengths_B + tokens_BT.shape[1])
  return rms_norm(x_BTD, params["final_norm"], config.norm_eps), cache


def output_embedding(params: Params) -> Array:
  """The matrix (V, D) whose product with a hidden state is its logits: the embedding, unless that is untied."""
  return params["unembedding" if "unembedding" in params else "embedding"]


def unembed(params: Params, x_BTD: Array, derivatives: str = "own") -> Array:
  """Float32 logits (B, T, V) of normalised hidden states; `derivatives` as in ComputeConfig."""
  weight_DV = output_embedding(params).astype(x_BTD.dtype).T
  if derivatives == "own":
    logits_BTV = project(x_BTD, weight_DV, 1, jnp.float32)
  else:
    logits_BTV = jnp.tensordot(x_BTD, weight_DV, 1, preferred_element_type=jnp.float32)
  return constrain(logits_BTV, "batch", "length", "vocab")


# --- the Linen shell ---------------------------------------------------------------------------


class _LayerParameters(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self) -> Params:
    specs = parameter_specs(self.config)["layers"]
    return {name: self.param(name, spec.init, spec.shape, jnp.float32) for name, spec in specs.items()}


class Decoder(nn.Module):
  """`Decoder(config).init(key, tokens)` makes the parameters, `.apply({"params": params}, tokens)` the logits.

  The same parameters are applied under a config with RoPE and under one without: see `drope_jax.drop`.
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
    x_BTD, _ = hidden_states(params, self.config, tokens_BT, compute=self.compute, **inputs)
    return unembed(params, x_BTD)


def init_params(config: ModelConfig, key: Array) -> Params:
  """Fresh parameters of `config` (a pure function, so that `jax.jit` with shardings creates them in place)."""
  # One token, which no mesh can cut up: a kernel that deals out rows itself could not serve it.
  return Decoder(config, ComputeConfig(attention="reference")).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
