"""The classes of transformers that are read and written: one table, of what each can express and what it defaults to.

| model_type | class   | positions                           | windows  | QK-norm       | note                         |
|------------|---------|-------------------------------------|----------|---------------|------------------------------|
| smollm3    | SmolLM3 | each layer RoPE or none             | by layer | none          | says "no RoPE" by name       |
| llama      | Llama   | one RoPE, or a rotation by no angle | none     | none          | native in other runtimes     |
| mistral    | Mistral | likewise                            | one      | none          |                              |
| qwen2      | Qwen2   | likewise                            | by layer | none          | biases on q, k and v         |
| qwen3      | Qwen3   | likewise                            | by layer | of each head  |                              |
| olmoe      | OLMoE   | likewise                            | none     | of full width | one expert gets every token  |
| granite    | Granite | likewise                            | none     | none          | has a logit scale of its own |

Where a class has a bias on the output projection with those of q, k and v (all but Qwen2), ours is zeros.
"""

from collections.abc import Iterator
from typing import NamedTuple

from drope_jax.config import ModelConfig


class Extra(NamedTuple):
  """An array that a class has and a model of ours has not: zeros in what we write."""

  name: str
  shape: tuple[int, ...]
  zeros: bool  # whether it must be zeros in what we read; if not, its values change nothing


class Family(NamedTuple):
  """A class: what it can express, and its defaults where a config.json is silent."""

  architecture: str
  positions_by_layer: bool = False
  windows: str = "none"  # "none", "one" or "by layer"
  qk_norm: str | None = None  # the scope that it has
  bias: bool | None = None  # of q, k, v: always, never, or (None) as `attention_bias` says
  one_expert: bool = False  # a mixture of experts, which with one of them is a plain feed-forward layer
  logit_scale: str | None = None  # its key for the factor on q.k, in place of 1/sqrt(h)
  num_kv_heads: int | None = None  # None: as many as query heads
  head_dim: int | None = None  # None: hidden_size / heads
  theta: float = 10_000.0
  norm_eps: float = 1e-6
  tie_embeddings: bool = False
  sliding_window: int | None = None

  @property
  def beta_in(self) -> str:
    """Where a factor on the attention logits goes: what scales the queries last."""
    return self.logit_scale or ("q_norm" if self.qk_norm else "q_proj")

  def spelled(self, name: str) -> str:
    """An array's name in this class, of its name in Llama."""
    return name.replace(".mlp.", ".mlp.experts.0.") if self.one_expert else name

  def extras(self, model: ModelConfig) -> Iterator[Extra]:
    """The arrays that this class has beside those of `model`."""
    for layer in range(model.num_layers):
      if model.qkv_bias and self.bias is None:
        yield Extra(f"model.layers.{layer}.self_attn.o_proj.bias", (model.d_model,), zeros=True)
      if self.one_expert:  # a router with one way to go
        yield Extra(f"model.layers.{layer}.mlp.gate.weight", (1, model.d_model), zeros=False)


FAMILIES = {
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
  "olmoe": Family("OlmoeForCausalLM", qk_norm="full", one_expert=True, norm_eps=1e-5),
  "granite": Family("GraniteForCausalLM", logit_scale="attention_multiplier"),
}
