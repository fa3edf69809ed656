"""Damaged files of every format: an error of ours that names the file, or success, soon and in little memory.

Each reader gets random bytes and seeded mutations of whole files; by default a few of each, as slow tests thousands.
"""

import contextlib
import json
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.checkpoints import write_checkpoint
from support.mutations import mutated_bytes, mutated_json
from support.tiny_run import tiny_model
from support.tokenizer_files import byte_fallback, byte_level, write

from drope_jax.data.tokenizers import load_tokenizer
from drope_jax.errors import UserError
from drope_jax.interop.exporting import export_model
from drope_jax.interop.gguf_header import read_header
from drope_jax.interop.importing import open_source
from drope_jax.positions import RoPE
from drope_jax.scalings import Llama3

gguf = pytest.importorskip("gguf")
SECONDS, MEGABYTES = 10, 1024
BY_DEFAULT, SLOW = 25, 700  # of each file


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A small model in each format, with each kind of tokenizer."""
  place = tmp_path_factory.mktemp("whole")
  for name, tokenizer in (("folder", byte_level()), ("fallback", byte_fallback())):
    model = tiny_model(vocab_size=tokenizer.get_vocab_size(), positions=RoPE(100.0, Llama3(4.0, 32)), num_layers=1)
    write_checkpoint(model, place / f"run-{name}", tokenizer=False)
    roles = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"} if name == "fallback" else {}
    config = {"eos_token": "<|im_end|>", **roles, "chat_template": "{{ messages }}", "model_max_length": 64}
    write(tokenizer, place / f"run-{name}", tokenizer_config=config, generation_config={"eos_token_id": [258, 260]})
    export_model(place / f"run-{name}", place / name)
    export_model(place / f"run-{name}", place / f"{name}-gguf", format="gguf", dtype="float32")
  export_model(place / "run-folder", place / "shards", shard_bytes=9000)
  write_adapter(place / "adapter", model, base=place / "folder")
  return place


def write_adapter(folder, model, base):
  """LoRA adapters of one matrix."""
  folder.mkdir()
  matrix, rank = "base_model.model.model.layers.0.self_attn.q_proj", 2
  shapes = {"lora_A": (rank, model.d_model), "lora_B": (model.num_heads * model.head_dim, rank)}
  arrays = {f"{matrix}.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
  save_file(arrays, folder / "adapter_model.safetensors")
  config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "base_model_name_or_path": str(base), "use_dora": False}
  (folder / "adapter_config.json").write_text(json.dumps(config))


def read_model(path):
  """All of a model: its config, each of its arrays."""
  source, _ = open_source(path)
  for name in source.shapes:
    source.read(name)
  return source


def read_gguf(folder):
  read_model(folder / "model.gguf").write_tokenizer(folder)
  read_tokenizer(folder)


def read_tokenizer(folder):
  tokenizer = load_tokenizer(folder)
  ids = tokenizer.encode("the river\n Ж 1024")
  assert isinstance(tokenizer.decode(ids), str) and all(isinstance(tokenizer.piece(token), bytes) for token in ids)


def in_header(content, rng):
  """A fault in the JSON of a safetensors file, whose length is right again."""
  (size,) = struct.unpack("<Q", content[:8])
  header = mutated_json(content[8 : 8 + size].decode(), rng).encode()
  return struct.pack("<Q", len(header)) + header + content[8 + size :]


def in_bytes(content, rng):
  return mutated_bytes(content, rng, header=12_000)


VALUES = (0, 1, -1, 3, 2**40, 0.5, float("nan"), "", "x", True, [0], [1, 2, 3], [0.5], ["a"], ["a", "a b"])


def in_metadata(content, rng):
  """A value of a GGUF file replaced, left out, or under another name."""
  with tempfile.TemporaryDirectory() as place:
    before, after = Path(place, "before"), Path(place, "after")
    before.write_bytes(content)
    metadata, tensors = read_header(before)
    key = rng.choice(sorted(metadata))
    value = metadata.pop(key)
    kind = rng.choice(("value", "value", "without", "renamed"))
    if kind == "renamed":
      metadata[key + "_"] = value
    elif kind == "value":
      metadata[key] = rng.choice(VALUES)
    with contextlib.closing(gguf.GGUFWriter(after, "llama")) as writer:
      for name, one in metadata.items():
        if name != "general.architecture":
          add = {bool: writer.add_bool, int: writer.add_int64, float: writer.add_float32, str: writer.add_string}
          add.get(type(one), writer.add_array)(name, one)
      for name, tensor in tensors.items():
        stored = np.frombuffer(content, np.float32, tensor.rows * tensor.shape[-1], tensor.offset)
        writer.add_tensor(name, stored.reshape(tensor.shape))
      writer.write_header_to_file()
      writer.write_kv_data_to_file()
      writer.write_tensors_to_file()
    return after.read_bytes()


def in_json(content, rng):
  return mutated_json(content.decode(), rng).encode()


FILES = {
  # name: folder, file, the fault, what reads it
  "safetensors": ("folder", "model.safetensors", in_bytes, read_model),
  "its header": ("folder", "model.safetensors", in_header, read_model),
  "config": ("folder", "config.json", in_json, read_model),
  "index": ("shards", "model.safetensors.index.json", in_json, read_model),
  "adapters": ("adapter", "adapter_model.safetensors", in_bytes, read_model),
  "adapters' header": ("adapter", "adapter_model.safetensors", in_header, read_model),
  "adapters' config": ("adapter", "adapter_config.json", in_json, read_model),
  "gguf": ("folder-gguf", "model.gguf", in_bytes, read_gguf),
  "gguf, byte fallback": ("fallback-gguf", "model.gguf", in_bytes, read_gguf),
  "metadata": ("folder-gguf", "model.gguf", in_metadata, read_gguf),
  "metadata, byte fallback": ("fallback-gguf", "model.gguf", in_metadata, read_gguf),
  "tokenizer": ("folder", "tokenizer.json", in_json, read_tokenizer),
  "tokenizer, byte fallback": ("fallback", "tokenizer.json", in_json, read_tokenizer),
  "tokenizer's bytes": ("folder", "tokenizer.json", in_bytes, read_tokenizer),
  "roles": ("folder", "tokenizer_config.json", in_json, read_tokenizer),
  "generation": ("folder", "generation_config.json", in_json, read_tokenizer),
}


def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def late(*_):
  raise TimeoutError


def check_reader(name, whole, tmp_path, rounds, seed):
  """Returns how many of the damaged files were refused."""
  folder, file, fault, read = FILES[name]
  shutil.copytree(whole / folder, tmp_path / folder)
  content, path = (whole / folder / file).read_bytes(), tmp_path / folder / file
  read(tmp_path / folder)
  refused, before = 0, peak()
  signal.signal(signal.SIGALRM, late)
  for number in range(rounds):
    rng = random.Random(f"{name} {seed} {number}")
    path.write_bytes(rng.randbytes(rng.randrange(300)) if number % 10 == 9 else fault(content, rng))
    start = time.perf_counter()
    signal.alarm(SECONDS)
    try:
      read(tmp_path / folder)
    except UserError as error:
      refused += 1
      assert "\n" not in str(error) and str(tmp_path) in str(error), (number, str(error))
      assert len(str(error)) < 1000, (number, str(error))
    finally:
      signal.alarm(0)
    assert time.perf_counter() - start < SECONDS and peak() - before < MEGABYTES, number
  return refused


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_an_error_that_names_it(name, whole, tmp_path):
  assert check_reader(name, whole, tmp_path, BY_DEFAULT, 0) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files(name, whole, tmp_path):
  assert check_reader(name, whole, tmp_path, SLOW, 1) >= 50
