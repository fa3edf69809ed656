"""The model classes that can be imported and exported: one table of what each can express, and of its defaults.

| model_type  | class         | positions                           | windows  | QK-norm       | note                  |
|-------------|---------------|-------------------------------------|----------|---------------|-----------------------|
| smollm3     | SmolLM3       | each layer RoPE or none             | by layer | none          | says "no RoPE" itself |
| llama       | Llama         | one RoPE, or a rotation by no angle | none     | none          | runs everywhere       |
| mistral     | Mistral       | likewise                            | one      | none          |                       |
| qwen2       | Qwen2         | likewise                            | by layer | none          | biases on q, k and v  |
| qwen3       | Qwen3         | likewise                            | by layer | of each head  |                       |
| olmoe       | OLMoE         | likewise                            | none     | of full width | one expert            |
| granite     | Granite       | likewise                            | none     | none          | multipliers           |
| olmo2       | OLMo-2        | likewise                            | none     | of full width | post-norms            |
| olmo3       | OLMo-3        | one for each kind of layer          | by layer | of full width | post-norms            |
| phi3        | Phi-3, Phi-4  | likewise, or of a part of a head    | one      | none          | fused projections     |
| gemma2      | Gemma 2       | likewise                            | by layer | none          | softcaps; see _GEMMA  |
| gemma3_text | Gemma 3       | one for each kind of layer          | by layer | of each head  | see _GEMMA            |
| llama_drope | DroPE's Llama | none                                | none     | attention_type| read only             |
| qwen2_drope | DroPE's Qwen2 | none                                | by layer | attention_type| read only             |

If a class with biases on q, k and v also has one on the output projection (all but Qwen2), it is written as zeros.

Another family with Llama's structure takes one entry: `register("my_type", Family(...))` in a module that the command
imports (`--import=MODULE`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from drope_jax.errors import ConfigError
from drope_jax.interop.keys import Keys
from drope_jax.model_config import ModelConfig, QKNorm


class Extra(NamedTuple):
  """An array that a class has in addition to those of our models; it is written as zeros."""

  name: str
  shape: tuple[int, ...]
  zeros: bool  # whether it must be zero on import; otherwise its values do not matter


class Fused(NamedTuple):
  """An array of a class that is the concatenation, along its rows, of several of Llama's."""

  name: str  # `{}` stands for the number of the layer
  parts: tuple[str, ...]  # our names


class Number(NamedTuple):
  """The key of a class for a field of ModelConfig."""

  key: str
  default: float | None  # of the class, if a config.json does not have the key


