"""Importing: from a folder or a GGUF file to a checkpoint that everything else can use; what is refused, and how."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from pretrained import (
  ORIGINAL_CONTEXT,
  SHAPE,
  THETA,
  TOKENS_BT,
  hugging_face_model,
  logits_of,
  shaped,
  torch,
  transformers,
  write_folder,
  write_gguf,
  write_tokenizer,
)
from tiny_run import compile_once, contents, losses, tiny_corpus, tiny_run

import drope_jax
from drope_jax.config import ConfigError, InitConfig, QKNorm
from drope_jax.data.corpus import build_corpus, documents
from drope_jax.data.tokenizers import load_tokenizer, train_bpe
from drope_jax.evaluate import results
from drope_jax.interop.__main__ import main
from drope_jax.interop.gguf_file import CUTS
from drope_jax.interop.hf_config import read_config
from drope_jax.interop.importing import import_model, open_source, read_params
from drope_jax.model import Decoder
from drope_jax.positions import PI, RoPE, YaRN
from drope_jax.train import train

gguf = pytest.importorskip("gguf")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
  yield from compile_once(tmp_path_factory.getbasetemp() / "compiled")


@pytest.fixture(scope="module")
def llama():
  return hugging_face_model("Llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
  return write_folder(llama, tmp_path_factory.mktemp("source") / "a-llama")


@pytest.fixture
def own_folder(folder, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(folder, tmp_path / "source")


def error_of(capsys, *arguments) -> tuple[int, str]:
  """Status and message of a command that fails, with one line and without a traceback."""
  status = main([str(argument) for argument in arguments])
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), lines
  return status, lines[0]


def params_of(path):
  source, pretrained = open_source(path)
  return read_params(source, pretrained.model)


def assert_same_params(left, right, atol=0.0):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), left, right)


def test_a_folder_becomes_a_checkpoint(llama, folder, tmp_path):
  before = contents(folder)
  assert main(["import", str(folder), str(tmp_path / "imported")]) == 0
  assert contents(folder) == before
  loaded = drope_jax.load(tmp_path / "imported")
  assert loaded.model == SHAPE and loaded.context == ORIGINAL_CONTEXT
  assert (loaded.config, loaded.step, loaded.tokens) == (None, 0, 0)
  logits_BTV = Decoder(loaded.model).apply({"params": loaded.params}, TOKENS_BT)
  np.testing.assert_allclose(logits_BTV, logits_of(llama), atol=1e-4)
  meta = json.loads((tmp_path / "imported/checkpoints/0/meta/metadata").read_text())
  assert meta["origin"]["name"] == "a-llama" and set(meta["origin"]["sha256"]) == {"model.safetensors"}
  assert load_tokenizer(tmp_path / "imported").encode("10 words") == load_tokenizer(folder).encode("10 words")
  assert not [path for path in tmp_path.iterdir() if path.name != "imported"]  # no draft is left


@pytest.mark.slow
def test_a_recalibration_starts_from_it(folder, tmp_path):
  import_model(folder, tmp_path / "imported")
  init = InitConfig(checkpoint=str(tmp_path / "imported"), qk_norm=QKNorm())
  data = {"tokenizer": str(tmp_path / "imported"), "context": 8}
  config = tiny_run(tiny_corpus(tmp_path / "corpus"), init=init, data=data, steps=1, optim={"warmup_steps": 1})
  assert train(config, tmp_path / "run").finished
  run = drope_jax.load(tmp_path / "run")
  assert run.model == shaped(positions=None, qk_norm=QKNorm()) and run.context == 8
  assert len(losses(tmp_path / "run")) == 1
  init = InitConfig(checkpoint=str(tmp_path / "imported"), keep_optimizer=True)
  with pytest.raises(ConfigError, match=r"keep_optimizer.*imported model"):
    train(tiny_run(tiny_corpus(tmp_path / "corpus"), init=init, data=data), tmp_path / "other")
  assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_it_is_evaluated_on_a_dataset_that_is_named(folder, tmp_path):
  import_model(folder, tmp_path / "imported")
  lines = list(documents(tiny_corpus(tmp_path / "lines"), "train"))
  prose = ["\n".join(lines[part::8]) for part in range(8)]
  corpus = build_corpus(tmp_path / "corpus", {"heldout": prose[:4], "fit": prose[4:]})
  asked = [f"--checkpoint={tmp_path / 'imported'}", f"--out={tmp_path / 'out'}", "--lengths=1x,2x"]
  asked += ["--tasks=perplexity", "--methods=rope,yarn", "--documents=2"]

  def evaluate(*more):
    command = [sys.executable, "-m", "experiments.evaluate", *asked, *more]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)

  refused = evaluate()
  assert refused.returncode == 2 and "dataset is needed" in refused.stderr.splitlines()[-1]
  assert not (tmp_path / "out").exists()
  done = evaluate(f"--dataset={corpus}")
  assert done.returncode == 0, done.stderr
  found = {(r.method, r.context): r.value for r in results.read(tmp_path / "out/results.jsonl") if r.metric == "loss"}
  assert found.keys() == {(method, length) for method in ("rope", "yarn") for length in (16, 32)}
  assert found["rope", 32] != found["yarn", 32] and found["rope", 16] == found["yarn", 16]


@pytest.mark.parametrize("size", [None, "20KB"], ids=["single", "sharded"])
def test_bfloat16_and_shards(size, tmp_path):
  model = hugging_face_model("Llama", tie_word_embeddings=False).to(torch.bfloat16)
  write_folder(model, tmp_path, **({} if size is None else {"max_shard_size": size}))
  assert len(list(tmp_path.glob("*.safetensors"))) == (1 if size is None else 4)
  params = params_of(tmp_path)
  weight = model.state_dict()["model.layers.1.mlp.down_proj.weight"].float().numpy()
  np.testing.assert_array_equal(params["layers"]["down"][1], weight.T)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_weights_go_to_their_shards_on_a_mesh(folder, tmp_path):
  """Eight devices in a process of its own: what each holds is its part, and together it is the model."""
  script = f"""
