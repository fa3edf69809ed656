"""Every parameter of a model, in one table: shape, names of the dimensions, initialiser, weight decay."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from drope_jax.model_config import ModelConfig

Array = jax.Array
Params = dict[str, Any]


# The field of ModelConfig that gives the size of each dimension.
FIELDS = {
  "vocab": "vocab_size",
  "embed": "d_model",
  "norm": "d_model",
  "mlp": "d_ff",
  "layers": "num_layers",
  "heads": "num_heads",
  "kv_heads": "num_kv_heads",
  "head_dim": "head_dim",
}


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
  """One parameter. Not a pytree node, so `jax.tree.map` over a tree of specs visits whole specs."""

  shape: tuple[int, ...]
  dimensions: tuple[str, ...]  # the name of each dimension, from FIELDS; sharding.RULES maps them to mesh axes
  init: Callable[..., Array]  # (key, shape, dtype) -> the initial array
  decay: bool  # whether weight decay applies to it


def parameter_specs(config: ModelConfig) -> Params:
  """The tree of ParameterSpec that declares every parameter of a model. All are float32."""
  sizes = {dimension: getattr(config, field) for dimension, field in FIELDS.items()}

  def spec(init: Callable[..., Array], decay: bool, *dimensions: str) -> ParameterSpec:
    return ParameterSpec(tuple(sizes[name] for name in dimensions), dimensions, init, decay)

  def matrix(*dimensions: str) -> ParameterSpec:
    return spec(nn.initializers.normal(config.init_std), True, *dimensions)

  def scale(*dimensions: str) -> ParameterSpec:
    return spec(nn.initializers.ones, False, *dimensions)

  def bias(*dimensions: str) -> ParameterSpec:
    return spec(nn.initializers.zeros, False, *dimensions)

  norms = {"pre": ("norm",), "post": ("post_norm",), "both": ("norm", "post_norm")}[config.norm_placement]
  layer = {
    **{f"attention_{norm}": scale("layers", "norm") for norm in norms},
    "q": matrix("layers", "embed", "heads", "head_dim"),
    "k": matrix("layers", "embed", "kv_heads", "head_dim"),
    "v": matrix("layers", "embed", "kv_heads", "head_dim"),
    "o": matrix("layers", "heads", "head_dim", "embed"),
    **{f"mlp_{norm}": scale("layers", "norm") for norm in norms},
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

  if config.token_shift:
    layer["token_shift"] = bias("layers")
  if config.logn_scale:
    layer["logn_scale"] = bias("layers", "heads")

  specs = {"embedding": matrix("vocab", "embed"), "layers": layer, "final_norm": scale("norm")}
  if not config.tie_embeddings:
    specs["unembedding"] = matrix("vocab", "embed")
  return specs


def map_specs(function: Callable[[ParameterSpec], Any], config: ModelConfig) -> Params:
  """The parameter tree with `function(spec)` in place of each parameter."""
  return jax.tree.map(function, parameter_specs(config))


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """The leaves of a tree of parameters, or of an optimizer's state, each with its path ("layers/q")."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
  ]


def count_parameters(config: ModelConfig) -> int:
  """All parameters, the embedding included."""
  return sum(jax.tree.leaves(map_specs(lambda spec: math.prod(spec.shape), config)))