class Family(NamedTuple):
  """A class: what it can express, and its defaults for keys that a config.json does not have."""

  architecture: str
  # Positions.
  rotates: bool = True  # False: it has no positional embedding, whatever its config says
  positions_by_layer: bool = False  # whether `no_rope_layers` says which layers rotate
  rotations_by_kind: bool = False  # whether layers with a window have another rotation than those without
  rotates_part: bool = False  # whether it reads `partial_rotary_factor`; its rotated dimensions come first in a head
  rope_types: tuple[str, ...] | None = None  # the rope_types that it accepts; None: all of transformers'
  neutral: str = "llama3"  # the rope_type that is used to write a rotation by zero angles
  few_scaling_keys: bool = False  # whether version 4 only accepts the necessary keys in `rope_scaling`, and `type`
  stops_pairs: bool = True  # whether it reads rope_type "longrope", as which a partial drop is written
  theta: float = 10_000.0
  local_theta: float | None = None  # of layers with a window; None: that of the others
  local_theta_key: str | None = None  # the key of local_theta in version 4 of transformers
  # Windows.
  windows: str = "none"  # "none", "one" or "by layer"
  sliding_window: int | None = None
  full_every: int | None = None  # without `layer_types`, every n-th layer has no window; no `use_sliding_window`
  full_every_key: str | None = None  # the key of full_every
  # Shapes.
  qk_norm: str | None = None  # the scope of its QK-norm
  bias: bool | None = None  # whether q, k and v have biases; None: as `attention_bias` says
  num_kv_heads: int | None = None  # None: the number of query heads
  head_dim: int | None = None  # None: hidden_size / heads
  square: bool = False  # whether num_heads * head_dim must be the width of the model
  one_expert: bool = False  # whether it is a mixture of experts, used with a single expert
  tie_embeddings: bool = False
  # The logit scale.
  logit_scale: str | None = None  # the key of its factor on q.k; None: the factor is 1/sqrt(h)
  logit_scale_default: float = 1.0
  logit_scale_power: float = 1.0  # the factor is the key's value to this power
  folds_logit_scale: bool = False  # whether a factor other than 1/sqrt(h) is folded into the queries on import
  # Other features.
  norm_eps: float = 1e-6
  norm_offset: float = 0.0  # added to the weights of its norms
  scales_embedding: bool = False  # whether embeddings are multiplied by the square root of the width
  activation_key: str = "hidden_act"
  fixed: Mapping[str, Any] = {}  # fields of ModelConfig with a fixed value other than our default
  numbers: Mapping[str, Number] = {}  # fields of ModelConfig with a key of their own
  only: Mapping[str, tuple[Any, ...]] = {}  # further keys that it reads, with the values that we support
  fields: Callable[[Keys], Mapping[str, Any]] | None = None  # reads further keys, as fields of ModelConfig
  # Its arrays.
  renamed: tuple[tuple[str, str], ...] = ()  # replacements in the names of arrays, in this order
  fused: tuple[Fused, ...] = ()
  in_transformers: bool = True  # False: its code comes with its files (`auto_map`); import only

  @property
  def takes_beta(self) -> bool:
    """Whether its logit scale can be any number, so that beta can be folded into it."""
    return self.logit_scale is not None and self.logit_scale_power == 1

  @property
  def beta_in(self) -> str:
    """The key or array into which a factor on the attention logits is folded."""
    if self.logit_scale is not None and self.takes_beta:
      return self.logit_scale
    return "q_norm" if self.qk_norm else "qkv_proj" if self.fused else "q_proj"

  def constant(self, field: str, d_model: int) -> Any:
    """The value of a field of ModelConfig in all models of this class and width that have no key for it."""
    if field == "embedding_multiplier" and self.scales_embedding:
      return math.sqrt(d_model)
    return self.fixed.get(field, DEFAULTS[field])

  def spelled(self, name: str) -> str:
    """The name of an array in this class, given its name in Llama."""
    for part, other in self.renamed:
      name = name.replace(part, other)
    return name

  def extras(self, model: ModelConfig) -> Iterator[Extra]:
    """The arrays that this class has in addition to those of `model`."""
    for layer in range(model.num_layers):
      if model.qkv_bias and self.bias is None:
        yield Extra(f"model.layers.{layer}.self_attn.o_proj.bias", (model.d_model,), zeros=True)
      if self.one_expert:  # the router of a single expert
        yield Extra(f"model.layers.{layer}.mlp.gate.weight", (1, model.d_model), zeros=False)


# The values, in Llama, of the fields that other families add.
DEFAULTS = {
  field.name: field.default
  for field in dataclasses.fields(ModelConfig)
  if field.name
  in (
    "norm_placement",
    "activation",
    "attention_softcap",
    "logits_softcap",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_divisor",
    "token_shift",
    "logn_scale",
  )
}

# The attention types of the released DroPE code, none of which rotates.
_DROPE_NORMS = {
  "nope": None,
  "qk_norm_nope": QKNorm("full"),
  "q_norm_nope": QKNorm("full", keys=False),
  "k_norm_nope": QKNorm("full", queries=False),
}


def _drope_fields(keys: Keys) -> Mapping[str, Any]:
  return {"qk_norm": _DROPE_NORMS[keys.choice("attention_type", "nope", tuple(_DROPE_NORMS))]}


_DROPE_LLAMA = Family(
  "DroPELlamaForCausalLM",
  rotates=False,
  logit_scale="softmax_scale",
  folds_logit_scale=True,
  fields=_drope_fields,
  in_transformers=False,
)

# Post-norms only; our default names for them are GLM-4's (see weights.py).
_OLMO: dict[str, Any] = dict(
  qk_norm="full",
  norm_eps=1e-5,
  fixed={"norm_placement": "post"},
  renamed=(("post_self_attn_layernorm", "post_attention_layernorm"), ("post_mlp_", "post_feedforward_")),
)