import jax, numpy as np
from drope_jax.config import MeshConfig
from drope_jax.interop.__main__ import main
from drope_jax.interop.importing import open_source, read_params
from drope_jax.sharding import make_mesh
import drope_jax
mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
source, pretrained = open_source({str(folder)!r})
params, alone = read_params(source, pretrained.model, mesh), read_params(source, pretrained.model)
jax.tree.map(np.testing.assert_array_equal, params, alone)
gate = params["layers"]["gate"]
assert {{shard.data.shape for shard in gate.addressable_shards}} == {{(2, 8, 20)}}, gate.sharding
assert main(["import", {str(folder)!r}, {str(tmp_path / "imported")!r}, "--mesh=fsdp=4,tensor=2"]) == 0
jax.tree.map(np.testing.assert_array_equal, drope_jax.load({str(tmp_path / "imported")!r}).params, alone)
"""
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", script], check=True, env=environment)


WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
WIDE |= {"intermediate_size": 2048, "tie_word_embeddings": True}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "gguf"])
def test_the_host_holds_the_model_and_one_stack(kind, tmp_path):
  """Peak memory of importing 400 MB, above that of importing next to nothing."""
  write_tokenizer(tmp_path)
  peaks = []
  for layers in (1, 24):
    model = hugging_face_model("Llama", num_hidden_layers=layers, **WIDE)
    model_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    source = tmp_path / f"source-{layers}"
    if kind == "gguf":
      halves = {name: "F16" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
      source = write_gguf(model, source.with_suffix(".gguf"), types={f"{name}.": kind for name, kind in halves.items()})
    else:
      write_folder(model.to(getattr(torch, kind)), source)
    arguments = ["import", str(source), str(tmp_path / str(layers)), f"--tokenizer={tmp_path / 'tokenizer.json'}"]
    # Not ru_maxrss, which a process has from the one that started it.
    command = f"""
