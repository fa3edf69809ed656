"""What the backward pass keeps of a layer rather than computing it again: its names, and the bytes they take.

| name      | what it is                                        | numbers per token     | what it spares     |
|-----------|---------------------------------------------------|-----------------------|--------------------|
| input     | the residual stream that enters the layer         | D                     | - (it is kept)     |
| qkv       | queries, keys and values as the kernel reads them | (H + 2 K) h           | three projections  |
| attention | what the kernel gives, and its log-sum-exp        | H h, and H in float32 | the kernel         |
| mlp       | gate and up before the activation                 | 2 F                   | two projections    |

Letters as in model.py. Numbers have the compute dtype. Names are set where the arrays are made, by `checkpoint_name`.
"""

from collections.abc import Callable
from typing import Any

import jax

from drope_jax.model_config import ComputeConfig, ModelConfig

# Splash, Triton and the blockwise kernel name their results. cuDNN's has no name, but a primitive of its own.
_CUDNN = "dot_product_attention_fwd_wrapper"


def checkpointed(function: Callable, compute: ComputeConfig, **static: Any) -> Callable:
  """`function`, one layer, with a backward pass that keeps what `compute` says."""
  if compute.remat == "none":
    return function
  return jax.checkpoint(function, policy=_policy(compute), **static)


def _policy(compute: ComputeConfig) -> Callable | None:
  if compute.remat == "dots":
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  if not compute.remat_keep and not compute.remat_offload:
    return None
  named = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=list(compute.remat_keep),
    names_which_can_be_offloaded=list(compute.remat_offload),
    offload_src="device",
    offload_dst="pinned_host",
  )

  def policy(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
    if primitive.name == _CUDNN and "attention" in compute.remat_keep:
      return True
    return named(primitive, *arguments, **parameters)

  return policy


def bytes_per_token(name: str, config: ModelConfig, itemsize: int = 2) -> int:
  """What one of the names above takes of a token in one layer; `itemsize` is that of the compute dtype."""
  projections = config.num_heads + 2 * config.num_kv_heads
  return {
    "input": config.d_model * itemsize,
    "qkv": projections * config.head_dim * itemsize,
    "attention": config.num_heads * (config.head_dim * itemsize + 4),
    "mlp": 2 * config.d_ff * itemsize,
  }[name]
