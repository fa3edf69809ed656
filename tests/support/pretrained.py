"""Random models of transformers and of llama.cpp's format, as files, and the import command on them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from drope_jax.config import ModelConfig
from drope_jax.data.tokenizers import train_bpe
from drope_jax.interop.__main__ import main
from drope_jax.interop.importing import open_source, read_params
from drope_jax.positions import RoPE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ORIGINAL_CONTEXT = 16
THETA = 100.0  # at head_dim 12 and a context of 16 this gives each scaling frequencies to keep, to blend and to divide
# head_dim is not hidden_size / num_attention_heads.
SHAPE = ModelConfig(
  vocab_size=300,
  d_model=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=12,
  d_ff=40,
  positions=RoPE(THETA),
  norm_eps=1e-6,
)
TOKENS_BT = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (2, 3 * ORIGINAL_CONTEXT))


def shaped(**changes) -> ModelConfig:
  return dataclasses.replace(SHAPE, **changes)


def hugging_face_model(family, rope=None, config=None, **settings):
  """A model of `family` ("Llama", ...) with SHAPE in which no weight has a special value.

  `config`: the family in the name of its config class, if that is another.
  """
  torch.manual_seed(0)
  sizes = dict(
    vocab_size=SHAPE.vocab_size,
    hidden_size=SHAPE.d_model,
    num_hidden_layers=SHAPE.num_layers,
    num_attention_heads=SHAPE.num_heads,
    num_key_value_heads=SHAPE.num_kv_heads,
    head_dim=SHAPE.head_dim,
    intermediate_size=SHAPE.d_ff,
    rms_norm_eps=SHAPE.norm_eps,
    max_position_embeddings=ORIGINAL_CONTEXT,
    rope_parameters={"rope_type": "default", "rope_theta": THETA, **(rope or {})},
    attn_implementation="eager",
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
  )
  config = getattr(transformers, f"{config or family}Config")(**{**sizes, **settings})
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
  return model


def write_folder(model, directory: Path, **options) -> Path:
  """The model as transformers saves it, with a tokenizer."""
  model.save_pretrained(directory, **options)
  write_tokenizer(directory)
  return directory


def write_tokenizer(directory: Path) -> None:
  train_bpe(["a tokenizer of 10 words, or 1,024"], SHAPE.vocab_size, directory)


def logits_of(model, tokens_BT=TOKENS_BT) -> np.ndarray:
  with torch.no_grad():
    return model(torch.from_numpy(tokens_BT)).logits.float().numpy()


# llama.cpp's names of the arrays of a layer.
_GGUF_NAMES = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def _interleave(array: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp's order of rows, in which row i of a head is followed by row i + h/2."""
  return array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)


def write_gguf(model, path: Path, *, types=None, metadata=None, without=(), raw=None) -> Path:
  """The model as a GGUF file.

  Args:
    types: by part of a name ("attn_q": "Q8_0"), the type of arrays; others are float32.
    metadata: entries to add or change.
    without: entries and arrays to leave out.
    raw: by name, (bytes, type) of arrays to replace, or to add if their names begin with extra or rope_freqs.
  """
  gguf = pytest.importorskip("gguf")
  config = model.config
  kind = config.model_type
  writer = gguf.GGUFWriter(path, kind)
  entries = {
    f"{kind}.block_count": config.num_hidden_layers,
    f"{kind}.context_length": config.max_position_embeddings,
    f"{kind}.embedding_length": config.hidden_size,
    f"{kind}.feed_forward_length": config.intermediate_size,
    f"{kind}.attention.head_count": config.num_attention_heads,
    f"{kind}.attention.head_count_kv": config.num_key_value_heads,
    f"{kind}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    f"{kind}.attention.key_length": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
    f"{kind}.rope.freq_base": config.rope_parameters["rope_theta"],
    "general.license": "apache-2.0",
    **(metadata or {}),
  }
  for key, value in entries.items():
    if key in without:
      continue
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
    add.get(type(value), writer.add_array)(key, value)
  for name, value in model.state_dict().items():
    array = value.float().numpy()
    if name == "lm_head.weight" and config.tie_word_embeddings:
      continue
    part, _, suffix = name.removeprefix("model.").rpartition(".")
    there = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}.get(part)
    if there is None:
      _, layer, part = part.split(".", 2)
      there = f"blk.{layer}.{_GGUF_NAMES[part]}"
      if kind == "llama" and part.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
        array = _interleave(array, heads)
    there = f"{there}.{suffix}"
    if there in without:
      continue
    if raw and there in raw:
      data, type_name = raw[there]
      writer.add_tensor(there, data, raw_dtype=gguf.GGMLQuantizationType[type_name])
      continue
    type_name = next((t for key, t in (types or {}).items() if key in there), "F32")
    quantised = gguf.quantize(np.ascontiguousarray(array), gguf.GGMLQuantizationType[type_name])
    if type_name in ("F32", "F16"):
      writer.add_tensor(there, quantised)
    else:
      writer.add_tensor(there, quantised, raw_dtype=gguf.GGMLQuantizationType[type_name])
  for name, (data, type_name) in (raw or {}).items():
    if name.startswith(("extra", "rope_freqs")):
      writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[type_name])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def error_of(capsys, *arguments) -> tuple[int, str]:
  """Status and message of a command that fails with one line, without a traceback."""
  status = main([str(argument) for argument in arguments])
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), lines
  return status, lines[0]


def params_of(path: Path):
  source, pretrained = open_source(path)
  return read_params(source, pretrained.model)


def assert_same_params(left, right, atol: float = 0.0) -> None:
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), left, right)


def truncate(path: Path, size: int) -> None:
  path.write_bytes(path.read_bytes()[:size])