from drope_jax.interop.__main__ import main
assert main({arguments!r}) == 0
print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""
    ended = subprocess.run([sys.executable, "-c", command], check=True, stdout=subprocess.PIPE, text=True)
    peaks.append(1024 * int(re.search(r"VmHWM:\s*(\d+) kB", ended.stdout).group(1)))
  stack = 4 * 24 * WIDE["hidden_size"] * WIDE["intermediate_size"]
  print(f"{kind}: {model_bytes / 1e6:.0f} MB, stacks of {stack / 1e6:.0f}, add {(peaks[1] - peaks[0]) / 1e6:.0f} MB")
  assert 0.9 * model_bytes < peaks[1] - peaks[0] < model_bytes + stack + 64e6


# --- GGUF --------------------------------------------------------------------------------------


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
  ("family", "changes", "expected"),
  [
    ("Llama", {"tie_word_embeddings": True}, {}),
    ("Llama", {"rope": {"rope_type": "linear", "factor": 4.0}}, {"positions": RoPE(THETA, PI(4.0))}),
    ("Llama", {"rope": YARN}, {"positions": RoPE(THETA, YaRN(4.0, 16))}),
    ("Qwen2", {"head_dim": 8}, {"qkv_bias": True, "head_dim": 8}),
    ("Qwen3", {}, {"qk_norm": QKNorm("head")}),
  ],
  ids=["llama", "linear", "yarn", "qwen2", "qwen3"],
)
def test_gguf_has_the_weights_of_the_folder(family, changes, expected, tmp_path):
  model = hugging_face_model(family, **changes)
  folder = write_folder(model, tmp_path / "folder")
  scaling = {}
  if "rope" in changes:
    scaling = {"llama.rope.scaling.type": changes["rope"]["rope_type"], "llama.rope.scaling.factor": 4.0}
    scaling["llama.rope.scaling.original_context_length"] = 16  # which llama.cpp writes for every kind
  path = write_gguf(model, tmp_path / "model.gguf", metadata=scaling)
  assert open_source(path)[1] == open_source(folder)[1]
  assert open_source(path)[1].model == shaped(**expected, tie_embeddings=changes.get("tie_word_embeddings", False))
  assert_same_params(params_of(path), params_of(folder))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_of_other_types(kind, tmp_path):
  model = hugging_face_model("Llama")
  path = write_gguf(model, tmp_path / "model.gguf", types={"attn_q": kind, "ffn_up": kind, "token_embd": kind})
  steps = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 1 / 15}  # of the largest of a block
  params, exact = params_of(path), params_of(write_folder(model, tmp_path / "folder"))
  assert_same_params(params, exact, atol=steps[kind] * np.abs(exact["embedding"]).max())
  assert np.abs(params["layers"]["q"] - exact["layers"]["q"]).max() > 0


