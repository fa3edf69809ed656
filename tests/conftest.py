"""Fixtures for more than one file."""

import os

import jax
import pytest

os.environ["DROPE_JAX_CPU"] = "off"  # commands that tests start compute on one device, bit by bit as the tests do


@pytest.fixture(scope="module")
def quick_compilation():
  """For files whose programs run once: most of the time would go into optimising them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
  """Each program is compiled once for all tests of this session that ask for this: a run compiles its own step."""
  options = {
    "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  """Runs `python -m MODULE ARGUMENTS`; see support/commands.py."""
  from support.commands import serving

  with serving(tmp_path_factory.getbasetemp()) as run:
    yield run


@pytest.fixture(scope="module")
def llama():
  """A random Llama of transformers."""
  from support.pretrained import hugging_face_model  # which skips the file where torch is missing

  return hugging_face_model("Llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
  """Its files, as transformers writes them."""
  from support.pretrained import write_folder

  return write_folder(llama, tmp_path_factory.mktemp("source") / "a-llama")
