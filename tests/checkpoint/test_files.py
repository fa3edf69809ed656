"""Checkpoints of which files are missing or cut off: they load as they were, or end in one line."""

import shutil

import jax
import numpy as np
import pytest
from support.checkpoints import edit_meta, write_checkpoint
from support.tiny_run import tiny_model

from drope_jax import checkpoint
from drope_jax.errors import CheckpointError

pytest.importorskip("tensorstore")
FIELDS = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
NEEDED = ("manifest.ocdbt", "d", "ocdbt.process_0")  # of the arrays


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole") / "model"
  return directory, write_checkpoint(tiny_model(vocab_size=300), directory)


def damaged(directory, tmp_path):
  """For every file and folder of the checkpoint: a copy in which it is missing, or a half of it."""
  step = directory / "checkpoints/0"
  for number, path in enumerate(sorted(step.rglob("*"))):
    for how in ("missing", "half"):
      copy = shutil.copytree(directory, tmp_path / f"{number}-{how}")
      there = copy / "checkpoints/0" / path.relative_to(step)
      if path.is_dir() and how == "missing":
        shutil.rmtree(there)
      elif path.is_dir():
        continue
      elif how == "missing":
        there.unlink()
      else:
        there.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
      yield how, path.relative_to(step), copy


def test_every_file_that_is_missing_or_cut_off_is_one_line_or_does_not_matter(written, tmp_path, capfd):
  directory, params = written
  refused = set()
  for how, path, copy in damaged(directory, tmp_path):
    try:
      loaded = checkpoint.load(copy)
    except CheckpointError as error:
      assert "\n" not in str(error) and str(copy) in str(error)
      refused.add((how, path.as_posix()))
    else:
      jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  assert {("missing", name) for name in ("meta", "params", *(f"params/{part}" for part in NEEDED))} <= refused
  assert ("half", "params/manifest.ocdbt") in refused and ("half", "meta/metadata") in refused
  assert any(how == "half" and "ocdbt.process_0/d" in path for how, path in refused)
  assert "Traceback" not in capfd.readouterr().err


def test_a_step_under_another_name_or_copied_in_part_is_not_taken_for_another(written, tmp_path):
  copy = shutil.copytree(written[0], tmp_path / "model")
  steps = copy / "checkpoints"
  shutil.copytree(steps / "0", steps / "7")
  with pytest.raises(CheckpointError, match="7: holds step 0"):
    checkpoint.open_step(copy)
  (steps / "7" / "_CHECKPOINT_METADATA").unlink()
  with pytest.raises(CheckpointError, match=r"7: this checkpoint is not complete.*other steps here: 0"):
    checkpoint.open_step(copy)
  assert checkpoint.open_step(copy, step=0).step == 0
  (steps / "0").rename(steps / "9")
  with pytest.raises(CheckpointError, match="9: holds step 0"):
    checkpoint.open_step(copy)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("times", [10**9, 2])
def test_a_size_that_the_arrays_contradict_is_named_before_anything_is_allocated(written, tmp_path, field, times):
  if field == "num_kv_heads":
    times = 2  # a larger one is refused already, because it does not divide num_heads
  copy = shutil.copytree(written[0], tmp_path / "copy")
  there = getattr(checkpoint.open_step(copy).model, field)
  wrong = times * there
  edit_meta(copy, 0, lambda meta: meta["model"].update({field: wrong}))
  with pytest.raises(CheckpointError, match=rf"ModelConfig\.{field} is {wrong} by its config; .* have {there} \("):
    checkpoint.load(copy)


def test_arrays_that_a_config_does_not_have_or_that_are_not_there_are_named(written, tmp_path):
  tied = written[1]
  for name, params, model in (
    ("unembedding", tied, tiny_model(vocab_size=300, tie_embeddings=False)),
    ("layers/k_bias", tied, tiny_model(vocab_size=300, qkv_bias=True)),
  ):
    write_checkpoint(model, tmp_path / name, params=params, tokenizer=False)
    with pytest.raises(CheckpointError, match=f"the array {name} is missing"):
      checkpoint.load(tmp_path / name)
  extra = {**tied, "unembedding": tied["embedding"]}
  write_checkpoint(tiny_model(vocab_size=300), tmp_path / "extra", params=extra, tokenizer=False)
  with pytest.raises(CheckpointError, match="the array unembedding has no place"):
    checkpoint.load(tmp_path / "extra")