def _q6_k(blocks):
  """The 256 weights of each block of 210 bytes, one by one as the format says."""
  out = []
  for block in blocks.reshape(-1, 210):
    low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
    scale = float(block[208:210].view(np.float16)[0])
    for half in range(2):
      for i in range(128):
        byte = int(low[64 * half + i % 64])
        bits = (int(high[32 * half + i % 32]) >> (2 * (i // 32))) & 3
        value = (byte >> 4 if i >= 64 else byte & 15) | bits << 4
        out.append(scale * int(scales[8 * half + i // 16]) * (value - 32))
  return np.array(out, np.float32)


def _q4_k(blocks):
  """Likewise, 144 bytes a block: eight groups of 32 with 6-bit scales and minima."""
  out = []
  for block in blocks.reshape(-1, 144):
    d, dmin = (float(x) for x in block[:4].view(np.float16))
    packed, values = block[4:16].astype(int), block[16:]
    for group in range(8):
      if group < 4:
        scale, minimum = packed[group] & 63, packed[group + 4] & 63
      else:
        scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
        minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
      nibbles = values[32 * (group // 2) : 32 * (group // 2) + 32].astype(int)
      out += [d * scale * (n >> 4 if group % 2 else n & 15) - dmin * minimum for n in nibbles]
  return np.array(out, np.float32)


@pytest.mark.parametrize(("kind", "size", "decode"), [("Q4_K", 144, _q4_k), ("Q6_K", 210, _q6_k)])
def test_gguf_of_the_k_types(kind, size, decode, tmp_path):
  """Random bytes are such weights too; the package that reads them cannot write them."""
  model = hugging_face_model("Llama", hidden_size=256)
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (SHAPE.d_ff, size), dtype=np.uint8)
  for at in (slice(0, 2), slice(2, 4)) if kind == "Q4_K" else (slice(208, 210),):
    blocks[:, at] = rng.uniform(0.001, 0.01, (SHAPE.d_ff, 1)).astype(np.float16).view(np.uint8)
  path = write_gguf(model, tmp_path / "model.gguf", raw={"blk.1.ffn_up.weight": (blocks, kind)})
  up = params_of(path)["layers"]["up"][1]
  np.testing.assert_allclose(up.T.ravel(), decode(blocks), rtol=1e-5, atol=1e-6)


def test_gguf_has_its_tokenizer(llama, tmp_path):
  write_tokenizer(tmp_path)
  theirs = json.loads((tmp_path / "tokenizer.json").read_text())
  vocab = sorted(theirs["model"]["vocab"], key=theirs["model"]["vocab"].get)
  merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in theirs["model"]["merges"]]
  said = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": vocab,
    "tokenizer.ggml.merges": merges,
    "tokenizer.ggml.token_type": [3] + [1] * (len(vocab) - 1),
    "tokenizer.ggml.eos_token_id": 0,
  }
  path = write_gguf(llama, tmp_path / "model.gguf", metadata=said)
  import_model(path, tmp_path / "imported")
  ours, original = load_tokenizer(tmp_path / "imported"), load_tokenizer(tmp_path)
  text = "x\n    10 tokens of 1024<|endoftext|>"
  assert ours.encode(text) == original.encode(text)
  assert ours.decode([0, *ours.encode(text)]) == text and (ours.eos_id, ours.bos_id) == (0, None)
  digits = [ours.decode([token]) for token in ours.encode("1024")]
  assert digits == ["1", "0", "2", "4"]


def test_the_qwen2_tokenizer_of_a_gguf_cuts_as_transformers_does(llama, tmp_path):
  path = write_gguf(
    llama, tmp_path / "model.gguf", metadata={"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "?"}
  )
  theirs = transformers.Qwen2Tokenizer(vocab={"a": 0}, merges=[])._tokenizer.pre_tokenizer
  text = "I'VE 1024 cats,\n\n   x_1 = ümläut  \tend  "
  assert tokenizers.pre_tokenizers.Sequence(CUTS["qwen2"]).pre_tokenize_str(text) == theirs.pre_tokenize_str(text)
  with pytest.raises(ConfigError, match=r"tokenizer.ggml.pre is '\?'; allowed: smollm, qwen2"):
    import_model(path, tmp_path / "imported")


# --- what is refused ---------------------------------------------------------------------------

CHANGED_KEYS = {
  "hidden_act": ("gelu", "allowed: silu"),
  "attention_bias": (True, "the array model.layers.0.self_attn.q_proj.bias is missing"),
  "mlp_bias": (True, "allowed: False"),
  "partial_rotary_factor": (0.5, "allowed: 1.0"),
  "quantization_config": ({"bits": 4}, "allowed: None"),
  "num_local_experts": (8, "allowed: None"),
  "auto_map": ({"AutoModel": "code.Model"}, "allowed: None"),
  "model_type": ("mixtral", "allowed: smollm3, llama, mistral"),
  "architectures": (["LlamaForSequenceClassification"], "allowed with llama: LlamaForCausalLM"),
  "hidden_size": (None, "must be an integer"),
  "rms_norm_eps": (-1.0, "must be positive"),
  "num_key_value_heads": (3, "must be divisible"),
  "intermediate_size": (41, "is of shape"),
  "num_hidden_layers": (3, "the array model.layers.2.input_layernorm.weight is missing"),
  "vocab_size": (20, "is of shape"),
}
WRONG_TYPES = [
  *(
    (key, value)
    for key in ("num_attention_heads", "num_hidden_layers", "max_position_embeddings")
    for value in (0, None)
  ),
  *((key, "2") for key in ("num_key_value_heads", "head_dim", "vocab_size")),
  *((key, 0) for key in ("num_key_value_heads", "head_dim")),
  *((key, "x") for key in ("rms_norm_eps", "initializer_range")),
  ("rms_norm_eps", float("nan")),
  *((key, []) for key in ("rms_norm_eps", "vocab_size")),
  *((key, None) for key in ("rms_norm_eps", "tie_word_embeddings")),
  *((key, 1) for key in ("tie_word_embeddings", "attention_bias")),
]
WRONG_WINDOWS = [
  ("use_sliding_window", "yes"),
  ("sliding_window", 0),
  ("sliding_window", "8"),
  ("max_window_layers", None),
  ("layer_types", "full_attention"),
  ("layer_types", ["full_attention"]),
  ("layer_types", ["full_attention", "linear_attention"]),
]
CHANGED_ROPE = {
  "rope_theta": ("a", "rope_parameters.rope_theta is 'a'; it must be a number"),
  "beta_fast": (0.5, "rope_parameters.beta_fast is 0.5; it must exceed beta_slow"),
  "beta_slow": ("x", "rope_parameters.beta_slow is 'x'; it must be a number"),
  "attention_factor": ([], "rope_parameters.attention_factor is []; it must be a number"),
  "original_max_position_embeddings": (
    "8",
    "original_max_position_embeddings is '8'; it must be an integer of at least",
  ),
  "rope_type": ("longrope", "rope_type is 'longrope'; allowed: default, linear"),
  "factor": (0.5, "rope_parameters.factor is 0.5; it must be a number of at least 1"),
  "mscale": (1.0, "mscale is not supported for rope_type 'yarn'"),
  "truncate": (False, "truncate is False"),
  "partial_rotary_factor": (0.5, "partial_rotary_factor is 0.5"),
  "full_attention": ({"rope_type": "default"}, "differs by kind of layer"),
}


@pytest.mark.parametrize("key", CHANGED_KEYS)
def test_a_config_that_is_not_supported_names_its_key(key, own_folder, tmp_path, capsys):
  value, message = CHANGED_KEYS[key]
  config = json.loads((own_folder / "config.json").read_text())
  (own_folder / "config.json").write_text(json.dumps({**config, key: value}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and message in error and str(own_folder) in error
  if not message.startswith("is of shape") and "the array" not in message:
    assert key in error
  assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("key", CHANGED_ROPE)
def test_a_rotation_that_is_not_supported_names_its_key(key, own_folder, tmp_path, capsys):
  value, message = CHANGED_ROPE[key]
  config = json.loads((own_folder / "config.json").read_text())
  yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": THETA, key: value}
  (own_folder / "config.json").write_text(json.dumps({**config, "rope_parameters": yarn}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and message in error and str(own_folder) in error


def config_error(changes, where="config.json"):
  """What is said of a config of a tiny Llama with these changes; a value of `...` is a key that is missing."""
  config = hugging_face_model("Llama").config.to_dict() | changes
  with pytest.raises(ConfigError) as caught:
    read_config({key: value for key, value in config.items() if value is not ...}, where)
  return str(caught.value)


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_a_value_of_another_type_names_its_key(key, value):
  assert config_error({key: value}).startswith(f"config.json: {key} is {value!r}; it must be ")


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_size_is_named(key):
  assert config_error({key: ...}) == f"config.json: {key} is missing; it must be an integer of at least 1"


def test_other_kinds_of_values_name_their_key():
  assert config_error({"model_type": []}).startswith("config.json: model_type is []; allowed: smollm3")
  assert config_error({"rope_parameters": {"rope_type": []}}).startswith("config.json: rope_parameters.rope_type is []")
  heads = config_error({"num_attention_heads": 64, "num_key_value_heads": 64, "head_dim": None})
  assert heads == "config.json: num_attention_heads is 64; it must be at most hidden_size (32)"


@pytest.mark.parametrize(("key", "value"), WRONG_WINDOWS)
def test_windows_of_another_type_name_their_key(key, value):
  windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None, key: value}
  qwen2 = {"model_type": "qwen2", "architectures": None, **windows}
  assert config_error(qwen2).startswith(f"config.json: {key} ")


@pytest.mark.parametrize(
  ("key", "value"), [("no_rope_layer_interval", 0), ("no_rope_layers", [1]), ("no_rope_layers", [1, 2])]
)
def test_layers_without_rope_of_another_type_name_their_key(key, value):
  assert config_error({"model_type": "smollm3", "architectures": None, key: value}).startswith(f"config.json: {key} ")


@pytest.mark.parametrize("theta", ["a", None, 0.5])
def test_a_theta_beside_the_rotation_is_named(theta):
  assert config_error({"rope_parameters": None, "rope_theta": theta}).startswith(
    f"config.json: rope_theta is {theta!r}"
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"num_experts": 8, "num_experts_per_tok": 1},
    {"num_experts": ..., "num_experts_per_tok": 1},
    {"num_experts": 1, "num_experts_per_tok": ...},
    {"num_experts": 1, "num_experts_per_tok": 1, "clip_qkv": 8.0},
  ],
)
def test_a_mixture_of_experts_is_refused(changes):
  error = config_error({"model_type": "olmoe", "architectures": None, **changes})
  assert error.startswith(("config.json: num_experts", "config.json: clip_qkv is 8.0"))


def test_keys_that_a_class_does_not_read_change_nothing(own_folder):
  before = open_source(own_folder)[1]
  config = json.loads((own_folder / "config.json").read_text())
  windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
  windows["layer_types"] = ["full_attention", "sliding_attention"]
  (own_folder / "config.json").write_text(json.dumps({**config, **windows}))
  assert open_source(own_folder)[1] == before
  model = transformers.AutoModelForCausalLM.from_pretrained(own_folder, attn_implementation="eager").eval()
  loaded = Decoder(before.model).apply({"params": params_of(own_folder)}, TOKENS_BT)
  np.testing.assert_allclose(loaded, logits_of(model), atol=1e-4)  # nor there


def test_biases_are_read_where_that_of_the_output_is_zero(tmp_path, capsys):
  model = hugging_face_model("Llama", attention_bias=True, tie_word_embeddings=True)
  write_folder(model, tmp_path / "source")
  capsys.readouterr()  # transformers tells how far it is
  status, error = error_of(capsys, "import", tmp_path / "source", tmp_path / "imported")
  assert status == 2 and "layers.0.self_attn.o_proj.bias is not zero, as attention_bias is true" in error
  with torch.no_grad():
    for layer in model.model.layers:
      layer.self_attn.o_proj.bias.zero_()
  write_folder(model, tmp_path / "source")
  _, pretrained = open_source(tmp_path / "source")
  assert pretrained.model == shaped(qkv_bias=True)
  logits_BTV = Decoder(pretrained.model).apply({"params": params_of(tmp_path / "source")}, TOKENS_BT)
  np.testing.assert_allclose(logits_BTV, logits_of(model), atol=1e-4)


def test_a_rotation_that_is_no_object(own_folder, tmp_path, capsys):
  config = json.loads((own_folder / "config.json").read_text())
  (own_folder / "config.json").write_text(json.dumps({**config, "rope_scaling": "linear"}))
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and "rope_scaling is 'linear'; it must be an object" in error


def test_pickles_are_refused_with_the_command_that_converts_them(llama, own_folder, tmp_path, capsys):
  torch.save(llama.state_dict(), own_folder / "pytorch_model.bin")
  (own_folder / "model.safetensors").unlink()
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and "pickle" in error
  code = re.search(r'python -c "(.*)"', error).group(1)
  exec(code, {})
  assert_same_params(params_of(own_folder.with_name("source-safetensors")), params_of_state(llama, tmp_path))


def params_of_state(model, directory):
  return params_of(write_folder(model, directory / "again"))


def _truncate(path, size):
  path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
  "no config": (lambda d: (d / "config.json").unlink(), "config.json: not readable"),
  "config is not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not readable"),
  "no weights": (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
  "weights cut off": (lambda d: _truncate(d / "model.safetensors", 9000), "not a readable safetensors file"),
  "weights of zeros": (lambda d: (d / "model.safetensors").write_bytes(bytes(99)), "not a readable safetensors file"),
  "a shard is missing": (
    lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'),
    "gone.safetensors, which is not there",
  ),
  "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json; name one"),
  "a tokenizer that is none": (lambda d: (d / "tokenizer.json").write_text("{}"), "not a readable tokenizer.json"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_folder_that_is_damaged(how, own_folder, tmp_path, capsys):
  damage, message = DAMAGE[how]
  damage(own_folder)
  status, error = error_of(capsys, "import", own_folder, tmp_path / "imported")
  assert status == 2 and message in error and str(own_folder) in error
  assert not [path for path in tmp_path.iterdir() if path != own_folder]  # neither DIR nor a draft of it


def test_arrays_that_have_no_place(llama, own_folder, tmp_path, capsys):
  from safetensors.torch import load_file
  from safetensors.torch import save_file as save

  path = own_folder / "model.safetensors"
  weights = load_file(path)
  save({**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}, path)
  assert "self_attn.q_proj.bias has no place" in error_of(capsys, "import", own_folder, tmp_path / "imported")[1]
  embedding = weights["model.embed_tokens.weight"]
  save({**weights, "lm_head.weight": embedding + 1}, path)
  assert "lm_head.weight is not the embedding" in error_of(capsys, "import", own_folder, tmp_path / "imported")[1]
  save({**weights, "lm_head.weight": embedding.clone()}, path)
  assert open_source(own_folder)[1].model == SHAPE
  save({**weights, "model.norm.weight": weights["model.norm.weight"].to(torch.float64)}, path)
  assert "dtype F64; allowed: F32, F16, BF16" in error_of(capsys, "import", own_folder, tmp_path / "imported")[1]


@pytest.mark.parametrize("size", [0, 3, 40, 2000, -5000])
def test_a_gguf_file_that_is_cut_off(size, llama, tmp_path, capsys):
  path = write_gguf(llama, tmp_path / "model.gguf")
  _truncate(path, size)
  status, error = error_of(capsys, "import", path, tmp_path / "imported")
  assert status == 2 and "not a readable GGUF file" in error and str(path) in error


GGUF_CHANGES = {
  "architecture": ({"general.architecture": "mamba"}, (), {}, "general.architecture is 'mamba'; allowed: llama"),
  "experts": ({"llama.expert_count": 8}, (), {}, "llama.expert_count is 8; that is not supported"),
  "scaling": ({"llama.rope.scaling.type": "longrope"}, (), {}, "rope.scaling.type is 'longrope'; allowed: none"),
  "half rotation": ({"llama.rope.dimension_count": 6}, (), {}, "llama.rope.dimension_count is 6"),
  "no length": ({}, ("llama.context_length",), {}, "llama.context_length is missing; it must be an integer"),
  "no embedding": ({}, ("token_embd.weight",), {}, "the array token_embd.weight is missing"),
  "no layers": ({"llama.block_count": "two"}, (), {}, "llama.block_count is 'two'; it must be an integer"),
  "no heads": ({"llama.attention.head_count": 0}, (), {}, "llama.attention.head_count is 0; it must be an integer of"),
  "heads by layer": ({"llama.attention.head_count_kv": [2, 4]}, (), {}, "llama.attention.head_count_kv is [2, 4]; it"),
  "three groups": ({"llama.attention.head_count_kv": 3}, (), {}, "by llama.attention.head_count_kv (3)"),
  "no factor": (
    {"llama.rope.scaling.type": "yarn"},
    (),
    {},
    "llama.rope.scaling.factor is missing; it must be a number",
  ),
  "theta": ({"llama.rope.freq_base": 1.0}, (), {}, "llama.rope.freq_base is 1.0; it must exceed 1"),
  "no norm": ({}, ("output_norm.weight",), {}, "the array output_norm.weight is missing"),
  "rope_freqs": ({}, (), {"extra": (np.ones(6, np.float32), "F32")}, "extra has no place"),
  "type": ({}, (), {"blk.0.ffn_up.weight": (np.zeros((40, 22), np.uint8), "Q5_0")}, "is of type Q5_0; allowed: F32"),
  "tokenizer": ({"tokenizer.ggml.model": "llama"}, (), {}, "tokenizer.ggml.model is 'llama'; allowed: gpt2"),
}


@pytest.mark.parametrize("change", GGUF_CHANGES)
def test_a_gguf_file_that_is_not_supported_names_its_key(change, llama, tmp_path, capsys):
  metadata, without, raw, message = GGUF_CHANGES[change]
  path = write_gguf(llama, tmp_path / "model.gguf", metadata=metadata, without=without, raw=raw)
  status, error = error_of(capsys, "import", path, tmp_path / "imported")
  assert status == 2 and message in error and str(path) in error
  assert not (tmp_path / "imported").exists()


def test_a_tokenizer_can_be_named(llama, folder, tmp_path):
  path = write_gguf(llama, tmp_path / "model.gguf")
  assert main(["import", str(path), str(tmp_path / "imported"), f"--tokenizer={folder / 'tokenizer.json'}"]) == 0
  assert load_tokenizer(tmp_path / "imported").encode("words") == load_tokenizer(folder).encode("words")


def test_a_tokenizer_of_another_name_is_the_one_that_is_read(llama, folder, tmp_path):
  """Beside it lies one that is called as usual."""
  path = write_gguf(llama, tmp_path / "model.gguf")
  train_bpe(["others are here"], SHAPE.vocab_size, tmp_path)
  shutil.copy(folder / "tokenizer.json", tmp_path / "mine.json")
  import_model(path, tmp_path / "imported", tokenizer=tmp_path / "mine.json")
  assert (tmp_path / "imported/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("given", ["source", "directory", "tokenizer"])
def test_a_url_is_refused(given, folder, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  named = {"source": folder, "directory": "imported", "tokenizer": folder, given: "gs://bucket/x"}
  arguments = [named["source"], named["directory"], f"--tokenizer={named['tokenizer']}"]
  status, error = error_of(capsys, "import", *arguments)
  assert status == 2 and error.startswith("error: gs://bucket/x: a URL")
  assert not list(tmp_path.iterdir())


def test_the_command_loads_to_a_mesh_or_to_the_host(folder, tmp_path, monkeypatch, capsys):
  meshes = []
  monkeypatch.setattr("drope_jax.interop.__main__.import_model", lambda *_, mesh, **__: meshes.append(mesh))
  for more in ((), ("--mesh=fsdp",), ("--mesh=fsdp=1,tensor=1",)):
    assert main(["import", str(folder), str(tmp_path / "imported"), *more]) == 0
  assert [list(mesh.devices.flat) for mesh in meshes] == [jax.devices("cpu")[:1], jax.devices(), jax.devices()]
  assert error_of(capsys, "import", folder, tmp_path / "imported", "--mesh=rows=4")[0] == 2
  assert error_of(capsys, "import", folder, tmp_path / "imported", "--mesh=tensor=4096")[0] == 2


def test_nothing_is_overwritten(folder, tmp_path, capsys):
  (tmp_path / "note").write_text("mine")
  status, error = error_of(capsys, "import", folder, tmp_path)
  assert status == 1 and f"{tmp_path}: holds something already" in error
  assert contents(tmp_path) == {"note": b"mine"}


@pytest.mark.parametrize("source", ["missing", "file.txt"])
def test_a_source_that_is_none(source, tmp_path, capsys):
  (tmp_path / "file.txt").write_text("")
  status, error = error_of(capsys, "import", tmp_path / source, tmp_path / "imported")
  assert status == 2 and "neither a folder of a Hugging Face model nor a .gguf file" in error
