"""Importing: from a folder to a checkpoint that everything else can use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.eight_devices import devices_flags
from support.pretrained import (
  ORIGINAL_CONTEXT,
  SHAPE,
  TOKENS_BT,
  hugging_face_model,
  logits_of,
  params_of,
  shaped,
  torch,
  write_folder,
  write_gguf,
  write_tokenizer,
)
from support.tiny_run import contents, losses, tiny_corpus, tiny_run

import drope_jax
from drope_jax.config import InitConfig, QKNorm
from drope_jax.data.corpus import build_corpus
from drope_jax.data.splits import documents
from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import ConfigError
from drope_jax.evaluate import results
from drope_jax.interop.__main__ import main
from drope_jax.interop.importing import import_model
from drope_jax.model import Decoder
from drope_jax.train import train

gguf = pytest.importorskip("gguf")
ROOT = Path(__file__).parents[2]


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
  whole = [r for r in results.read(tmp_path / "out/results.jsonl") if (r.metric, r.by) == ("loss", None)]
  found = {(r.method, r.context): r.value for r in whole}
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
  environment = {**os.environ, "XLA_FLAGS": devices_flags(8), "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", script], check=True, env=environment)


WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
WIDE |= {"intermediate_size": 2048, "tie_word_embeddings": True}


def importing_peak(source, out, tokenizer):
  """The most bytes that a process which imports has in memory."""
  arguments = ["import", str(source), str(out), f"--tokenizer={tokenizer / 'tokenizer.json'}"]
  command = f"""
from drope_jax.interop.__main__ import main
from experiments.benchmarks.measuring import host_memory_peak
assert main({arguments!r}) == 0
print(host_memory_peak())
"""
  ended = subprocess.run([sys.executable, "-c", command], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
  return int(ended.stdout.splitlines()[-1])


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
    # The smaller of two: on a busy machine, writing may fall behind, and holds on to what is still to be written.
    peaks.append(min(importing_peak(source, tmp_path / f"{layers}-{attempt}", tmp_path) for attempt in range(2)))
  stack = 4 * 24 * WIDE["hidden_size"] * WIDE["intermediate_size"]
  print(f"{kind}: {model_bytes / 1e6:.0f} MB, stacks of {stack / 1e6:.0f}, add {(peaks[1] - peaks[0]) / 1e6:.0f} MB")
  assert 0.9 * model_bytes < peaks[1] - peaks[0] < model_bytes + stack + 64e6