_GEMMA: dict[str, Any] = dict(
  windows="by layer",
  sliding_window=4096,
  num_kv_heads=4,
  head_dim=256,
  tie_embeddings=True,
  logit_scale="query_pre_attn_scalar",
  logit_scale_default=256.0,
  logit_scale_power=-0.5,
  norm_offset=1.0,
  scales_embedding=True,
  activation_key="hidden_activation",
  fixed={"norm_placement": "both", "activation": "gelu_tanh"},
  only={"use_bidirectional_attention": (False, None)},
  renamed=(
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_attention_layernorm"),
    ("post_mlp_", "post_feedforward_"),
  ),
)

FAMILIES: dict[str, Family] = {
  "smollm3": Family(
    "SmolLM3ForCausalLM",
    positions_by_layer=True,
    windows="by layer",
    num_kv_heads=4,
    theta=2_000_000.0,
    tie_embeddings=True,
  ),
  "llama": Family("LlamaForCausalLM"),
  "mistral": Family("MistralForCausalLM", windows="one", bias=False, num_kv_heads=8, sliding_window=4096),
  "qwen2": Family("Qwen2ForCausalLM", windows="by layer", bias=True, num_kv_heads=32, sliding_window=4096),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    windows="by layer",
    qk_norm="head",
    num_kv_heads=32,
    head_dim=128,
    sliding_window=4096,
  ),
  "olmoe": Family(
    "OlmoeForCausalLM",
    qk_norm="full",
    square=True,
    one_expert=True,
    renamed=((".mlp.", ".mlp.experts.0."),),
    norm_eps=1e-5,
    only={"num_experts": (1,), "num_experts_per_tok": (1,), "clip_qkv": (None,)},
  ),
  "granite": Family(
    "GraniteForCausalLM",
    logit_scale="attention_multiplier",
    numbers={
      "embedding_multiplier": Number("embedding_multiplier", 1.0),
      "residual_multiplier": Number("residual_multiplier", 1.0),
      "logits_divisor": Number("logits_scaling", 1.0),
    },
  ),
  "olmo2": Family("Olmo2ForCausalLM", neutral="linear", few_scaling_keys=True, **_OLMO),
  "olmo3": Family(
    "Olmo3ForCausalLM",
    rotations_by_kind=True,
    windows="by layer",
    sliding_window=4096,
    full_every=4,
    **{**_OLMO, "theta": 500_000.0},
  ),
  "phi3": Family(
    "Phi3ForCausalLM",
    rotates_part=True,
    rope_types=("default", "longrope"),
    neutral="longrope",
    few_scaling_keys=True,
    square=True,
    windows="one",
    bias=False,
    norm_eps=1e-5,
    fused=(
      Fused("model.layers.{}.self_attn.qkv_proj.weight", ("q", "k", "v")),
      Fused("model.layers.{}.mlp.gate_up_proj.weight", ("gate", "up")),
    ),
  ),
  "gemma2": Family(
    "Gemma2ForCausalLM",
    full_every=2,
    numbers={
      "attention_softcap": Number("attn_logit_softcapping", 50.0),
      "logits_softcap": Number("final_logit_softcapping", 30.0),
    },
    **_GEMMA,
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM",
    rotations_by_kind=True,
    full_every=6,
    full_every_key="sliding_window_pattern",
    theta=1_000_000.0,
    local_theta=10_000.0,
    local_theta_key="rope_local_base_freq",
    qk_norm="head",
    numbers={"logits_softcap": Number("final_logit_softcapping", None)},
    **{**_GEMMA, "only": {**_GEMMA["only"], "attn_logit_softcapping": (None,)}},  # which the class does not apply
  ),
  "llama_drope": _DROPE_LLAMA,
  "qwen2_drope": _DROPE_LLAMA._replace(
    architecture="DroPEQwen2ForCausalLM", windows="by layer", bias=True, num_kv_heads=32, sliding_window=4096
  ),
}


def written() -> tuple[str, ...]:
  """The formats that can be exported."""
  return tuple(name for name, family in FAMILIES.items() if family.in_transformers)


def register(model_type: str, family: Family) -> None:
  """Adds a family, so that checkpoints with this `model_type` can be imported and exported.

  Raises:
    ConfigError: if the name is taken by another family.
  """
  if FAMILIES.setdefault(model_type, family) != family:
    raise ConfigError(f"the family {model_type!r} is there already: {FAMILIES[model_type]}")
