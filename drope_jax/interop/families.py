"""The classes of models that are read and written: one table, of what each can express and what it defaults to.

| model_type  | class         | positions                           | windows  | QK-norm       | note                  |
|-------------|---------------|-------------------------------------|----------|---------------|-----------------------|
| smollm3     | SmolLM3       | each layer RoPE or none             | by layer | none          | says "no RoPE" itself |
| llama       | Llama         | one RoPE, or a rotation by no angle | none     | none          | runs everywhere       |
| mistral     | Mistral       | likewise                            | one      | none          |                       |
| qwen2       | Qwen2         | likewise                            | by layer | none          | biases on q, k and v  |
| qwen3       | Qwen3         | likewise                            | by layer | of each head  |                       |
| olmoe       | OLMoE         | likewise                            | none     | of full width | one expert            |
| granite     | Granite       | likewise                            | none     | none          | its own logit scale   |
| llama_drope | DroPE's Llama | none                                | none     | attention_type| read only             |
| qwen2_drope | DroPE's Qwen2 | none                                | by layer | attention_type| read only             |

Where a class has a bias on the output projection with those of q, k and v (all but Qwen2), ours is zeros.

Another family of Llama's shape is one entry: `register("my_type", Family(...))` in a module that the command imports
(`--import=MODULE`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from drope_jax.errors import ConfigError
from drope_jax.interop.keys import Keys
from drope_jax.model_config import ModelConfig, QKNorm


class Extra(NamedTuple):
  """An array that a class has and a model of ours has not: zeros in what we write."""

  name: str
  shape: tuple[int, ...]
  zeros: bool  # whether it must be zeros in what we read; if not, its values change nothing


class Family(NamedTuple):
  """A class: what it can express, and its defaults where a config.json is silent."""

  architecture: str
  rotates: bool = True  # False: it has no positional embedding, whatever its config says
  positions_by_layer: bool = False  # whether `no_rope_layers` says which layers rotate
  stops_pairs: bool = True  # whether it reads rope_type "longrope", by which a partial drop is written
  windows: str = "none"  # "none", "one" or "by layer"
  qk_norm: str | None = None  # the scope that it has
  bias: bool | None = None  # of q, k, v: always, never, or (None) as `attention_bias` says
  renamed: tuple[tuple[str, str], ...] = ()  # parts of Llama's names of arrays, and what stands for them
  one_expert: bool = False  # a mixture of experts, which with one of them is a plain feed-forward layer
  logit_scale: str | None = None  # its key for the factor on q.k, in place of 1/sqrt(h)
  folds_logit_scale: bool = False  # whether another factor than 1/sqrt(h) goes into the queries when it is read
  num_kv_heads: int | None = None  # None: as many as query heads
  head_dim: int | None = None  # None: hidden_size / heads
  theta: float = 10_000.0
  norm_eps: float = 1e-6
  tie_embeddings: bool = False
  sliding_window: int | None = None
  only: Mapping[str, tuple[Any, ...]] = {}  # keys that it alone reads, with the values that ours can have
  fields: Callable[[Keys], Mapping[str, Any]] | None = None  # reads what else it says, as fields of ModelConfig
  in_transformers: bool = True  # False: its code comes with its files (`auto_map`); it is read and never written

  @property
  def beta_in(self) -> str:
    """Where a factor on the attention logits goes: what scales the queries last."""
    return self.logit_scale or ("q_norm" if self.qk_norm else "q_proj")

  def spelled(self, name: str) -> str:
    """An array's name in this class, of its name in Llama."""
    for part, other in self.renamed:
      name = name.replace(part, other)
    return name

  def extras(self, model: ModelConfig) -> Iterator[Extra]:
    """The arrays that this class has beside those of `model`."""
    for layer in range(model.num_layers):
      if model.qkv_bias and self.bias is None:
        yield Extra(f"model.layers.{layer}.self_attn.o_proj.bias", (model.d_model,), zeros=True)
      if self.one_expert:  # a router with one way to go
        yield Extra(f"model.layers.{layer}.mlp.gate.weight", (1, model.d_model), zeros=False)


# What the released code of DroPE calls its kinds of attention, none of which rotates.
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
    one_expert=True,
    renamed=((".mlp.", ".mlp.experts.0."),),
    norm_eps=1e-5,
    only={"num_experts": (1,), "num_experts_per_tok": (1,), "clip_qkv": (None,)},
  ),
  "granite": Family(
    "GraniteForCausalLM",
    logit_scale="attention_multiplier",
    only={key: (1,) for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling")},
  ),
  "llama_drope": _DROPE_LLAMA,
  "qwen2_drope": _DROPE_LLAMA._replace(
    architecture="DroPEQwen2ForCausalLM", windows="by layer", bias=True, num_kv_heads=32, sliding_window=4096
  ),
}


def written() -> tuple[str, ...]:
  """The formats of an export."""
  return tuple(name for name, family in FAMILIES.items() if family.in_transformers)


def register(model_type: str, family: Family) -> None:
  """Adds a family: checkpoints whose config.json has this `model_type` are read, and written if it is the format.

  Raises:
    ConfigError: if the name is taken by another family.
  """
  if FAMILIES.setdefault(model_type, family) != family:
    raise ConfigError(f"the family {model_type!r} is there already: {FAMILIES[model_type]}")
