"""Settings of a model, of its computation and of the device mesh, independent of any training run."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from drope_jax.errors import check, check_at_least, check_choice, check_finite
from drope_jax.platforms import target_platform
from drope_jax.positions import Embedding, Layer, LayerPattern, Positions, RoPE
from drope_jax.scalings import Scaling
from drope_jax.values import members


@dataclasses.dataclass(unsafe_hash=True)
class QKNorm:
  """RMS norm of queries and keys before the scores.

  scope "full" normalises the whole projection before the head split, as the paper does (weights of shape (H*h,) and
  (K*h,)); "head" normalises each head with one shared weight of shape (h,), as Qwen3 does.
  """

  scope: str = "full"  # "full" or "head"
  queries: bool = True  # whether queries are normalised
  keys: bool = True  # whether keys are normalised

  def __post_init__(self) -> None:
    check_choice(self, "scope", ("full", "head"))
    check(self.queries or self.keys, "QKNorm normalises neither queries nor keys; use None for no norm")


def _check_positions(config: "ModelConfig") -> None:
  """Checks every layer, because the model would treat anything that is not an Embedding as NoPE."""
  positions, where = config.positions, "ModelConfig.positions"
  if not isinstance(positions, LayerPattern):
    _check_embedding(config, positions, where, "an Embedding (RoPE, ALiBi ...), LayerPattern of Layer, None (NoPE)")
    return
  for index, layer in enumerate(positions.layers):
    at = f"{where}.layers[{index}]"
    check(isinstance(layer, Layer), f"{at} is {layer!r}; allowed: Layer")
    _check_embedding(config, layer.positions, f"{at}.positions", "an Embedding (RoPE, ALiBi ...), None (NoPE)")
    whole = isinstance(layer.window, int) and not isinstance(layer.window, bool)
    check(layer.window is None or whole, f"{at}.window is {layer.window!r}; it must be a whole number, or None")


def _check_embedding(config: "ModelConfig", value: Any, where: str, allowed: str) -> None:
  check(value is None or isinstance(value, Embedding), f"{where} is {value!r}; allowed: {allowed}")
  scaling = getattr(value, "scaling", None)
  scalings = ", ".join(members(Scaling))
  check(scaling is None or isinstance(scaling, Scaling), f"{where}.scaling is {scaling!r}; allowed: {scalings}, None")
  if value is not None:
    value.check(config.head_dim)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class ModelConfig:
  """A Llama-shaped decoder: RMSNorm, grouped-query attention, a gated feed-forward layer. Letters as in model.py.

  The fields from `norm_placement` to `logits_divisor` are features of other model families; the last two are learnt
  parts of additions.py. With their defaults, all of them change nothing.
  """

  vocab_size: int  # V, token ids
  d_model: int  # D, width of the residual stream
  num_layers: int  # L, layers
  num_heads: int  # H, query heads
  num_kv_heads: int  # K, key and value heads; H must be a multiple
  head_dim: int  # h, width of one head; even for RoPE
  d_ff: int  # F, width of the feed-forward layer
  positions: Positions = dataclasses.field(default_factory=RoPE)  # the positional embedding; None: NoPE
  qk_norm: QKNorm | None = None  # norm of queries and keys; None: no norm
  qkv_bias: bool = False  # whether the projections to queries, keys and values have biases (Qwen2)
  tie_embeddings: bool = True  # whether the output embedding is the input embedding
  norm_eps: float = 1e-5  # epsilon of RMSNorm, added to the mean square
  init_std: float = 0.02  # standard deviation of the initial weights
  norm_placement: str = "pre"  # where a sublayer has norms: on its input ("pre"), on its output ("post"), or "both"
  activation: str = "silu"  # of the feed-forward gate: "silu", or "gelu_tanh" (GELU in its tanh approximation)
  attention_scale: float | None = None  # factor on q.k; None: 1/sqrt(h)
  attention_softcap: float | None = None  # attention logits x become cap * tanh(x / cap), before a bias is added
  logits_softcap: float | None = None  # the same for the logits of the next token
  embedding_multiplier: float = 1.0  # factor on the embeddings of the input tokens
  residual_multiplier: float = 1.0  # factor on the output of each sublayer, before it is added to the residual stream
  logits_divisor: float = 1.0  # divides the logits of the next token
  token_shift: bool = False  # keys become k + a (previous k - k); a is learnt per layer, from 0
  logn_scale: bool = False  # queries that see n keys are multiplied by 1 + s ln n; s is learnt per head, from 0

  def __post_init__(self) -> None:
    check_finite(self)
    check_at_least(self, 1, "vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
    check(
      self.num_heads % self.num_kv_heads == 0,
      f"ModelConfig.num_heads is {self.num_heads}; it must be divisible by num_kv_heads ({self.num_kv_heads})",
    )
    _check_positions(self)
    check_choice(self, "norm_placement", ("pre", "post", "both"))
    check_choice(self, "activation", ("silu", "gelu_tanh"))
    for name in (
      "norm_eps",
      "init_std",
      "attention_scale",
      "attention_softcap",
      "logits_softcap",
      "embedding_multiplier",
      "residual_multiplier",
      "logits_divisor",
    ):
      value = getattr(self, name)
      check(value is None or 0 < value < math.inf, f"ModelConfig.{name} is {value}; it must be positive")


KEPT = ("qkv", "attention", "mlp")  # allowed in ComputeConfig.remat_keep, see remat.py
OFFLOADED = ("input", "qkv", "mlp")  # allowed in ComputeConfig.remat_offload


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class ComputeConfig:
  """How a model is computed; nothing here changes the function itself."""

  dtype: str = "auto"  # of activations; "auto": bfloat16 on TPU and GPU, float32 on CPU. Parameters are float32
  # Kernel: "auto", "reference", "blockwise", "unrolled", "splash" (TPU), "cudnn" or "triton" (GPU).
  attention: str = "auto"
  scan_layers: bool | None = None  # True: scan over the layers; False: unroll them; None: see model.scans
  remat: str = "none"  # what the backward pass recomputes: "none", "full" (a layer), "dots" (all but matrix products)
  remat_keep: tuple[str, ...] = ()  # with remat "full": intermediates to keep nevertheless, of KEPT
  remat_offload: tuple[str, ...] = ()  # with remat "full": intermediates to keep in host memory, of OFFLOADED
  loss_chunk: int | None = None  # positions of a row whose logits exist at a time; None: see loss.chunk_length
  derivatives: str = "own"  # of norms and projections: "own", written by hand, or "jax", which allows forward mode too
  # XLA options for the train step, each "PLATFORM:NAME=VALUE"; options of other platforms are ignored.
  # On CPUs, XLA may delegate products to YNNPACK; its own are faster for narrow models (jax 0.10.2). On TPUs, it may
  # split the product with a weight that is gathered along its contracted dimension into one product per shard: with 16
  # shards it then writes and reads all logits 16 times, and the step of the 494M model moves 2196 GB instead of 596
  # (libtpu 0.0.42, by drope_jax.aot). Whole gathers overlap with other products all the same.
  xla_options: tuple[str, ...] = (
    "cpu:xla_cpu_experimental_ynn_fusion_type=",
    "tpu:xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
  )

  def __post_init__(self) -> None:
    check_choice(self, "dtype", ("auto", "float32", "bfloat16"))
    check_choice(self, "attention", ("auto", "reference", "blockwise", "unrolled", "splash", "cudnn", "triton"))
    check_choice(self, "remat", ("none", "full", "dots"))
    for field, allowed in (("remat_keep", KEPT), ("remat_offload", OFFLOADED)):
      names = getattr(self, field)
      check(
        set(names) <= set(allowed) and (not names or self.remat == "full"),
        f"ComputeConfig.{field} is {names!r}; it takes names of {', '.join(allowed)}, and with remat 'full' alone",
      )
    twice = set(self.remat_keep) & set(self.remat_offload)
    check(not twice, f"ComputeConfig.remat_offload names {', '.join(sorted(twice))}, which remat_keep keeps already")
    check_choice(self, "derivatives", ("own", "jax"))
    if self.loss_chunk is not None:
      check_at_least(self, 1, "loss_chunk")
    for option in self.xla_options:
      platform, colon, setting = option.partition(":")
      check(
        bool(platform and colon) and "=" in setting,
        f"ComputeConfig.xla_options has {option!r}; it must be PLATFORM:NAME=VALUE",
      )


def compute_dtype(compute: ComputeConfig) -> jnp.dtype:
  """The dtype of activations: "auto" is float32 if the program is traced for CPUs, else bfloat16."""
  if compute.dtype == "auto":
    return jnp.dtype(jnp.float32 if target_platform() == "cpu" else jnp.bfloat16)
  return jnp.dtype(compute.dtype)


@dataclasses.dataclass(unsafe_hash=True, kw_only=True)
class MeshConfig:
  """Devices along each mesh axis of one slice; -1, for at most one axis, stands for all remaining devices.

  Slices that only the data-centre network (DCN) connects extend `data` or `fsdp`, the axes that communicate only once
  per step, or once per layer. sharding.PRESETS holds the usual meshes, by name.
  """

  data: int = -1  # splits the batch
  fsdp: int = 1  # splits the batch and the parameters
  tensor: int = 1  # splits heads, feed-forward and vocabulary
  context: int = 1  # splits the length, and the parameters too
  dcn_data: int = 1  # slices along data
  dcn_fsdp: int = 1  # slices along fsdp

  def __post_init__(self) -> None:
    check_at_least(self, 1, "dcn_data", "dcn_fsdp")
    sizes = {name: size for name, size in dataclasses.asdict(self).items() if not name.startswith("dcn_")}
    for axis, size in sizes.items():
      check(size == -1 or size >= 1, f"MeshConfig.{axis} is {size}; it must be positive, or -1 for the rest")
    check(list(sizes.values()).count(-1) <= 1, f"MeshConfig has more than one -1: {sizes}")
