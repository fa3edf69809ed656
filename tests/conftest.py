"""Fixtures for more than one file."""

import os

import jax
import pytest

os.environ["DROPE_JAX_CPU"] = "off"  # commands that tests start compute on one device, bit by bit as the tests do


def pytest_configure(config: pytest.Config) -> None:
  """Without the slow tests, most programs run once: optimising them would take most of the time."""
  if config.option.markexpr == "not slow":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def optimised():
  """For tests of what the compiler makes: memory, loops, the operations that are left."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
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
