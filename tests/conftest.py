"""Fixtures for more than one file."""

import gc
import os
import signal
from pathlib import Path

import hypothesis
import jax
import pytest
from support.tiny_run import tiny_corpus, tiny_model, tiny_run

QUICK_COMPILATION = "--xla_cpu_use_fusion_emitters=false"
# Every run has the same examples, so that a commit always passes or always fails. For others, give --hypothesis-seed=N
# and --hypothesis-profile=default.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")
# A shell lets what it starts in the background ignore Ctrl-C, and so would the commands that tests stop with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["DROPE_JAX_CPU"] = "off"  # commands that tests start compute on one device, bitwise as the tests do


def pytest_configure(config: pytest.Config) -> None:
  """Turns compiler optimisations off, unless slow tests are run: most programs run only once.

  For the same reason XLA's older code generator is used, which takes about half the time of its fusion emitters (jax
  0.11 no longer has it, and fails on the unknown flag). The slow tests compile as users do.
  """
  if config.option.markexpr == "not slow":
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
    jax.config.update("jax_disable_most_optimizations", True)
    flags = os.environ.get("XLA_FLAGS", "")
    if QUICK_COMPILATION not in flags and jax.__version_info__ < (0, 11):
      os.environ["XLA_FLAGS"] = f"{flags} {QUICK_COMPILATION}".strip()


def pytest_collection_finish() -> None:
  """Exempts imported objects from garbage collection and collects less often: this took 7% of the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
  """A directory for compiled programs, new for each session and shared by its processes."""
  base = tmp_path_factory.getbasetemp()
  return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"


@pytest.fixture(scope="session", autouse=True)
def compile_once(compiled) -> None:
  """Compiles each program once for all tests of this session, whichever process they run in."""
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """The directory of a `tiny_corpus`; no test may change it."""
  return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="session")
def rope(corpus, tmp_path_factory):
  """The workdir of a run of 4 steps whose attention is far from uniform, so that positions matter."""
  from drope_jax.train import train

  workdir = tmp_path_factory.mktemp("runs") / "rope"
  train(tiny_run(corpus, model=tiny_model(init_std=0.3), steps=4), workdir)
  return workdir


@pytest.fixture(scope="session")
def command(compiled):
  """Runs `python -m MODULE ARGUMENTS`; see support/commands.py."""
  from support.commands import serving

  with serving(compiled) as run:
    yield run


@pytest.fixture(scope="session")
def llama():
  """A random Llama of transformers."""
  from support.pretrained import hugging_face_model  # which skips the file where torch is missing

  return hugging_face_model("Llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def folder(llama, tmp_path_factory):
  """Its files, as transformers writes them."""
  from support.pretrained import write_folder

  return write_folder(llama, tmp_path_factory.mktemp("source") / "a-llama")
