"""Digests: the same on every mesh, other for any array that is not the same, and checked wherever a step is read."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoints import edit_meta, write_checkpoint
from support.eight_devices import on_eight_devices
from support.objectives import Pull
from support.tiny_run import tiny_model, tiny_run

from drope_jax import checkpoint
from drope_jax.checkpoint import digests
from drope_jax.errors import CheckpointError, ConfigError
from drope_jax.parameters import named_leaves
from drope_jax.train import train


def by_hand(array) -> str:
  """The digest as the docstring of digests.py defines it, in numpy."""
  array = np.asarray(array)
  unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
  word = array.view(unsigned).astype(np.uint32).reshape(-1)
  word = word ^ (np.arange(word.size, dtype=np.uint32) * np.uint32(0x9E3779B9))
  word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
  return f"{int((word ^ (word >> 16)).sum(dtype=np.uint64)) % 2**32:08x}"


ARRAYS = {
  "matrix": np.random.default_rng(0).normal(size=(13, 7)).astype(np.float32),
  "half": np.linspace(0, 1, 12).reshape(3, 2, 2).astype(jnp.bfloat16),
  "bytes": np.arange(9, dtype=np.uint8),
  "switch": np.array([True, False]),
  "number": np.int32(7),
  "nothing": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("block", [1 << 20, 14])
def test_digests_are_those_of_the_definition_whatever_is_read_at_a_time(monkeypatch, block):
  monkeypatch.setattr(digests, "_BLOCK", block)
  digests._summing.cache_clear()
  assert digests.of_arrays(ARRAYS) == {name: by_hand(array) for name, array in ARRAYS.items()}
  digests._summing.cache_clear()


def test_every_flipped_bit_and_every_swap_is_another_digest():
  array = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
  bits = array.view(np.uint32).reshape(-1)
  found = {digests.of_arrays(array)[""]}
  for place in range(bits.size):
    for bit in range(32):
      changed = bits.copy()
      changed[place] ^= np.uint32(1 << bit)
      found.add(digests.of_arrays(changed.view(np.float32).reshape(6, 3))[""])
  assert len(found) == 1 + bits.size * 32
  for i in range(bits.size):
    for j in range(i):
      signs, swapped = bits.copy(), bits.copy()
      signs[[i, j]] ^= np.uint32(1 << 31)  # which add up to zero in a plain sum
      swapped[[i, j]] = swapped[[j, i]]
      found |= {digests.of_arrays(one.view(np.float32).reshape(6, 3))[""] for one in (signs, swapped)}
  assert len(found) == 1 + bits.size * 32 + bits.size * (bits.size - 1)


@pytest.mark.slow
def test_digests_are_the_same_on_every_mesh():
  shapes = {"layers/q": (4, 16, 8), "embedding": (264, 16), "odd": (5,), "count": ()}
  answer = on_eight_devices("digests_script.py", jobs=shapes)
  arrays = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  assert len(answer["digests"]) == 4
  assert all(found == {name: by_hand(array) for name, array in arrays.items()} for found in answer["digests"])


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("digests") / "run"
  train(tiny_run(corpus, model=tiny_model(num_layers=1), objective=Pull(), steps=2, checkpoint_every=1), workdir)
  return workdir


@pytest.fixture
def damaged(finished, tmp_path):
  """A copy to do harm to."""
  return shutil.copytree(finished, tmp_path / "run")


def stored_otherwise(workdir, name):
  """Writes the arrays of step 2 again with one bit flipped, as a disk does that has no checksums of its own."""
  saved = checkpoint.open_step(workdir)
  tree = jax.tree.map(lambda leaf: np.array(leaf), saved.params())
  array = dict(named_leaves(tree))[name]
  array.reshape(-1).view(np.uint32)[3] ^= np.uint32(1 << 22)
  shutil.rmtree(workdir / "checkpoints/2/params")
  write_checkpoint(saved.model, workdir / "other", params=tree, tokenizer=False)
  shutil.move(workdir / "other/checkpoints/0/params", workdir / "checkpoints/2/params")


def test_a_changed_bit_is_named_and_no_other_step_takes_its_place(damaged, monkeypatch):
  stored_otherwise(damaged, "layers/gate")
  with pytest.raises(CheckpointError, match=r"checkpoints/2: params layers/gate is not as it was saved") as error:
    checkpoint.load(damaged)
  assert "other steps here: 1 (--step=N, or --config.init.step=N)" in str(error.value)
  assert "\n" not in str(error.value)
  assert checkpoint.load(damaged, 1).step == 1
  monkeypatch.setenv(digests.VARIABLE, "off")
  assert checkpoint.load(damaged).step == 2
  monkeypatch.setenv(digests.VARIABLE, "sometimes")
  with pytest.raises(ConfigError, match="DROPE_JAX_DIGESTS is 'sometimes' in the environment; allowed: on, off"):
    checkpoint.load(damaged)


@pytest.mark.parametrize(
  ("file", "change", "named"),
  [
    ("meta/metadata", lambda text: text.replace('"theta": 10000.0', '"theta": 10001.0'), "meta is not as it was saved"),
    ("data/process_0-of-1.json", lambda text: text.replace("2", "3"), "data process_0-of-1.json is not as it was"),
  ],
)
def test_what_is_not_an_array_is_checked_too(corpus, damaged, file, change, named):
  path = damaged / "checkpoints/2" / file
  assert change(path.read_text()) != path.read_text()
  path.write_text(change(path.read_text()))
  config = tiny_run(corpus, model=tiny_model(num_layers=1), objective=Pull(), steps=3, checkpoint_every=1)
  with pytest.raises(CheckpointError, match=named):
    train(config, damaged, extend=True)


def test_steps_without_digests_load_as_before(damaged):
  edit_meta(damaged, 2, lambda meta: meta.pop("digests"))
  assert checkpoint.load(damaged).step == 2


def test_an_imported_model_has_digests(tmp_path):
  params = write_checkpoint(tiny_model(), tmp_path / "model")
  assert checkpoint.open_step(tmp_path / "model").meta["digests"] == {"params": digests.of_arrays(params)}


def test_digests_can_be_left_out(tmp_path, monkeypatch):
  monkeypatch.setenv(digests.VARIABLE, "off")
  write_checkpoint(tiny_model(), tmp_path / "model")
  assert not {"digests", "digest"} & checkpoint.open_step(tmp_path / "model").meta.keys()


@pytest.mark.parametrize(
  ("flips", "items"), [(10, ["params"]), pytest.param(200, ["params", "meta"], marks=pytest.mark.slow)]
)
def test_no_flipped_bit_of_a_file_loads_as_other_weights(finished, tmp_path, monkeypatch, capfd, flips, items):
  """With the digests off, some do: of 100 in the weights it was 59."""
  step, rng = finished / "checkpoints/2", random.Random(flips)
  files = [path for item in items for path in sorted((step / item).rglob("*")) if path.is_file()]
  whole = checkpoint.load(finished)
  silent = {"on": 0, "off": 0}
  for number in range(flips):
    copy = shutil.copytree(finished, tmp_path / str(number))
    path = copy / rng.choices(files, [path.stat().st_size for path in files])[0].relative_to(finished)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    for setting in silent:
      monkeypatch.setenv(digests.VARIABLE, setting)
      try:
        loaded = checkpoint.load(copy)
      except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error)
      else:
        same = jax.tree.map(lambda ours, theirs: bool((ours == theirs).all()), loaded.params, whole.params)
        silent[setting] += not (all(jax.tree.leaves(same)) and loaded.model == whole.model)
    shutil.rmtree(copy)
  assert silent["on"] == 0 and silent["off"] > 0
  assert "Traceback" not in capfd.readouterr().err
