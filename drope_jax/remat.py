"""Rematerialisation: which intermediates of a layer the backward pass keeps instead of recomputing, and their size.

| name      | what it is                                        | numbers per token     | saves recomputing  |
|-----------|---------------------------------------------------|-----------------------|--------------------|
| input     | the residual stream that enters the layer         | D                     | - (always kept)    |
| qkv       | queries, keys and values as the kernel reads them | (H + 2 K) h           | three projections  |
| attention | the kernel's output, and its log-sum-exp          | H h, and H in float32 | the kernel         |
| mlp       | gate and up before the activation                 | 2 F                   | two projections    |

Letters as in model.py. Numbers have the compute dtype. Names are set where the arrays are made, by `checkpoint_name`.
"""

from collections.abc import Callable
from typing import Any

import jax

from drope_jax.model_config import ComputeConfig, ModelConfig

# Splash, Triton and the blockwise kernel name their results. cuDNN does not, but is recognised by its primitive.
_CUDNN = "dot_product_attention_fwd_wrapper"


def checkpointed(function: Callable, compute: ComputeConfig, **static: Any) -> Callable:
  """`function`, one layer, under the rematerialisation policy of `compute`; `static` goes to `jax.checkpoint`."""
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
  """Bytes per token and layer of one of the names above; `itemsize` is that of the compute dtype."""
  projections = config.num_heads + 2 * config.num_kv_heads
  return {
    "input": config.d_model * itemsize,
    "qkv": projections * config.head_dim * itemsize,
    "attention": config.num_heads * (config.head_dim * itemsize + 4),
    "mlp": 2 * config.d_ff * itemsize,
  }[name]
